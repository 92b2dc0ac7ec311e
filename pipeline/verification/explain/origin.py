"""A file's weights and scales against the FP32 file that it was made from.

Rounding moves no value by more than half a step: of INT8 by half the scale that the weight's channel needs, of FP16 by
half a unit in the last place. So a weight is judged value by value, and no threshold on its noise is needed. A scale of
activations is judged by what quantize recorded, and by the values of the FP32 file on a few images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, load, numpy_helper

from export.errors import ProjectError
from export.int8.scales import SCALES_REMEDY, Scales
from export.int8.weights import weight_scales
from export.onnx_passes.graph import Index, attribute
from export.onnx_passes.layer_names import keras_layer
from export.records import read_record
from export.words import count
from pipeline.artifacts.equalization import read_factors
from pipeline.verification.checks.rounded import Misfit, Origin, Rounded
from pipeline.verification.explain.fit import fit_db
from pipeline.verification.explain.ranges import measure_ranges, misfit_of, noted_of
from pipeline.verification.explain.twin import QuantizedTensor, quantized_tensors

log = logging.getLogger(__name__)

WEIGHTED = ("Conv", "Gemm", "MatMul")
INT8_STEPS = 0.75  # half a step of rounding, and what an FP16 scale moves the largest value
# Of a value, and of one near zero: a unit in the last place, because some values are rounded to their other neighbour
# so that means are kept, and a half of it.
FP16_UNITS = 1.5 * 2.0**-10, 1.5 * 2.0**-24
COLOURS = (
    4  # at most, of an image: the weights of the first Conv are rounded together, see `export.fp16.weight_rounding`
)
FP32_UNITS = 1e-5  # of the largest value of a channel: equalization is computed in FP32
RECORDED = 1e-3  # relative difference of a scale from the record that is rounding to FP16


def compare_with_origin(path: Path, origin: Origin, pixels: np.ndarray) -> Rounded | None:
    """See `pipeline.verification.explain.misfits.find_misfits`; None where the files have no values in common."""
    model, source = load(str(path)), load(str(origin.path))
    factors = read_factors(origin.factors) if origin.factors is not None else {}
    pairs = _pairs(model, source)
    # The correction of INT8 changes biases.
    weights, wrong = _weights(model, source, factors, (1,) if pairs else (1, 2))
    equalized = bool(pairs) and not factors and 2 * len(wrong) > weights  # by a version that did not record how
    if equalized or not (weights or pairs):
        return None
    notes: list[str] = []
    if pairs:
        recorded = _recorded(origin.scales)
        ranges = measure_ranges(source, pairs, factors, pixels)
        for name, pair in pairs.items():
            found = _wrong_pair(pair) or _not_recorded(pair, recorded.get(name)) or misfit_of(ranges[name])
            wrong += filter(None, [found])
            notes += filter(None, [None if found else noted_of(ranges[name])])
    return Rounded(origin.name, weights, len(pairs), tuple(wrong), tuple(notes))


def _weights(
    model: ModelProto, source: ModelProto, factors: Mapping[str, np.ndarray], inputs: Sequence[int]
) -> tuple[int, list[Misfit]]:
    """Compare these inputs of nodes of the same name; return how many there are, and those that are wrong."""
    nodes, index, original = (
        {node.name: node for node in model.graph.node},
        Index.of(model.graph),
        Index.of(source.graph),
    )
    compared = 0
    wrong: list[Misfit] = []
    for node in source.graph.node:
        other = nodes.get(node.name)
        if node.op_type not in WEIGHTED or other is None or other.op_type != node.op_type:
            continue
        for number in inputs:
            before, after = (_constant(_input(one, number), graph) for one, graph in ((node, original), (other, index)))
            if before is None or after is None or before.values.shape != after.values.shape:
                continue
            compared += 1
            wrong += filter(None, [_wrong_weight(node, _equalized(node, before.values, factors), after)])
    return compared, wrong


def _input(node: NodeProto, number: int) -> str:
    return node.input[number] if number < len(node.input) else ""


@dataclass(frozen=True, eq=False)
class _Constant:
    """A weight as the node that reads it gets it.

    Attributes:
        values: float64.
        kind: "fp32", "fp16" or "int8".
        zero: Whether all zero points are 0.
        paired: Whether it is multiplied by the scales that it was divided by.
    """

    values: np.ndarray
    kind: str
    zero: bool = True
    paired: bool = True


def _constant(name: str, index: Index) -> _Constant | None:
    """Return the value of a tensor that is computed of initializers by casts and pairs; None for any other."""
    if (tensor := index.constants.get(name)) is not None:
        values = numpy_helper.to_array(tensor)
        return _Constant(values.astype(np.float64), "fp16" if values.dtype == np.float16 else "fp32")
    node = index.producers.get(name)
    if node is None or node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
        return None
    inner = _constant(node.input[0], index)
    if inner is None:
        return None
    if node.op_type == "Cast":
        half = attribute(node, "to") == TensorProto.FLOAT16
        return replace(inner, values=inner.values.astype(np.float16).astype(np.float64), kind="fp16") if half else inner
    scale, zero = _parameters(node, inner.values.ndim, index)
    if scale is None:
        return None
    whole = bool((zero == 0).all())
    if node.op_type == "QuantizeLinear":
        integers = np.clip(np.rint(inner.values / scale) + zero, -128, 127)
        return _Constant(integers, "int8", whole, True)
    writer = index.producers.get(node.input[0])
    own = _parameters(writer, inner.values.ndim, index)[0] if writer is not None else scale
    paired = own is not None and own.shape == scale.shape and bool((own == scale).all())
    return _Constant((inner.values - zero) * scale, "int8", inner.zero and whole, paired)


def _parameters(node: NodeProto, rank: int, index: Index) -> tuple[np.ndarray | None, np.ndarray]:
    """Return scales and zero points of a QuantizeLinear or its inverse, to be broadcast over its input."""
    shape = [-1 if axis == attribute(node, "axis", 1) % max(rank, 1) else 1 for axis in range(rank)]
    found = [index.constants.get(name) for name in node.input[1:]]
    values = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in found if tensor is not None]
    spread = [value.reshape(shape) if value.size > 1 else value.reshape(()) for value in values]
    return (spread[0] if spread else None), (spread[1] if len(spread) > 1 else np.zeros(()))


def _axes(node: NodeProto) -> tuple[int, int]:
    """Return the axes of a weight's output and input channels."""
    return (0, 1) if node.op_type == "Conv" or attribute(node, "transB", 0) else (1, 0)


def _equalized(node: NodeProto, weight: np.ndarray, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a weight of the FP32 file with the factors of the activations that its node reads and writes."""
    to, of = _axes(node)
    for name, axis, power in ((node.input[0], of, 1.0), (node.output[0], to, -1.0)):
        values = factors.get(name)
        if values is not None and weight.ndim >= 2 and len(values) == weight.shape[axis]:
            weight = weight * (values**power).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return weight


def _wrong_weight(node: NodeProto, expected: np.ndarray, received: _Constant) -> Misfit | None:
    layer = keras_layer(node.name)
    if not received.zero:
        return Misfit(
            "weights", layer, f"layer {layer!r}: zero points of its weights are not 0, which TensorRT refuses"
        )
    axis = _axes(node)[0] if expected.ndim >= 2 else 0
    by_channel = [np.moveaxis(array, axis, 0) for array in (expected, received.values)]
    rows, values = (array.reshape(len(array), -1) for array in by_channel)
    if received.kind == "int8":
        allowed = INT8_STEPS * weight_scales(rows.astype(np.float32)).astype(np.float64)[:, None]
    elif received.kind == "fp16":
        few = expected.ndim == 4 and expected.shape[1] <= COLOURS
        size = np.broadcast_to(np.abs(expected).max(axis=1, keepdims=True), expected.shape) if few else np.abs(expected)
        allowed = np.maximum(FP16_UNITS[0] * np.moveaxis(size, axis, 0).reshape(rows.shape), FP16_UNITS[1])
    else:
        allowed = FP32_UNITS * np.abs(rows).max(axis=1, keepdims=True)
    far = ~(np.abs(values - rows) <= allowed)
    if not far.any():
        return None
    what = "weights" if expected.ndim >= 2 else "biases"
    channels = f"in {far.any(axis=1).sum():,} of {count(len(rows), 'output channel')}, " if expected.ndim >= 2 else ""
    unequal = "" if received.paired else ", which are divided by one scale and multiplied by another,"
    return Misfit(
        "weights",
        layer,
        f"layer {layer!r}: {far.sum():,} of its {far.size:,} {what}{unequal} {'is' if far.sum() == 1 else 'are'} "
        f"farther from those of FP32 than rounding moves them ({channels}SQNR {fit_db(rows, values):.1f} dB)",
    )


def _pairs(model: ModelProto, source: ModelProto) -> dict[str, QuantizedTensor]:
    """Return the pairs of activations that the FP32 file has too, by their tensor there."""
    index, own = Index.of(model.graph), {name for node in source.graph.node for name in node.output}
    found: dict[str, QuantizedTensor] = {}
    for pair in quantized_tensors(model):
        name = pair.tensor
        while name not in own and (node := index.producers.get(name)) is not None and node.op_type == "Cast":
            name = node.input[0]
        if name in own:
            found[name] = pair
    return found


def _recorded(path: Path | None) -> Mapping[str, float]:
    if path is None:
        return {}
    try:
        return read_record(Scales, path, remedy=SCALES_REMEDY, what="calibrated scales").scales
    except ProjectError as error:
        log.warning("%s", error)
        return {}


def _wrong_pair(pair: QuantizedTensor) -> Misfit | None:
    layer = keras_layer(pair.node)
    if pair.zero:
        text = f"layer {layer!r}: the zero point of its scale is {pair.zero}, not 0, which TensorRT refuses"
        return Misfit("layer scale", layer, text)
    if pair.back != pair.scale:
        text = f"layer {layer!r}: its values are divided by {pair.scale:.4g} and multiplied by {pair.back:.4g}"
        return Misfit("layer scale", layer, text)
    return None


def _not_recorded(pair: QuantizedTensor, recorded: float | None) -> Misfit | None:
    if recorded is None or abs(pair.scale / recorded - 1) <= RECORDED:
        return None
    layer = keras_layer(pair.node)
    text = f"layer {layer!r}: its scale is {pair.scale / recorded:.4g} times the one that quantize recorded"
    return Misfit("layer scale", layer, text)
