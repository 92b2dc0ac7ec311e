"""INT8 scales: too small for one layer, too coarse, or made from images that were preprocessed otherwise.

What the scales should be follows from the file itself without the rounding of its activations. Which scale is wrong is
shown by repair: with another scale the file has to give the right answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.cut import cut, given, with_outputs
from export.onnx_passes.graph import attribute, constants, copy_model, replace_input, topological_sort
from export.onnx_passes.layer_names import keras_layer
from export.preprocessing import PreprocessingSpec
from export.words import count
from pipeline.artifacts.tensor_changes import TensorChange
from pipeline.verification.explain.fit import NEAR, Explanation, difference_in_words, fit_db
from pipeline.verification.explain.inputs import hypotheses
from pipeline.verification.explain.remedies import AGAIN
from pipeline.verification.explain.twin import NO_CHANGES, QuantizedTensor, quantized_tensors, run, without_rounding

IMAGES = 8  # that ranges are taken from
GAINED = 6.0  # dB that the repair of scales has to bring
NEARLY_ALL = 0.8  # of the dB that the repair of all scales brings, for one to be blamed alone
UNEQUAL = 0.01  # relative difference of two scales that is no rounding
# Octaves, root mean square over the tensors, between the scales of a file and the ranges of its activations: 0.1 to
# 0.4 where the calibration images were like the test images, for all methods of calibration.
SPREAD = 0.6
FAR = 1.25  # largest value over the end of a scale that is no chance of a few images
COARSE = 0.2  # of a scale's range in use, below which the scales of a whole file are far too large
CALIBRATE = f"Calibrate again, with images like those that the model will see. {AGAIN}."


@dataclass(frozen=True, eq=False)
class _Range:
    """An activation on the test images, before it is lowered, and how its pair fits it."""

    pair: QuantizedTensor
    largest: float
    saturated: float  # share of the values
    harm: float  # noise of the pair over the noise of a pair that holds the range, relative to the signal

    @property
    def used(self) -> float:
        """Largest value over the largest that the scale holds."""
        return self.largest / self.pair.largest

    @property
    def scale(self) -> float:
        """A scale that holds the range."""
        return max(self.largest, 1e-12) * self.pair.scale / self.pair.largest

    @property
    def moved(self) -> float:
        """What lowered values have to be raised by for that scale, which begins at its lowest step; 0 for others."""
        return self.pair.offset + self.pair.low * self.scale if self.pair.offset else 0.0


def explain_scales(
    model: ModelProto,
    pixels: np.ndarray,
    expected: np.ndarray,
    received: np.ndarray,
    spec: PreprocessingSpec | None,
    changes: Mapping[str, TensorChange] = NO_CHANGES,
) -> list[Explanation]:
    """Explain logits by scales of activations.

    Args:
        model: The INT8 file, with one input of pixels.
        pixels: Test images.
        expected: Logits of the reference for them.
        received: Those of the file.
        spec: Preprocessing in the file; None if it has none.
        changes: What the file's tensors hold in place of Keras' values. Defaults to none.
    """
    pairs = quantized_tensors(model, changes)
    if not pairs:
        return []
    pixels, expected, received = pixels[:IMAGES], expected[:IMAGES], received[:IMAGES]
    without = fit_db(expected, received)
    if found := _unequal(model, pairs, pixels, expected, without):
        return [found]
    twin = without_rounding(model)
    logits = twin.graph.output[0].name
    values = run(twin, pixels, [logits, *(pair.tensor for pair in pairs)])
    if fit_db(expected, values[logits]) < NEAR["int8"]:
        return []  # the rest of the file is wrong too
    ranges = [_range(pair, values[pair.tensor]) for pair in pairs]
    del values
    repaired = fit_db(expected, _with_scales(model, ranges, pixels))
    if repaired < NEAR["int8"] or repaired < without + GAINED:
        return []
    if spec is not None and (found := _wrong_images(twin, ranges, pixels, spec, without, repaired)):
        return [found]
    worst = max(ranges, key=lambda item: item.harm)
    alone = fit_db(expected, _with_scales(model, [worst], pixels))
    if alone >= NEAR["int8"] and alone - without >= max(GAINED, NEARLY_ALL * (repaired - without)):
        return [_one_scale(worst, without, alone)]
    found = _many_scales(ranges, without, repaired)
    return [found] if found is not None else []


def _range(pair: QuantizedTensor, values: np.ndarray) -> _Range:
    signal = max(float(((values + np.float32(pair.offset)).astype(np.float64) ** 2).mean()), 1e-30)

    def noise(scale: float, moved: float) -> float:
        raised = values + np.float32(moved)
        steps = np.clip(np.rint(raised / np.float32(scale)) + pair.zero, pair.low, pair.high) - pair.zero
        return float(((steps * scale - raised).astype(np.float64) ** 2).mean()) / signal

    found = _Range(pair, pair.reach(values), float(pair.saturated(values).mean()), 0.0)
    return replace(found, harm=noise(pair.scale, 0.0) - noise(found.scale, found.moved))


def _with_scales(model: ModelProto, ranges: Iterable[_Range], pixels: np.ndarray) -> np.ndarray:
    """Return the logits of the file with scales that hold the ranges of some activations."""
    new: dict[str, float] = {}
    items = list(ranges)
    for item in items:
        for name in (item.pair.scale_name, item.pair.back_name):
            new[name] = max(item.scale, new.get(name, 0.0))
    result = with_values(model, new)
    for item in items:
        if item.moved:
            _move(result, item)
    return _logits(topological_sort(result), pixels)


def _move(model: ModelProto, item: _Range) -> None:
    """Raise a lowered activation before its pair and lower it behind it, for a scale other than the file's."""
    pair, table = item.pair, constants(model.graph)
    names = [f"{pair.tensor}/{part}" for part in ("moved", "raised", "back")]
    kind = numpy_helper.to_array(table[pair.back_name]).dtype
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(item.moved, kind), names[0]))
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == pair.tensor:
            node.input[0] = names[1]
    replace_input(model.graph, pair.output, names[2])
    model.graph.node.append(helper.make_node("Add", [pair.tensor, names[0]], [names[1]], names[1]))
    model.graph.node.append(helper.make_node("Sub", [pair.output, names[0]], [names[2]], names[2]))


def with_values(model: ModelProto, values: Mapping[str, float]) -> ModelProto:
    """Return the model with other values of scalar initializers."""
    result = copy_model(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            old = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(old, values[tensor.name]), tensor.name))
    return result


def _logits(model: ModelProto, pixels: np.ndarray) -> np.ndarray:
    return next(iter(run(model, pixels).values()))


def _unequal(
    model: ModelProto, pairs: list[QuantizedTensor], pixels: np.ndarray, expected: np.ndarray, without: float
) -> Explanation | None:
    """Find a pair that does not multiply by the scale that it divides by."""
    wrong = [pair for pair in pairs if abs(pair.back / pair.scale - 1) > UNEQUAL]
    if not wrong:
        return None
    right = fit_db(expected, _logits(with_values(model, {pair.back_name: pair.scale for pair in wrong}), pixels))
    layer = keras_layer(wrong[0].node)
    return Explanation(
        "layer scale",
        f"Behind layer {layer!r} values are divided by one scale and multiplied by another: they come out "
        f"{wrong[0].back / wrong[0].scale:.3g} times as large.",
        f"{wrong[0].node!r} has the scale {wrong[0].scale:.4g}, the DequantizeLinear behind it {wrong[0].back:.4g}. "
        f"With equal scales the logits differ from Keras' by {difference_in_words(right)}, as they are by "
        f"{difference_in_words(without)}.",
        f"{AGAIN}, and see that both nodes of a pair share one scale.",
        layer,
        settles=right >= NEAR["int8"],
    )


def _one_scale(item: _Range, without: float, alone: float) -> Explanation:
    layer = keras_layer(item.pair.node)
    repair = (
        f"With a scale for that range in this one place, the logits differ from Keras' by {difference_in_words(alone)} "
        f"({alone:.1f} dB), as they are by {difference_in_words(without)} ({without:.1f} dB)."
    )
    if item.used > 1:
        return Explanation(
            "saturation",
            f"The INT8 scale behind layer {layer!r} is too small: larger values are cut off (saturation).",
            f"Its values reach {item.largest:.4g}, the scale ends at {item.pair.largest:.4g}; {item.saturated:.2%} of "
            f"the values are cut off. {repair}",
            f"{CALIBRATE} With quantize.method=minmax nothing is cut off.",
            layer,
        )
    return Explanation(
        "layer scale",
        f"The INT8 scale behind layer {layer!r} is too large, so that few of the 255 steps are used.",
        f"Its values reach {item.largest:.4g}, the scale ends at {item.pair.largest:.4g}, so {item.used:.1%} of the "
        f"range is used. {repair}",
        f"{CALIBRATE} With quantize.method=auto single outliers do not set a scale.",
        layer,
    )


def _many_scales(ranges: list[_Range], without: float, repaired: float) -> Explanation | None:
    """Explain scales that do not fit in many places; None where they are not far off."""
    cut_off = [item for item in ranges if item.used > FAR]
    used = float(np.median([item.used for item in ranges]))
    worst = max(ranges, key=lambda item: item.harm)
    repair = (
        f"With scales from {IMAGES} test images, the logits differ from Keras' by {difference_in_words(repaired)} "
        f"({repaired:.1f} dB), as they are by {difference_in_words(without)} ({without:.1f} dB)."
    )
    if cut_off:
        return Explanation(
            "calibration",
            "The INT8 scales do not fit the test images: the calibration images were not like them, too few, or "
            "prepared otherwise.",
            f"{count(len(cut_off), 'scale')} of {len(ranges)} {'ends' if len(cut_off) == 1 else 'end'} far below the "
            f"largest value, most harmful behind {keras_layer(worst.pair.node)!r}, where {worst.saturated:.2%} of the "
            f"values are cut off. {repair}",
            CALIBRATE,
        )
    if used < COARSE:
        return Explanation(
            "calibration",
            "The INT8 scales are far larger than the test images need, so that few of the 255 steps are used: some "
            "values of the calibration images were far larger, or they were prepared otherwise.",
            f"Half of the {len(ranges)} scales are used to {used:.1%} or less. {repair}",
            f"{CALIBRATE} With quantize.method=auto single outliers do not set a scale.",
        )
    return None


def _wrong_images(
    twin: ModelProto,
    ranges: list[_Range],
    pixels: np.ndarray,
    spec: PreprocessingSpec,
    without: float,
    repaired: float,
) -> Explanation | None:
    """Find the preprocessing under which the activations have the ranges that the scales were made for."""
    as_is = _spread(ranges, {item.pair.tensor: item.largest for item in ranges})
    if as_is < SPREAD or spec.grey:
        return None
    start = _first_cast(twin)
    if start is None:
        return None
    names = [item.pair.tensor for item in ranges]
    part = cut(with_outputs(twin, list(dict.fromkeys(names))), [start])
    del part.graph.input[:-1]
    best, fitting = as_is, None
    for hypothesis in hypotheses(spec):
        values = _reaches(part, given(start), raw_pixels(hypothesis.inputs(pixels), spec), ranges)
        if (spread := _spread(ranges, values)) < best:
            best, fitting = spread, hypothesis
    if fitting is None or best > min(SPREAD, as_is / 3):
        return None
    return Explanation(
        "calibration",
        "The INT8 scales were made from images that were preprocessed in another way than the file does it "
        f"({fitting.what}).",
        f"With {fitting.what}, the ranges of the {len(ranges)} activations fit their scales within a factor of "
        f"{2**best:.2f}; with the preprocessing of the card they miss them by {2**as_is:.1f}. With scales from "
        f"{IMAGES} test images, the logits differ from Keras' by {difference_in_words(repaired)} ({repaired:.1f} dB), "
        f"as they are by {difference_in_words(without)} ({without:.1f} dB).",
        f"Calibrate again with the preprocessing of the card, as the quantize stage does. {AGAIN}.",
    )


def _spread(ranges: list[_Range], largest: Mapping[str, float]) -> float:
    """Return the root mean square of the octaves between scales and ranges."""
    octaves = [np.log2(max(largest[item.pair.tensor], 1e-12) / item.pair.largest) for item in ranges]
    return float(np.sqrt(np.mean(np.square(octaves))))


def _first_cast(model: ModelProto) -> str | None:
    """Return the tensor of the pixels as floats; None if the file takes floats."""
    source = model.graph.input[0]
    if source.type.tensor_type.elem_type != TensorProto.UINT8:
        return None
    readers = [node for node in model.graph.node if source.name in node.input]
    casts = [node for node in readers if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT]
    return casts[0].output[0] if len(readers) == len(casts) == 1 else None


def raw_pixels(inputs: np.ndarray, spec: PreprocessingSpec) -> np.ndarray:
    """Return the float pixels (RGB) that a preprocessing turns into these inputs of the network."""
    mean = spec.mean_image.array if spec.mean_image is not None else np.asarray(spec.mean, np.float32)
    pixels = np.empty_like(inputs)
    pixels[..., list(spec.order)] = inputs / np.asarray(spec.scale, np.float32) + mean
    return pixels


def _reaches(model: ModelProto, source: str, pixels: np.ndarray, ranges: list[_Range]) -> dict[str, float]:
    """Return the largest absolute value of each activation, before it is lowered."""
    if model.graph.input[0].name != source:
        raise ProjectError(f"Expected the input {source!r}. Received: {model.graph.input[0].name!r}.")
    values = run(model, pixels, [item.pair.tensor for item in ranges])
    return {item.pair.tensor: item.pair.reach(values[item.pair.tensor]) for item in ranges}
