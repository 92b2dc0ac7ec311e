"""Weights of a file that are not Keras' weights: cut off, rounded, or another channel's."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.words import count, listed
from pipeline.artifacts.tensor_changes import UNCHANGED
from pipeline.verification.explain.fit import Explanation
from pipeline.verification.explain.part import Part, outputs_in_words, weights_of, with_tensor
from pipeline.verification.explain.remedies import AGAIN

CLOSE = {"fp32": 1e-4, "fp16": 2e-3, "int8": 2e-2}  # of the largest weight: a difference that is rounding
LEAST = 4  # zeros at the end of a weight that are a cut, not values
_EXPORT = f"{AGAIN}, and see that the file was copied as a whole: compare its sha256."


def explain_weights(part: Part) -> Explanation | None:
    """Explain a layer by weights that differ from Keras'."""
    if turned := _channel_order(part):
        return turned
    expected = _keras_weights(part)
    for name, received in weights_of(part).items():
        for values in expected:
            form = _same_form(values, received)
            if form is None:
                continue
            limit = CLOSE[part.precision] * float(np.abs(form).max())
            wrong = np.abs(form - received) > limit
            if not wrong.any():
                break
            fit = part.repaired(with_tensor(part.model, name, form.astype(received.dtype)))
            if part.agrees(fit):
                return _wrong_weights(part, name, form, received, wrong, fit)
    return _rounded(part)


def _channel_order(part: Part) -> Explanation | None:
    """Find weights of the first layer that read red as blue."""
    for name, received in weights_of(part).items():
        if received.ndim != 4 or received.shape[1] != 3:
            continue
        fit = part.repaired(with_tensor(part.model, name, received[:, ::-1]))
        if part.agrees(fit):
            return Explanation(
                "channel order",
                f"Layer {part.weighted_layer!r} reads red as blue and blue as red (RGB and BGR are exchanged).",
                part.repair_in_words("with its weights for red and blue exchanged", fit),
                "Take the channel order from the model's card: export again, or set model.preprocessing in the recipe "
                "to what the model was trained with.",
                part.weighted_layer,
            )
    return None


def _wrong_weights(
    part: Part, name: str, expected: np.ndarray, received: np.ndarray, wrong: np.ndarray, fit: float
) -> Explanation:
    size, number = received.size, int(wrong.sum())
    flat, places = received.ravel(), np.flatnonzero(wrong)
    zeros = int((flat[::-1] != 0).argmax()) if flat.any() else size
    rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    if zeros >= LEAST and number - (flat[places] == 0).sum() == 0 and places[-1] >= size - zeros:
        what = f"is cut off: its last {zeros:,} of {count(size, 'value')} are zero"
    elif (flat[places] == 0).all():
        what = f"has {number:,} of {count(size, 'value')} set to zero"
    elif np.allclose(np.sort(flat), np.sort(expected.ravel()), rtol=1e-3, atol=1e-6):
        what = "holds Keras' values in another order"
    elif len(rows) < len(wrong) and received.ndim > 1:
        what = f"is wrong in {outputs_in_words(len(rows), len(wrong))} ({listed(rows, most=3)})"
    else:
        what = f"differs from Keras' in {number:,} of {count(size, 'value')}"
    return Explanation(
        "weights",
        f"A weight of layer {part.weighted_layer!r} {what}.",
        f"{name!r}: {part.repair_in_words('with the weights of Keras', fit)}",
        _EXPORT,
        part.weighted_layer,
    )


def _rounded(part: Part) -> Explanation | None:
    """Find weights of an FP32 file that are rounded to a shorter type."""
    if part.precision != "fp32":
        return None
    weights = {name: values for name, values in weights_of(part).items() if values.ndim > 1 and values.size >= 64}
    for name, values in weights.items():
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        if len(np.unique(values)) < 16:
            continue
        kinds = {
            "BF16": bool((bits & 0xFFFF == 0).all()),
            "FP16": bool((values.astype(np.float16).astype(np.float32) == values).all()),
        }
        kind = next((kind for kind, holds in kinds.items() if holds), "")
        if kind:
            return Explanation(
                "weights",
                f"The weights of layer {part.weighted_layer!r} were rounded to {kind} although the file is FP32.",
                f"All {count(values.size, 'value')} of {name!r} are numbers of {kind}.",
                _EXPORT,
                part.weighted_layer,
            )
    return None


def _same_form(values: np.ndarray, received: np.ndarray) -> np.ndarray | None:
    """Return values in the shape of a file's weight; None if they do not fit."""
    forms = [values]
    if values.ndim == 2:
        forms.append(values.T)
    if received.ndim == values.ndim == 4 and values.shape[1] == 3:
        forms.append(values[:, ::-1])  # the order of the channels is folded into the first weights
    fitting = [np.ascontiguousarray(form) for form in forms if form.shape == received.shape]
    return min(fitting, key=lambda form: float(np.median(np.abs(form - received))), default=None)


def _keras_weights(part: Part) -> list[np.ndarray]:
    """Return kernels and biases of the layer as a file has them: (out, in, height, width), BatchNorm folded in."""
    layers = part.keras_layers()
    gain: np.ndarray | None = None
    shift: np.ndarray | None = None
    for layer in layers:
        if type(layer).__name__ == "BatchNormalization":
            gain, shift = _affine_of(layer)
    found: list[np.ndarray] = []
    for layer in layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        weight = _of_file(np.asarray(kernel, np.float64), type(layer).__name__)
        bias = getattr(layer, "bias", None)
        offset = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
        if gain is not None and shift is not None and weight.ndim == 4 and len(weight) == len(gain):
            folded = _divided(part, weight * gain.reshape(-1, 1, 1, 1))
            found += [folded, _bias(part, offset * gain + shift, folded)]
        if weight.ndim != 4 or gain is None:
            found += [_divided(part, weight), _bias(part, offset, _divided(part, weight))]
        found.append(weight)
    if gain is not None and shift is not None:
        found += [gain, shift]
    return found


def _affine_of(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and offset of a BatchNorm at inference."""
    variance, mean = (np.asarray(values, np.float64) for values in (norm.moving_variance, norm.moving_mean))
    gamma = np.ones_like(mean) if norm.gamma is None else np.asarray(norm.gamma, np.float64)
    beta = np.zeros_like(mean) if norm.beta is None else np.asarray(norm.beta, np.float64)
    factor = gamma / np.sqrt(variance + float(norm.epsilon))
    return factor, beta - mean * factor


def _of_file(kernel: np.ndarray, kind: str) -> np.ndarray:
    if kernel.ndim == 4 and kind == "DepthwiseConv2D":
        height, width, channels, times = kernel.shape
        return np.asarray(kernel.transpose(2, 3, 0, 1).reshape(channels * times, 1, height, width))
    return np.asarray(kernel.transpose(3, 2, 0, 1)) if kernel.ndim == 4 else kernel


def _output_factors(part: Part, channels: int) -> np.ndarray:
    factors = part.change.factors
    return factors if len(factors) == channels else np.ones(channels)


def _bias(part: Part, bias: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return a layer's bias as its tensors are changed: divided, and raised or lowered where they are lowered.

    Args:
        part: The layer.
        bias: float64 (outputs,), as Keras has it.
        weight: The layer's weight as `_divided` gives it.
    """
    result = bias / _output_factors(part, len(bias))
    offsets = part.change.offsets
    if len(offsets) in (1, len(bias)):
        result = result - offsets
    lowered = [change.offsets for name in part.inputs if (change := part.changes.get(name)) is not None]
    if len(lowered) == 1 and len(lowered[0]) == 1 and weight.ndim in (2, 4):
        own = next((w for w in weights_of(part).values() if w.shape == weight.shape), weight)  # the rounded one
        sums = own.sum(axis=0 if weight.ndim == 2 else (1, 2, 3), dtype=np.float64)
        result = result + lowered[0] * sums if len(sums) == len(bias) else result
    return np.asarray(result)


def _divided(part: Part, weight: np.ndarray) -> np.ndarray:
    """Return a Conv's weight as equalization left it: factors of its output taken off, those of its input put on."""
    if weight.ndim != 4:
        return weight
    result = weight / _output_factors(part, len(weight)).reshape(-1, 1, 1, 1)
    for name in part.inputs:
        factors = part.changes.get(name, UNCHANGED).factors
        if len(factors) == weight.shape[1]:
            result = result * factors.reshape(1, -1, 1, 1)
    return np.asarray(result)
