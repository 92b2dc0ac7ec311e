"""Compares the values of tensors with the outputs of layers, in either layout."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from export.onnx_passes.graph import constants, infer_shapes, producers, tensor_shapes

# What these write are the values of another tensor.
_COPIES = (
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout", "DequantizeLinear",
)  # fmt: skip
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_ALIKE = 2.0  # ratio of the spreads of two arrays of which one may be the other


@dataclass(frozen=True)
class Place:
    """A tensor and its layout.

    Args:
        tensor: Its name.
        channels_first: Whether its channels are behind the batch.
    """

    tensor: str
    channels_first: bool

    def of_keras(self, value: np.ndarray) -> np.ndarray:
        """Return Keras' value (N, ..., C) with the axes in the order of the tensor."""
        return np.ascontiguousarray(np.moveaxis(value, -1, 1)) if self.channels_first else value


def find_candidates(model: ModelProto, shapes: Collection[tuple[int, ...]]) -> list[str]:
    """Return the float tensors that may hold a layer's output of one of these shapes, in the order of the nodes.

    Args:
        model: The file's graph.
        shapes: Shapes for one image.
    """
    sizes = {math.prod(shape) for shape in shapes}
    inferred = infer_shapes(model)
    types = {i.name: i.type.tensor_type.elem_type for i in (*inferred.input, *inferred.value_info, *inferred.output)}
    known, made, table = tensor_shapes(model), producers(model.graph), constants(model.graph)

    def may(name: str) -> bool:
        node = made[name]
        same_form = node.op_type != "Reshape" or _form(known.get(node.input[0])) == _form(known.get(name))
        copied = (
            node.op_type in _COPIES
            and same_form
            and (types.get(node.input[0]) in _FLOATS or node.op_type == "DequantizeLinear")
        )
        dims = (known.get(name) or ())[1:]
        inner = [size for size in dims if isinstance(size, int)]
        fits = not dims or len(inner) < len(dims) or math.prod(inner) in sizes
        return types.get(name) in _FLOATS and not copied and fits and not all(i in table for i in node.input)

    return [name for name in made if may(name)]


def _form(shape: Sequence[int | str | None] | None) -> list[int | str | None]:
    """Return the dimensions of an image that are not one: a Reshape that keeps them moves no value to another axis."""
    return [size for size in (shape or ())[1:] if size != 1]


def best_pairs(
    layers: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], threshold_db: float
) -> dict[str, Place]:
    """Return the tensor of each layer that has one; every tensor is of the one layer that it is closest to.

    Args:
        layers: Outputs by name, (N, ..., C) in Keras' layout.
        tensors: Values by name, in the order of the graph: of equal ones the first is taken.
        threshold_db: SQNR that a pair needs.
    """
    spreads = {name: _spread(value) for name, value in layers.items()}
    pairs: list[tuple[float, str, Place]] = []
    for tensor, value in tensors.items():
        spread = _spread(value)
        for name, output in layers.items():
            if output.size == value.size and spread <= _ALIKE * spreads[name] and spreads[name] <= _ALIKE * spread:
                pairs += [
                    (noise_db, name, place)
                    for place, turned in layouts(output, tensor, value)
                    if (noise_db := _sqnr(turned, value)) >= threshold_db
                ]
    found: dict[str, Place] = {}
    taken: set[str] = set()
    for _, name, place in sorted(pairs, key=lambda pair: -pair[0]):
        if name not in found and place.tensor not in taken:
            found[name] = place
            taken.add(place.tensor)
    return found


def cosine_of(output: np.ndarray, tensor: str, value: np.ndarray) -> Iterator[tuple[Place, float]]:
    """Yield the cosine similarity of a tensor with a layer's output for each layout; nothing if the sizes differ."""
    if output.size == value.size:
        flat = np.nan_to_num(value.reshape(-1).astype(np.float64), posinf=0.0, neginf=0.0)
        for place, turned in layouts(output, tensor, value):
            product = np.linalg.norm(flat) * np.linalg.norm(turned)
            yield place, float(flat @ turned.reshape(-1) / product) if product else 0.0


def layouts(output: np.ndarray, tensor: str, value: np.ndarray) -> Iterator[tuple[Place, np.ndarray]]:
    """Yield a layer's output in each layout in which it has the shape of a tensor, but for axes of one."""
    for channels_first in (False, True)[: 2 if output.ndim > 2 else 1]:
        place = Place(tensor, channels_first)
        turned = place.of_keras(output)
        if [n for n in turned.shape[1:] if n != 1] == [n for n in value.shape[1:] if n != 1]:
            yield place, turned


def _spread(value: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))


def _sqnr(reference: np.ndarray, value: np.ndarray) -> float:
    """Return the SQNR of flattened arrays in dB; -inf where one is not finite, inf where they are equal."""
    expected = reference.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        error = float(np.square(value.reshape(-1) - expected, dtype=np.float64).sum())
    signal = float(np.square(expected, dtype=np.float64).sum())
    if not math.isfinite(error) or signal == 0:
        return math.inf if error == 0 else -math.inf
    return math.inf if error == 0 else 10 * math.log10(signal / error)
