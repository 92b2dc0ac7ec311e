"""The weights of a file against those of the FP32 file that it was made from, value by value.

Rounding to nearest moves no value by more than half a step: of INT8 by half the scale that the weight's channel needs,
of FP16 by half a unit in the last place. Second-order rounding moves some by more, so quantize records how far, and the
sha256 of the codes. A record is believed only as far as that rounding can move a value at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from export.int8.report import RoundingReport, WeightRecord
from export.int8.weights import weight_scales
from export.onnx_passes.graph import Index, attribute
from export.onnx_passes.layer_names import keras_layer
from export.words import count
from pipeline.artifacts.tensor_changes import UNCHANGED, TensorChange
from pipeline.verification.checks.rounded import Misfit
from pipeline.verification.explain.constants import Constant, constant_of
from pipeline.verification.explain.fit import fit_db

WEIGHTED = ("Conv", "Gemm", "MatMul")
NEAREST_STEPS = 0.75  # half a step of rounding, and what an FP16 scale moves the largest value
SPARE_STEPS = 0.25  # beyond what quantize recorded, for the same reason
MOST_STEPS = {"nearest": NEAREST_STEPS, "second_order": 16.0}  # that a record may claim
# Of a value, and of one near zero: a unit in the last place, because some values are rounded to their other neighbour
# so that means are kept, and a half of it.
FP16_UNITS = 1.5 * 2.0**-10, 1.5 * 2.0**-24
# At most, of an image: the weights of the first Conv are rounded together, see `export.fp16.weight_rounding`.
COLOURS = 4
FP32_UNITS = 1e-5  # of the largest value of a channel: equalization is computed in FP32
SCALE_ROUNDING = 1e-3  # relative difference between two scales that rounding to FP16 can make


def compare_weights(
    model: ModelProto,
    source: ModelProto,
    changes: Mapping[str, TensorChange],
    rounding: RoundingReport | None,
    inputs: Sequence[int],
) -> tuple[int, list[Misfit]]:
    """Compare inputs of nodes of the same name; return how many there are, and those that are wrong.

    Args:
        model: The file.
        source: The FP32 file.
        changes: What the file's tensors hold in place of Keras' values.
        rounding: How its INT8 weights were rounded; None if that is unknown.
        inputs: Indices of the inputs; that of weights is 1, that of biases 2.
    """
    nodes, index = {node.name: node for node in model.graph.node}, Index.of(model.graph)
    original = Index.of(source.graph)
    records = _by_weight(source, rounding)
    compared = 0
    wrong: list[Misfit] = []
    for node in source.graph.node:
        other = nodes.get(node.name)
        if node.op_type not in WEIGHTED or other is None or other.op_type != node.op_type:
            continue
        for number in inputs:
            before, after = (
                constant_of(input_of(one, number), graph) for one, graph in ((node, original), (other, index))
            )
            if before is None or after is None or before.values.shape != after.values.shape:
                continue
            compared += 1
            expected = equalized(node, before.values, changes)
            found = None
            if records is not None and after.rounded is not None:
                found = _not_recorded(node, expected, after, records.get(node.input[number]))
            wrong += filter(None, [found or _wrong_weight(node, expected, after, _steps(node, number, records))])
    return compared, wrong


def input_of(node: NodeProto, number: int) -> str:
    """Return the name of an input; "" where there is none."""
    return node.input[number] if number < len(node.input) else ""


def _by_weight(source: ModelProto, rounding: RoundingReport | None) -> Mapping[str, WeightRecord] | None:
    """Return the records by name of the weight in the FP32 file, where several convolutions may read it."""
    if rounding is None:
        return None
    nodes = {node.name: node for node in source.graph.node}
    return {nodes[one.node].input[1]: one for one in rounding.weights if one.node in nodes}


def _steps(node: NodeProto, number: int, records: Mapping[str, WeightRecord] | None) -> float:
    record = (records or {}).get(node.input[number])
    return NEAREST_STEPS if record is None else record.most_steps + SPARE_STEPS


def axes(node: NodeProto) -> tuple[int, int]:
    """Return the axes of a weight's output and input channels."""
    return (0, 1) if node.op_type == "Conv" or attribute(node, "transB", 0) else (1, 0)


def equalized(node: NodeProto, weight: np.ndarray, changes: Mapping[str, TensorChange]) -> np.ndarray:
    """Return a weight of the FP32 file with the factors of the activations that its node reads and writes."""
    to, of = axes(node)
    for name, axis, power in ((node.input[0], of, 1.0), (node.output[0], to, -1.0)):
        values = changes.get(name, UNCHANGED).factors
        if weight.ndim >= 2 and len(values) == weight.shape[axis]:
            weight = weight * (values**power).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return weight


def by_output(node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """Return a weight as (outputs, everything else)."""
    moved = np.moveaxis(weight, axes(node)[0] if weight.ndim >= 2 else 0, 0)
    return moved.reshape(len(moved), -1)


def _not_recorded(node: NodeProto, expected: np.ndarray, found: Constant, record: WeightRecord | None) -> Misfit | None:
    """Hold INT8 codes and their scales against the record of quantize."""
    layer = keras_layer(node.name)
    if record is None:
        return Misfit("weights", layer, f"layer {layer!r}: quantize recorded no rounding of its INT8 weights")
    if not 0 <= record.most_steps <= MOST_STEPS[record.method]:
        text = (
            f"layer {layer!r}: quantize recorded that rounding moved a weight by {record.most_steps:.4g} steps, where "
            f"{MOST_STEPS[record.method]:g} are the most that it does"
        )
        return Misfit("weights", layer, text)
    assert found.rounded is not None
    codes = np.clip(found.rounded.codes, -128, 127).astype(np.int8)
    if hashlib.sha256(codes.tobytes()).hexdigest() != record.codes_sha256:
        text = f"layer {layer!r}: the INT8 codes of its weights are not those that quantize recorded"
        return Misfit("weights", layer, text)
    needed = weight_scales(by_output(node, expected).astype(np.float32)).astype(np.float64)
    scales = np.broadcast_to(found.rounded.scales.reshape(-1), needed.shape)
    other = ~(np.abs(scales / needed - 1) <= SCALE_ROUNDING)
    if not other.any():
        return None
    text = (
        f"layer {layer!r}: the scales of its weights are not those that FP32's need in {other.sum():,} of "
        f"{count(len(needed), 'output channel')} ({scales[other][0] / needed[other][0]:.4g} times)"
    )
    return Misfit("weights", layer, text)


def _wrong_weight(node: NodeProto, expected: np.ndarray, received: Constant, steps: float) -> Misfit | None:
    layer = keras_layer(node.name)
    if not received.zero:
        return Misfit(
            "weights", layer, f"layer {layer!r}: zero points of its weights are not 0, which TensorRT refuses"
        )
    rows, values = (by_output(node, array) for array in (expected, received.values))
    if received.kind == "int8":
        allowed = steps * weight_scales(rows.astype(np.float32)).astype(np.float64)[:, None]
    elif received.kind == "fp16":
        few = expected.ndim == 4 and expected.shape[1] <= COLOURS
        size = np.broadcast_to(np.abs(expected).max(axis=1, keepdims=True), expected.shape) if few else np.abs(expected)
        allowed = np.maximum(FP16_UNITS[0] * by_output(node, size), FP16_UNITS[1])
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
