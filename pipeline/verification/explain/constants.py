"""Weights as the nodes that read them get them: initializers behind casts and pairs, and INT8 codes with scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from export.onnx_passes.graph import Index, attribute


@dataclass(frozen=True, eq=False)
class Codes:
    """The integers of a weight.

    Attributes:
        codes: float64 whole numbers, of the shape of the weight.
        scales: float64 of the DequantizeLinear, to be broadcast over the codes.
    """

    codes: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True, eq=False)
class Constant:
    """A weight as the node that reads it gets it.

    Attributes:
        values: float64.
        kind: "fp32", "fp16" or "int8".
        zero: Whether all zero points are 0.
        paired: Whether it is multiplied by the scales that it was divided by.
        rounded: Its codes; None where it is float.
    """

    values: np.ndarray
    kind: str
    zero: bool = True
    paired: bool = True
    rounded: Codes | None = None


def constant_of(name: str, index: Index) -> Constant | None:
    """Return the value of a tensor that is computed of initializers by casts and pairs; None for any other."""
    if (tensor := index.constants.get(name)) is not None:
        values = numpy_helper.to_array(tensor)
        return Constant(values.astype(np.float64), "fp16" if values.dtype == np.float16 else "fp32")
    node = index.producers.get(name)
    if node is None or node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
        return None
    inner = constant_of(node.input[0], index)
    if inner is None:
        return None
    if node.op_type == "Cast":
        half = attribute(node, "to") == TensorProto.FLOAT16
        return replace(inner, values=inner.values.astype(np.float16).astype(np.float64), kind="fp16") if half else inner
    scale, zero, limits = _parameters(node, inner.values.ndim, index)
    if scale is None:
        return None
    whole = bool((zero == 0).all())
    if node.op_type == "QuantizeLinear":
        integers = np.clip(np.rint(inner.values / scale) + zero, limits.min, limits.max)
        return Constant(integers, "int8", whole, True)
    writer = index.producers.get(node.input[0])
    own = _parameters(writer, inner.values.ndim, index)[0] if writer is not None else scale
    paired = own is not None and own.shape == scale.shape and bool((own == scale).all())
    values = (inner.values - zero) * scale
    return Constant(values, "int8", inner.zero and whole, paired, Codes(inner.values, scale))


def _parameters(node: NodeProto, rank: int, index: Index) -> tuple[np.ndarray | None, np.ndarray, np.iinfo]:
    """Return scales and zero points of a QuantizeLinear or its inverse, to be broadcast, and what its integers hold."""
    shape = [-1 if axis == attribute(node, "axis", 1) % max(rank, 1) else 1 for axis in range(rank)]
    found = [index.constants.get(name) for name in node.input[1:]]
    arrays = [numpy_helper.to_array(tensor) for tensor in found if tensor is not None]
    kind = arrays[1].dtype if len(arrays) > 1 else np.dtype(np.uint8)
    values = [array.astype(np.float64) for array in arrays]
    spread = [value.reshape(shape) if value.size > 1 else value.reshape(()) for value in values]
    limits = np.iinfo(kind if kind.kind in "iu" else np.int8)
    return (spread[0] if spread else None), (spread[1] if len(spread) > 1 else np.zeros(())), limits
