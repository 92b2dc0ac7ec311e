"""The first layer of a file that is wrong on its own, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from export.preprocessing import PreprocessingSpec
from export.tensorrt.sidecar import Precision
from export.words import listed
from pipeline.artifacts.layer_report import LayerRow, LayerRun
from pipeline.artifacts.tensor_changes import TensorChange
from pipeline.verification.explain.affine import explain_factors
from pipeline.verification.explain.attributes import explain_attributes, only_at_border
from pipeline.verification.explain.fit import Explanation, difference_in_words, evidence_of, explains, fit_db
from pipeline.verification.explain.inputs import BY_CARD, hypotheses
from pipeline.verification.explain.part import AGREES, Part, make_part, narrowed
from pipeline.verification.explain.quantized import CALIBRATE, FAR
from pipeline.verification.explain.remedies import CUT_OUT
from pipeline.verification.explain.twin import quantized_tensors, without_rounding
from pipeline.verification.explain.twin import run as run_model
from pipeline.verification.explain.weights import explain_weights
from pipeline.verification.explain.wiring import explain_wiring
from pipeline.verification.layers.compare import compare_layers, layer_values
from pipeline.verification.layers.keras_layers import INPUT, KerasLayers
from pipeline.verification.layers.mapping import map_layers
from pipeline.verification.layers.subject import Subject

if TYPE_CHECKING:
    import keras

IMAGES = 2
SATURATED = 1e-3  # share of an input's values
EXPLAINED = 2  # wrong layers that are looked at
_CAUSES = (explain_attributes, explain_wiring, explain_factors, explain_weights)


def explain_layers(
    run: str,
    precision: Precision,
    model: ModelProto,
    network: keras.Model,
    spec: PreprocessingSpec,
    pixels: np.ndarray,
    changes: Mapping[str, TensorChange],
    source: ModelProto | None,
) -> list[Explanation]:
    """Explain a file by its first layers whose own error is too large.

    Args:
        run: Name of the run.
        precision: Of the file.
        model: The file, with one input of pixels.
        network: Keras' model, with logits as its output.
        spec: Preprocessing that the card says.
        pixels: Test images.
        changes: Of the file's tensors, see `Subject`.
        source: FP32 file that this one was made from; None if it was made from none.
    """
    layers = KerasLayers(network, spec)
    subject = Subject(run, precision, model, changes)
    pixels = np.resize(pixels, (subject.batch, *pixels.shape[1:])) if subject.batch else pixels[:IMAGES]
    earlier = map_layers(layers, Subject(run, "fp32", source), pixels) if source is not None else None
    mapping = map_layers(layers, subject, pixels, earlier)
    compared = compare_layers(layers, mapping, subject, pixels)
    wrong = [row for row in compared.rows if _is_wrong(row, compared)]
    if precision == "int8" and not wrong:  # rounding hides what is wrong: without it, only that of the weights is left
        subject = Subject(run, precision, without_rounding(model), changes)
        compared = replace(compare_layers(layers, mapping, subject, pixels), threshold_db=AGREES[precision])
        wrong = [row for row in compared.rows if _is_wrong(row, compared)]
    outputs = layers.outputs(pixels) if wrong else {}
    found: list[Explanation] = []
    for row in wrong[:EXPLAINED]:
        if row.layer == INPUT:
            # What follows is fed with pixels in Keras' order of the channels, which may not be the file's.
            return [_of_pixels(compared, row, pixels, spec, model)]
        values = layer_values(layers, mapping, subject, row.layer, pixels)
        part = narrowed(make_part(subject, mapping, row.layer, values, network, outputs, layers.layers))
        explanation = _of_layer(part, row, compared)
        if explanation.cause not in [other.cause for other in found]:
            found.append(explanation)
    if found and len(wrong) > 1:
        others = listed((repr(row.layer) for row in wrong[1:]), most=3)
        found[0] = found[0].changed(evidence=f"{found[0].evidence} Wrong on their own are also {others}.")
    known = [explanation for explanation in found if explanation.cause != "unknown"]
    return known or found[:1]


def _is_wrong(row: LayerRow, run: LayerRun) -> bool:
    return not row.own_finite or (row.own_sqnr_db is not None and row.own_sqnr_db < run.threshold_db)


def _of_layer(part: Part, row: LayerRow, run: LayerRun) -> Explanation:
    """Explain a layer that is wrong although it is fed with Keras' values."""
    if not np.isfinite(part.own).all():
        return _unknown(part, row, run).changed(
            cause="not finite",
            text=f"Layer {part.layer.name!r} gives NaN or infinity although its inputs are finite.",
            remedy="Look for a division by zero, a logarithm or a root of negative values, and for weights that are "
            "not finite.",
        )
    if rounding := _of_rounding(part, row, run):
        return rounding
    for explain in _CAUSES:
        if found := explain(part):
            return found
    if only_at_border(part.reference, part.own):
        return _unknown(part, row, run).changed(
            cause="padding",
            text=f"Layer {part.layer.name!r} is right inside the image and wrong at its border, so the border is "
            "padded otherwise than in Keras.",
            remedy="Compare the padding of this layer in both models.",
        )
    return _unknown(part, row, run)


def _of_rounding(part: Part, row: LayerRow, run: LayerRun) -> Explanation | None:
    """Explain a layer that is right where activations are not rounded."""
    if run.precision != "int8" or part.error_db < run.threshold_db + 3:
        return None
    for pair in quantized_tensors(part.rounded, part.changes):
        values = part.inputs.get(pair.tensor)
        if values is None or values.dtype == np.uint8:
            continue
        share, largest = float(pair.saturated(values).mean()), pair.reach(values)
        if share >= SATURATED and largest > FAR * pair.largest:
            source = next((o.name for o in part.mapping.layers if o.tensor == pair.tensor), part.layer.name)
            return Explanation(
                "saturation",
                f"The INT8 scale behind layer {source!r} is too small: larger values are cut off (saturation), and "
                f"{part.layer.name!r} reads what is left.",
                f"Keras' values reach {largest:.4g} there, the scale ends at {pair.largest:.4g}; {share:.2%} of the "
                "values are cut off.",
                f"{CALIBRATE} With quantize.method=minmax nothing is cut off.",
                source,
            )
    return _unknown(part, row, run).changed(
        text=f"Layer {part.layer.name!r} is the first that loses too much by rounding to INT8 itself; its weights and "
        "scales are not at fault.",
        remedy="Let some layers stay in FP16: raise quantize.max_kept, and set quantize.sensitivity=always.",
    )


def _unknown(part: Part, row: LayerRow, run: LayerRun) -> Explanation:
    own = "NaN or infinity" if row.own_sqnr_db is None else f"{row.own_sqnr_db:.1f} dB"
    return Explanation(
        "unknown",
        f"Layer {part.layer.name!r} ({part.layer.kind}; {part.operators}) is the first whose own output is wrong, "
        "though it is fed with Keras' values. No known cause explains it.",
        f"Its own SQNR is {own}, where {run.threshold_db:.0f} dB are usual at least: its output differs from Keras' by "
        f"{difference_in_words(part.error_db)}.",
        f"Compare this layer's settings and weights in both models; {CUT_OUT}.",
        part.layer.name,
        settles=False,
    )


def _of_pixels(
    run: LayerRun, row: LayerRow, pixels: np.ndarray, spec: PreprocessingSpec, model: ModelProto
) -> Explanation:
    """Explain what a file makes of the pixels, before the first layer."""
    received = run_model(model, pixels, [row.tensor])[row.tensor].astype(np.float32)
    without = fit_db(spec.apply(pixels).reshape(received.shape), received)
    for hypothesis in hypotheses(spec):
        fit = fit_db(np.ascontiguousarray(hypothesis.inputs(pixels)).reshape(received.shape), received)
        if explains(run.precision, fit, without):
            evidence = evidence_of(hypothesis.what, fit, without).replace("logits", "inputs")
            return Explanation(hypothesis.cause, hypothesis.text, evidence, BY_CARD)
    return Explanation(
        "preprocessing",
        "The file makes something else of the pixels than the card says, before the first layer.",
        f"{row.tensor!r} holds {received.min():.4g} to {received.max():.4g}, where Keras gets "
        f"{spec.apply(pixels).min():.4g} to {spec.apply(pixels).max():.4g}; they differ by "
        f"{difference_in_words(without)}.",
        BY_CARD,
    )
