"""Features of images: what enters the classifier's last Dense layer, such as the pooled maps of a ResNet.

The tensor is found by the graph's operators, from the logits backwards, and becomes an output of a copy in memory; the
file is not changed. Features of an INT8 file, whose channels equalization scaled, are brought back to Keras' values.
Python 3.10 syntax; onnx is imported inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from export.errors import RunnerError
from export.tensorrt.sidecar import OUTPUTS, TOP_OUTPUTS
from pipeline.artifacts.paths import TENSORS
from pipeline.artifacts.tensor_changes import UNCHANGED, TensorChange, read_changes
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import Top, top_k_of
from pipeline.runners.onnxruntime import DEVICES, OnnxRunner

if TYPE_CHECKING:
    import onnx
    from onnx import ModelProto, NodeProto

EMBEDDINGS: Final = "embeddings"
_DENSE: Final = frozenset({"Gemm", "MatMul"})
# What may stand between the last Dense and the logits: a bias, an activation, its inverse, classes put side by side.
_AFTER_DENSE: Final = frozenset(
    {
        *("Add", "Cast", "Clip", "Concat", "Div", "Exp", "Flatten", "Identity", "Log", "LogSoftmax", "Max", "Min"),
        *("Mul", "Neg", "Reshape", "Sigmoid", "Slice", "Softmax", "Squeeze", "Sub", "Tanh", "Unsqueeze"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
_ROUNDING: Final = frozenset({"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})  # of the features, for Dense


class EmbeddingRunner(OnnxRunner):
    """Runs an exported ONNX file whose graph gives the features too. Its other answers stay bit-identical.

    Attributes:
        features: of an open runner: number of values of an image.
    """

    features = 0
    _change = UNCHANGED

    def __enter__(self) -> EmbeddingRunner:
        super().__enter__()
        source = self._session.get_inputs()[0]
        batch = source.shape[0] if isinstance(source.shape[0], int) else 1
        blank = np.zeros((batch, *source.shape[1:]), np.uint8)
        (features,) = self._fetch(blank, [EMBEDDINGS])
        if features.ndim != 2:
            self.__exit__()
            raise RunnerError(
                f"Expected one row of features for each image. Received: {features.shape} before the last Dense layer "
                f"of {self.path}. --embeddings needs a model that pools or flattens before it."
            )
        self.features = features.shape[1]
        return self

    def top_and_features(self, pixels: np.ndarray, k: int) -> tuple[Top, np.ndarray]:
        """Classify images and return their features.

        Args:
            pixels: uint8, (N, height, width, 3).
            k: classes for each image, at least 1.

        Returns:
            tuple[Top, np.ndarray]: see `OnnxRunner.top`; float32, (N, `features`).

        Raises:
            RunnerError: as `OnnxRunner.top`.
        """
        if 1 <= k <= self.graph_top_k:
            probabilities, classes, features = self._fetch(pixels, (*TOP_OUTPUTS, EMBEDDINGS))
            return Top(probabilities[:, :k], classes[:, :k]), self._change.keras_value(features)
        probabilities, features = self._fetch(pixels, (OUTPUTS[1], EMBEDDINGS))
        return top_k_of(probabilities, k), self._change.keras_value(features)

    def _model(self) -> bytes:
        import onnx

        model = onnx.load(self.path)
        if self.precision == "int8":
            self._change = self._read_change(_features(model.graph, str(self.path)))
        data: bytes = with_features(model, str(self.path)).SerializeToString()
        return data

    def _read_change(self, tensor: str) -> TensorChange:
        """Return what the INT8 file holds in place of Keras' features."""
        path = Path(self.path).with_name(Path(TENSORS).name)
        if not path.is_file():
            raise RunnerError(
                f"Expected {path.name} beside {self.path}, which says by what its channels are scaled. Received: none. "
                "Run the quantize stage again, or take features of another precision."
            )
        return read_changes(path).get(tensor, UNCHANGED)


def open_embeddings(
    path: Path,
    backend: str,
    precision: str,
    runtime: RuntimeOptions | None = None,
    *,
    threads: int = 0,
    spinning: bool = True,
) -> EmbeddingRunner:
    """Make the runner of an ONNX file; the file is loaded when its with block begins.

    Args:
        path: the file.
        backend: "onnxruntime" or "onnxruntime-cuda".
        precision: of the file.
        runtime: gives the GPU. Defaults to None: `RuntimeOptions()`.
        threads: see `OnnxRunner`. Defaults to 0.
        spinning: likewise. Defaults to True.

    Raises:
        RunnerError: an engine, which has no such output.
    """
    device = DEVICES.get(backend)
    if device not in ("cpu", "cuda"):
        raise RunnerError(
            f"Expected an ONNX file, whose graph has the features. Received: {path} on {backend}. "
            "--embeddings needs the ONNX file: --backend onnxruntime."
        )
    index = (runtime or RuntimeOptions()).device
    return EmbeddingRunner(path, precision=precision, device=device, gpu=index, threads=threads, spinning=spinning)


def with_features(model: ModelProto, name: str) -> ModelProto:
    """Return the model with the further output `EMBEDDINGS`, float32, of what enters its last Dense layer.

    Where that layer takes rounded values (INT8, FP16), these are the values before they are rounded for it.

    Args:
        model: with the output ``logits``; it is changed.
        name: of its file, for errors.

    Raises:
        RunnerError: no Dense layer, or several, give the logits.
    """
    from onnx import TensorProto, helper

    tensor, same = _features(model.graph, name), f"{EMBEDDINGS}/Sum"
    # ONNX Runtime's CPU computes FP16 in FP32, and rounds a tensor where anything but such an operator reads it, as a
    # Cast does: that would change the other answers. A Sum of one tensor is such an operator.
    model.graph.node.append(helper.make_node("Sum", [tensor], [same], same))
    model.graph.node.append(helper.make_node("Cast", [same], [EMBEDDINGS], EMBEDDINGS, to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, None))
    return model


def _features(graph: onnx.GraphProto, name: str) -> str:
    """Return the name of the tensor that enters the last Dense layer, before it is rounded for it."""
    producers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    constants = set(weights)
    for node in graph.node:  # in topological order
        if all(source in constants for source in node.input if source):
            constants |= set(node.output)
    dense: dict[str, NodeProto] = {}  # by its output
    seen: set[str] = set()
    tensors = [OUTPUTS[0]]
    while tensors:
        tensor = tensors.pop()
        if tensor in constants or tensor in seen:
            continue
        seen.add(tensor)
        producer = producers.get(tensor)
        if producer is not None and producer.op_type in _DENSE and set(producer.input[1:]) <= constants:
            if _takes_one_value(producer, producers, weights):  # it makes two classes of a single unit
                tensors.append(producer.input[0])
            else:
                dense[tensor] = producer
        elif producer is not None and producer.op_type in _AFTER_DENSE:
            tensors += [source for source in producer.input if source]
        else:
            what = "the input" if producer is None else f"{producer.op_type} {producer.name}"
            raise RunnerError(
                f"Expected a Dense layer that gives the logits. Received: {what} before it in {name}. "
                "--embeddings needs a model that ends in a Dense layer."
            )
    if len(dense) != 1:
        raise RunnerError(
            f"Expected one Dense layer that gives the logits. Received: {len(dense)} in {name}. "
            "--embeddings needs a model that ends in one Dense layer."
        )
    (last,) = dense.values()
    features = last.input[0]
    while (producer := producers.get(features)) is not None and producer.op_type in _ROUNDING:
        features = producer.input[0]
    return str(features)


def _takes_one_value(dense: NodeProto, producers: dict[str, NodeProto], weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Dense layer has a single input, according to its weights."""
    weight = dense.input[1]
    while weight not in weights and (producer := producers.get(weight)) is not None and producer.input:
        weight = producer.input[0]
    if weight not in weights:
        return False
    transposed = any(attribute.name == "transB" and attribute.i for attribute in dense.attribute)
    return int(weights[weight].dims[-1 if transposed else 0]) == 1
