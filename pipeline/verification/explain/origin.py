"""A file's weights and scales against the FP32 file that it was made from.

Weights are judged value by value, see `pipeline.verification.explain.origin_weights`, so no threshold on their noise is
needed. A scale of activations is judged by what quantize recorded, and by the values of the FP32 file on a few images;
what makes up for lowered activations is in `pipeline.verification.explain.origin_shift`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from onnx import ModelProto, load

from export.errors import ProjectError
from export.int8.report import RoundingReport
from export.int8.scales import SCALES_REMEDY, Scales
from export.onnx_passes.graph import before_casts, producers
from export.onnx_passes.layer_names import keras_layer
from export.records import read_record
from pipeline.artifacts.tensor_changes import TensorChange, read_changes, read_corrections
from pipeline.verification.checks.rounded import Misfit, Origin, Rounded
from pipeline.verification.explain.origin_shift import wrong_offsets
from pipeline.verification.explain.origin_weights import SCALE_ROUNDING, compare_weights
from pipeline.verification.explain.ranges import measure_ranges, misfit_of, noted_of
from pipeline.verification.explain.twin import QuantizedTensor, quantized_tensors

log = logging.getLogger(__name__)

R = TypeVar("R", Scales, RoundingReport)


def compare_with_origin(path: Path, origin: Origin, pixels: np.ndarray) -> Rounded | None:
    """See `pipeline.verification.explain.misfits.find_misfits`; None where the files have no values in common."""
    model, source = load(str(path)), load(str(origin.path))
    changes = read_changes(origin.changes) if origin.changes is not None else {}
    rounding = _read(RoundingReport, origin.rounding, "how INT8 weights were rounded")
    pairs = _pairs(model, source, changes)
    # The correction of INT8 changes biases.
    weights, wrong = compare_weights(model, source, changes, rounding, (1,) if pairs else (1, 2))
    unknown = bool(pairs) and not changes and rounding is None
    if unknown and 2 * len(wrong) > weights:  # equalized by a version that did not record how
        return None
    if not (weights or pairs):
        return None
    notes: list[str] = []
    if pairs:
        scales = _read(Scales, origin.scales, "calibrated scales")
        ranges = measure_ranges(source, pairs, changes, pixels)
        for name, pair in pairs.items():
            found = _wrong_pair(pair) or _not_recorded(pair, name, scales) or misfit_of(ranges[name])
            wrong += filter(None, [found])
            notes += filter(None, [None if found else noted_of(ranges[name])])
        corrections = read_corrections(origin.changes) if origin.changes is not None else None
        known = {misfit.layer for misfit in wrong if misfit.cause == "weights"}  # whose biases are for other weights
        offsets = wrong_offsets(model, source, changes, corrections)
        wrong += [misfit for misfit in offsets if misfit.cause != "weights" or misfit.layer not in known]
    return Rounded(origin.name, weights, len(pairs), tuple(wrong), tuple(notes))


def _pairs(model: ModelProto, source: ModelProto, changes: Mapping[str, TensorChange]) -> dict[str, QuantizedTensor]:
    """Return the pairs of activations that the FP32 file has too, by their tensor there."""
    written, own = producers(model.graph), {name for node in source.graph.node for name in node.output}
    found: dict[str, QuantizedTensor] = {}
    for pair in quantized_tensors(model, changes):
        name = before_casts(pair.tensor, written, own)
        if name in own:
            found[name] = pair
    return found


def _read(kind: type[R], path: Path | None, what: str) -> R | None:
    """Return a record of quantize; None where there is none, or it is damaged."""
    if path is None:
        return None
    try:
        return read_record(kind, path, remedy=SCALES_REMEDY, what=what)
    except ProjectError as error:
        log.warning("%s", error)
        return None


def _wrong_pair(pair: QuantizedTensor) -> Misfit | None:
    layer = keras_layer(pair.node)
    if pair.zero:
        text = f"layer {layer!r}: the zero point of its scale is {pair.zero}, not 0, which TensorRT refuses"
        return Misfit("layer scale", layer, text)
    if pair.back != pair.scale:
        text = f"layer {layer!r}: its values are divided by {pair.scale:.4g} and multiplied by {pair.back:.4g}"
        return Misfit("layer scale", layer, text)
    return None


def _not_recorded(pair: QuantizedTensor, tensor: str, scales: Scales | None) -> Misfit | None:
    if scales is None or tensor not in scales.scales:
        return None
    layer, recorded = keras_layer(pair.node), scales.scales[tensor]
    if abs(pair.scale / recorded - 1) > SCALE_ROUNDING:
        text = f"layer {layer!r}: its scale is {pair.scale / recorded:.4g} times the one that quantize recorded"
        return Misfit("layer scale", layer, text)
    lowered = scales.shift(tensor)
    if abs(pair.offset - lowered) > SCALE_ROUNDING * max(lowered, pair.scale):
        text = (
            f"layer {layer!r}: its values are lowered by {pair.offset:.4g}, and by {lowered:.4g} where quantize "
            "recorded its scale"
        )
        return Misfit("layer scale", layer, text)
    return None
