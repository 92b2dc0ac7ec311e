"""Which tensor of an ONNX file holds the output of which Keras layer."""

from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MappedLayer:
    """A Keras layer and the tensor that holds its output.

    Args:
        name: Name of the layer, see `pipeline.verification.layers.keras_layers`.
        kind: Its class.
        inputs: Names of the mapped layers whose outputs it reads in Keras, through layers without a tensor.
        tensor: Name of the tensor.
        channels_first: Whether the tensor has its channels behind the batch, where Keras has them last.
        shape: Shape of the layer's output for one image, in Keras' layout.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    tensor: str
    channels_first: bool
    shape: tuple[int, ...]

    def in_file(self, value: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Return Keras' value (N, ...) in the layout of the tensor, with the shape of `like`."""
        moved = np.moveaxis(value, -1, 1) if self.channels_first else value
        return np.ascontiguousarray(moved).reshape(len(value), *like.shape[1:])


@dataclass(frozen=True)
class Mapping:
    """The layers of a model and the tensors of a file.

    Args:
        layers: Those that have a tensor, in the order of the model.
        without_tensor: The others by name, each with the reason, such as "folded into conv1_bn".
    """

    layers: tuple[MappedLayer, ...]
    without_tensor: Table[str, str]
