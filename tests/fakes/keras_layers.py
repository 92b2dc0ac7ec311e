"""Stands in for Keras' layers: outputs that an ONNX graph computes, in Keras' layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from export.onnx_passes.cut import with_outputs
from export.ort_session import open_session
from pipeline.verification.layers.keras_layers import INPUT, KerasLayer

# Of tests.tiny_onnx.classifier with one more convolution: layer -> its class, its inputs, its tensor, channels first.
TINY = {
    INPUT: ("Input", (), "cast", False),
    "conv": ("Conv2D", (INPUT,), "conv", True),
    "relu": ("ReLU", ("conv",), "relu", True),
    "dropout": ("Dropout", ("relu",), "relu", True),
    "conv1": ("Conv2D", ("dropout",), "conv1", True),
    "relu1": ("ReLU", ("conv1",), "relu1", True),
    "pool": ("GlobalAveragePooling2D", ("relu1",), "flat", False),
    "dense": ("Dense", ("pool",), "logits", False),
}


class FakeKerasLayers:
    """Layers whose outputs are tensors of an ONNX graph.

    Args:
        model: The graph.
        layers: For each layer its class, its inputs, its tensor and whether that has its channels first.
    """

    def __init__(
        self, model: onnx.ModelProto, layers: Mapping[str, tuple[str, tuple[str, ...], str, bool]] = TINY
    ) -> None:
        self._tensors = {name: (tensor, first) for name, (_, _, tensor, first) in layers.items()}
        self._source = model.graph.input[0].name
        self._names = list(dict.fromkeys(tensor for tensor, _ in self._tensors.values()))
        self._session = open_session(with_outputs(model, self._names), exact=True)
        size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
        shapes = {name: value.shape[1:] for name, value in self.outputs(np.zeros((1, *size), np.uint8)).items()}
        self.layers = {
            name: KerasLayer(name, kind, inputs, shapes[name]) for name, (kind, inputs, _, _) in layers.items()
        }
        self.bytes_per_image = 4 * sum(int(np.prod(shape)) for shape in shapes.values())

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        values = dict(zip(self._names, self._session.run(self._names, {self._source: pixels})))
        return {
            name: np.ascontiguousarray(np.moveaxis(values[tensor], 1, -1) if first else values[tensor])
            for name, (tensor, first) in self._tensors.items()
        }
