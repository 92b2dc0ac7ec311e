"""Runs tf2onnx with handlers for operations that it lacks, its errors corrected, and less memory.

Its failures raise errors instead of being logged, and recurrent layers are unrolled before it sees them.
"""

import contextlib
import ctypes
import functools
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tf2onnx import tf_loader
from tf2onnx.optimizer import _get_optimizers
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

from export.errors import ProjectError
from export.onnx_passes.shape_folding import RESIZES

TF2ONNX_OPSET = 17  # at 18 tf2onnx fails to convert ReduceMean, and it does not support 19
# A step has ten to twenty nodes, so 256 steps, the rows of an image of usual size, convert in about a minute.
MOST_STEPS = 256


def _leave(context: Any, node: Any, name: str, _: Any) -> None:
    """Keep an operation in the graph under its TensorFlow name."""


def _with_one(context: Any, node: Any, name: str, _: Any, steps: tuple[tuple[str, str], tuple[str, str]]) -> None:
    """Replace a node by two operators, each given with its inputs: ``x``, the current value, and ``1``."""
    (first, its_inputs), (second, inputs) = steps
    result = node.output[0]
    kind = {"shapes": [context.get_shape(result)], "dtypes": [context.get_dtype(result)]}
    context.remove_node(node.name)
    values = {"x": node.input[0], "1": context.make_const(f"{name}/one", np.ones((), np.float32)).output[0]}
    between = context.make_node(first, [values[v] for v in its_inputs], name=f"{name}/{first}", **kind)
    values["x"] = between.output[0]
    context.make_node(second, [values[v] for v in inputs], outputs=[result], name=name, **kind)


# operation -> its handler and the handler's extra arguments, as tf2onnx.convert takes them
HANDLERS: dict[str, tuple[Any, list[Any]]] = {
    # TensorFlow's GELU contains Erfc; tf2onnx supports only Erf.
    "Erfc": (functools.partial(_with_one, steps=(("Erf", "x"), ("Sub", "1x"))), []),
    # CELU contains Expm1. Near zero the error of these two is half an ulp of one.
    "Expm1": (functools.partial(_with_one, steps=(("Exp", "x"), ("Sub", "x1"))), []),
    "Log1p": (functools.partial(_with_one, steps=(("Add", "x1"), ("Log", "x"))), []),
    **{operation: (_leave, []) for operation in RESIZES},
}


class ExactTransposeOptimizer(TransposeOptimizer):  # type: ignore[misc]
    """Pushes the Transposes behind NHWC operations down until they cancel, without two errors of tf2onnx 1.17.

    tf2onnx folds a constant added behind a Conv into its bias if one axis of the constant is as long as the number of
    filters: it fails for a scalar (onnx/tensorflow-onnx#1729), and takes a constant per row for one per channel. It
    also folds a factor into a weight that another Conv shares.
    """

    def _add_handler(self, trans: Any, node: Any) -> bool:
        constant = node.inputs[1]
        if constant.is_const():
            shape = np.shape(constant.get_tensor_value(as_list=False))
            if not shape or any(d != 1 for d in shape[:-1]):
                return bool(self._handle_node_having_branches(trans, node))
            self._own(node, 1)
        return bool(super()._add_handler(trans, node))

    def _mul_handler(self, trans: Any, node: Any) -> bool:
        conv = trans.inputs[0]
        if conv is not None and conv.type == "Conv" and conv.inputs[1].is_const():
            self._own(conv, 1)
        return bool(super()._mul_handler(trans, node))

    def _own(self, node: Any, index: int) -> None:
        """Give a node its own copy of a constant that is shared, before the constant is changed."""
        constant = node.inputs[index]
        if not self._nodes_has_single_consumer_node([constant]):
            self._g.replace_input(node, node.input[index], self._g.copy_const(constant).output[0], index)


def _inline_everything(definition: Any) -> None:
    """Let TensorFlow inline the functions that are marked for XLA (in place).

    Keras computes a grouped convolution on a CPU in such a function, which tf2onnx does not support.
    """
    functions = definition.library.function
    for holder in (*definition.node, *functions, *(node for function in functions for node in function.node_def)):
        for name in ("_XlaMustCompile", "_noinline"):
            if name in holder.attr:
                del holder.attr[name]


def free_memory() -> None:
    """Collect reference cycles and, with glibc, return free memory to the system."""
    gc.collect()
    with contextlib.suppress(TypeError, AttributeError):  # on Windows, and with other C libraries
        ctypes.CDLL(None).malloc_trim(0)


class _Pass:
    """A pass of tf2onnx that frees memory before it starts and records its failure.

    tf2onnx copies the whole graph with its weights before each pass and leaves the copies to the garbage collector:
    8 GB for a ResNet-50. It only logs a pass that raises.
    """

    def __init__(self, name: str, factory: Any, failures: list[str]) -> None:
        free_memory()
        self._name, self._pass, self._failures = name, factory(), failures

    @property
    def graph_been_opt(self) -> bool:
        """Return whether the pass changed the graph."""
        return bool(self._pass.graph_been_opt)

    def optimize(self, target: Any, iteration: int) -> Any:
        """Run the pass on a tf2onnx graph."""
        try:
            return self._pass.optimize(target, iteration)
        except Exception as error:
            self._failures.append(f"{self._name}: {type(error).__name__}: {error}")
            raise


@contextlib.contextmanager
def _frozen_graph_prepared() -> Iterator[None]:
    """Inline the functions of a frozen graph, and keep the conversion below 3 GB for a ResNet-50.

    Memory peaks in TensorFlow's optimizer, so the garbage of freezing is freed before it (0.3 GB). Objects that exist
    already are excluded from garbage collection, which would traverse all of TensorFlow each time.
    """
    original = tf_loader.tf_optimize

    def optimize(inputs: list[str], outputs: list[str], definition: Any) -> Any:
        free_memory()
        _inline_everything(definition)
        return original(inputs, outputs, definition)

    tf_loader.tf_optimize = optimize
    free_memory()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        tf_loader.tf_optimize = original


@contextlib.contextmanager
def unroll_recurrent_layers(model: keras.Model, most_steps: int = MOST_STEPS) -> Iterator[None]:
    """Unroll the recurrent layers of a model that have few steps, inside the block.

    An unrolled layer is converted to MatMuls and sums, which every runtime has in every precision. A loop is a node
    that some runtimes do not parse, that FP16 conversion does not enter, and whose shapes are not inferred.

    Args:
        model: Functional; layers whose number of steps is unknown or larger are not unrolled.
        most_steps: Largest number of steps. Defaults to `MOST_STEPS`.
    """
    rolled = [
        layer
        for layer in model._flatten_layers()  # the layers of wrappers such as Bidirectional are in no public list
        if isinstance(layer, keras.layers.RNN) and not layer.unroll and 0 < _steps(layer) <= most_steps
    ]
    for layer in rolled:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in rolled:
            layer.unroll = False


def _steps(layer: Any) -> int:
    """Return the number of steps of a built recurrent layer, 0 if it is not fixed."""
    config: dict[str, Any] = layer.get_build_config() or {}
    keys = ("input_shape", "sequences_shape", "sequence_shape")
    shapes: list[Sequence[int | None]] = [config.get(key) or () for key in keys]
    return next((shape[1] or 0 for shape in shapes if len(shape) > 2), 0)


def convert(model: keras.Model, input_name: str) -> onnx.ModelProto:
    """Convert a functional Keras model to ONNX with tf2onnx.

    An operation without ONNX counterpart stays in the graph under its TensorFlow name; the caller must check for it.

    Args:
        model: Functional, one input (batch, height, width, channels), one output.
        input_name: Name of the graph's input, float32 NHWC.

    Raises:
        ProjectError: If tf2onnx or one of its passes fails.
    """
    failures: list[str] = []
    factories = {**_get_optimizers(), "optimize_transpose": ExactTransposeOptimizer}
    passes = {name: functools.partial(_Pass, name, factory, failures) for name, factory in factories.items()}
    try:
        with _frozen_graph_prepared(), unroll_recurrent_layers(model):
            result: onnx.ModelProto = tf2onnx.convert.from_keras(
                model,
                input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=input_name)],
                opset=TF2ONNX_OPSET,
                optimizers=passes,
                custom_op_handlers=dict(HANDLERS),
            )[0]
    except Exception as error:
        raise ProjectError(
            f"Expected a model that tf2onnx converts. Received: {type(error).__name__}: {error} "
            f"for {model.name!r} (look for layers without an ONNX counterpart)."
        ) from error
    finally:
        free_memory()
    if failures:
        raise ProjectError(
            f"Expected tf2onnx to optimize the graph. Received: {failures[0]} (check the versions of tf2onnx and onnx)."
        )
    return result
