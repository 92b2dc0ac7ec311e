"""Causes that show as a factor on a layer's output, or on each of its channels."""

from __future__ import annotations

import numpy as np

from export.words import listed
from pipeline.verification.explain.fit import Explanation, difference_in_words, fit_db
from pipeline.verification.explain.part import Part, outputs_in_words, weights_of
from pipeline.verification.explain.remedies import AGAIN

EQUAL = {"fp32": 2e-3, "fp16": 5e-3, "int8": 0.03}  # relative difference of two factors that is rounding
LIKELY_EPSILON = (1e-8, 1.0)
_SMALLEST = 1e-3  # a channel whose values spread less than this share of the largest says nothing
_GONE = 1e-3  # a channel that is nearly zero has lost its weights
_EXPORT = f"{AGAIN}; if the file is edited after that, look at what changes this layer's weights."


def explain_factors(part: Part) -> Explanation | None:
    """Explain a layer whose output is Keras' times a factor, one or one a channel."""
    reference, own = _channels_last(part, part.reference), _channels_last(part, part.own)
    factor = _factor(reference.ravel(), own.ravel())
    if factor is not None and abs(factor - 1) > EQUAL[part.precision]:
        fit = fit_db(factor * reference, own)
        if part.agrees(fit):
            return _scaled(part, factor, fit)
    fitted, factors, offsets = _fit_channels(reference, own)
    fit = fit_db(own, fitted)
    known = np.isfinite(factors)
    if not part.agrees(fit) or not known.any():
        return None
    close = EQUAL[part.precision]
    median = float(np.median(factors[known]))
    wrong = known & (np.abs(factors - 1) > close)
    if abs(median - 1) > close and (np.abs(factors[known] / median - 1) < close).all():
        return _scaled(part, median, fit)
    if epsilon := _epsilon(part, factors, known):
        return epsilon
    if 0 < wrong.sum() < known.sum() and (np.abs(factors[wrong]) > _GONE).any():
        return Explanation(
            "weights",
            f"In layer {part.weighted_layer!r} {outputs_in_words(int(wrong.sum()), len(factors))} have another scale "
            "than in Keras.",
            f"Channel {listed(np.flatnonzero(wrong), most=3)}: "
            f"{listed((f'{value:.4g}' for value in factors[wrong]), most=3)} times Keras'; the others are equal.",
            _EXPORT,
            part.weighted_layer,
        )
    moved = np.abs(offsets) > 1e-3 * float(np.abs(reference).max())
    if not wrong.any() and moved.any() and weights_of(part):
        return Explanation(
            "weights",
            f"In layer {part.weighted_layer!r} a bias is wrong: {outputs_in_words(int(moved.sum()), len(offsets))} are "
            "moved by a constant.",
            f"With these constants taken off, the output differs from Keras' by {difference_in_words(fit)}, as it is "
            f"by {difference_in_words(part.error_db)}.",
            _EXPORT,
            part.weighted_layer,
        )
    return None


def _scaled(part: Part, factor: float, fit: float) -> Explanation:
    return Explanation(
        "layer scale",
        f"The output of layer {part.weighted_layer!r} is {factor:.4g} times what Keras gives, so a scale or weights "
        "of it are off by that factor.",
        f"Fed with Keras' values, its output differs from Keras' by {difference_in_words(part.error_db)}; divided by "
        f"{factor:.4g}, by {difference_in_words(fit)}.",
        f"{AGAIN}, and look at the scales of this layer." if part.precision == "int8" else _EXPORT,
        part.weighted_layer,
    )  # fmt: skip


def _channels_last(part: Part, values: np.ndarray) -> np.ndarray:
    """Return values as (everything else, channels)."""
    moved = np.moveaxis(values, 1, -1) if part.layer.channels_first and values.ndim > 2 else values
    return np.asarray(moved.reshape(-1, moved.shape[-1]), np.float64)


def _factor(reference: np.ndarray, own: np.ndarray) -> float | None:
    power = float(reference @ reference)
    return float(reference @ own) / power if power else None


def _fit_channels(reference: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return own values as a factor and an offset of each channel of the reference, with both.

    Where one is zero, which a Relu does, values stay those of the reference. The factor of a channel that hardly varies
    is NaN.
    """
    channels = reference.shape[1]
    factors, offsets, fitted = np.full(channels, np.nan), np.zeros(channels), reference.copy()
    largest = float(np.abs(reference).max()) or 1.0
    for channel in range(channels):
        before, after = reference[:, channel], own[:, channel]
        used = (before != 0) & (after != 0) if (before == 0).any() else np.ones(len(before), bool)
        if used.sum() < 3 or float(before[used].std()) < _SMALLEST * largest:
            offsets[channel] = float((after - before).mean())
            fitted[:, channel] = before + offsets[channel]
            continue
        centred = before[used] - before[used].mean()
        factors[channel] = float(centred @ after[used]) / float(centred @ centred)
        offsets[channel] = float(after[used].mean() - factors[channel] * before[used].mean())
        fitted[used, channel] = factors[channel] * before[used] + offsets[channel]
    return fitted, factors, offsets


def _epsilon(part: Part, factors: np.ndarray, known: np.ndarray) -> Explanation | None:
    """Find another epsilon of a BatchNorm that was folded into weights: it divides by sqrt(variance + epsilon)."""
    norms = [layer for layer in part.keras_layers() if type(layer).__name__ == "BatchNormalization"]
    if len(norms) != 1:
        return None
    variance = np.asarray(norms[0].moving_variance, np.float64)
    known = known & (np.abs(np.nan_to_num(factors)) > _GONE)
    if variance.shape != factors.shape or known.sum() < 2:
        return None
    epsilon = float(norms[0].epsilon)
    # factor² = (variance + epsilon) / (variance + other); the smallest variances tell most.
    others = (variance + epsilon) / np.where(known, factors, 1.0) ** 2 - variance
    order = np.argsort(np.where(known, variance, np.inf))[: max(2, int(known.sum()) // 4)]
    other = float(np.median(others[order]))
    if not LIKELY_EPSILON[0] <= other <= LIKELY_EPSILON[1] or abs(other / epsilon - 1) < 1e-2:
        return None
    expected = np.sqrt((variance + epsilon) / (variance + other))
    left = fit_db(factors[known] - 1, expected[known] - 1)
    if left < 20.0:
        return None
    return Explanation(
        "epsilon",
        f"In layer {part.layer.name!r} BatchNorm's epsilon is {other:.3g} instead of {epsilon:.3g}; it is folded into "
        "the weights.",
        f"The channels are {factors[known].min():.4f} to {factors[known].max():.4f} times Keras'. With Keras' "
        f"variances and {other:.3g} they should be so, up to {100 * 10 ** (-left / 20):.2g} %.",
        "Export the model with the epsilon of its BatchNorm layers; a converter may use its own default.",
        part.layer.name,
    )
