"""A TensorFlow graph as a Keras 3 layer, for a SavedModel without a description of its layers.

The graph's structure is in the layer's configuration and its constants are the layer's weights, so a model with
this layer is saved, loaded, exported and counted as any other. Import this module before loading such a model.
"""

import base64
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from export.errors import ModelError
from export.words import count
from pipeline.keras_files.archive_checks import GRAPH_LIMIT
from pipeline.keras_files.graph_rewriting import node_name, reachable, readers, with_unique_functions

_WEIGHTED = (  # operations that take weights, or call functions that may
    "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Einsum",
    "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "MatMul", "PartitionedCall", "StatefulPartitionedCall",
    "StatelessWhile", "While",
)  # fmt: skip


@keras.saving.register_keras_serializable("keras_resnet_to_tensorrt", "FrozenGraph")
class FrozenGraph(keras.layers.Layer):  # type: ignore[misc]
    """Runs a frozen TensorFlow graph with one input and one output.

    Args:
        graph: serialized ``GraphDef`` in base64, constants replaced by placeholders.
        feed: name of the input tensor.
        fetch: name of the output tensor.
        shapes: shape of each weight, by the name of its placeholder.
        dtype_in: dtype of the graph's input. Defaults to "float32".
        **options: arguments of ``keras.layers.Layer``.
    """

    def __init__(
        self,
        graph: str,
        feed: str,
        fetch: str,
        shapes: dict[str, list[int]],
        dtype_in: str = "float32",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.graph, self.feed, self.fetch, self.dtype_in = graph, feed, fetch, dtype_in
        self.shapes = {str(name): [int(n) for n in shape] for name, shape in shapes.items()}
        self._definition = tf.compat.v1.GraphDef.FromString(base64.b64decode(graph))
        self.constants = {
            name: self.add_weight(shape=tuple(shape), name=name.replace("/", "."), trainable=False, initializer="zeros")
            for name, shape in self.shapes.items()
        }
        for function in self._definition.library.function:  # loop bodies: import_graph_def does not register them
            if not context.context().has_function(function.signature.name):
                context.context().add_function_def(function)
        self._run = tf.function(self._import)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Run the graph on a float32 input."""
        return self._run(inputs)

    def before_weights(self, inputs: Any) -> Any:
        """Run the graph up to the first convolution or matrix product.

        Args:
            inputs: as for ``call``.

        Returns:
            The input of that operation; ``inputs`` if there is none.
        """
        fetch = first_weighted_input(self._definition, self.feed)
        return tf.function(self._import)(inputs, fetch) if fetch is not None else inputs

    def _import(self, inputs: Any, fetch: str | None = None) -> Any:
        feeds = {f"{name}:0": tf.convert_to_tensor(weight.value) for name, weight in self.constants.items()}
        feeds[self.feed] = tf.cast(inputs, self.dtype_in)
        return tf.graph_util.import_graph_def(self._definition, feeds, [fetch or self.fetch], name="")[0]

    def get_config(self) -> dict[str, object]:
        """Return the configuration, which holds all but the weights."""
        return {
            **super().get_config(),
            "graph": self.graph,
            "feed": self.feed,
            "fetch": self.fetch,
            "shapes": self.shapes,
            "dtype_in": self.dtype_in,
        }


def first_weighted_input(definition: Any, feed: str) -> str | None:
    """Name the tensor that depends on the feed and enters the first operation with weights; None if none does."""
    readers_of = readers(definition.node)
    before = reachable(
        [node_name(feed)], lambda name: (n.name for n in readers_of.get(name, ()) if n.op not in _WEIGHTED)
    )
    for name in before:
        for node in readers_of.get(name, ()):
            if node.op in _WEIGHTED:
                return next(i if ":" in i else f"{i}:0" for i in node.input if i.split(":")[0] == name)
    return None


def from_graph_def(definition: Any, feed: str, fetch: str, dtype_in: str, name: str) -> FrozenGraph:
    """Build the layer of a frozen ``GraphDef``.

    Raises:
        ModelError: too large without its float32 constants.
    """
    skeleton = with_unique_functions(definition)
    values: dict[str, np.ndarray] = {}
    for node in skeleton.node:
        if node.op != "Const" or node.attr["dtype"].type != tf.float32.as_datatype_enum:
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        if value.size < 2:  # a scale or an epsilon
            continue
        values[node.name] = value
        node.op = "Placeholder"
        del node.attr["value"]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    text = base64.b64encode(skeleton.SerializeToString(deterministic=True)).decode()
    if len(text) > GRAPH_LIMIT - 2**20:  # the layer would be saved, but not loaded again
        raise ModelError(
            f"Expected a SavedModel whose large constants are float32, which become weights. Received: one with "
            f"{count(len(text), 'byte')} beside those, more than the {GRAPH_LIMIT - 2**20:,} allowed. Export it in "
            "float32."
        )
    layer = FrozenGraph(text, feed, fetch, {n: list(v.shape) for n, v in values.items()}, dtype_in, name=name)
    for key, value in values.items():
        layer.constants[key].assign(value)
    return layer
