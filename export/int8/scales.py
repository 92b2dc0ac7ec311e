"""INT8 scales: of activations, from histograms by each calibration method; of weights, one per output channel."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.calibration import Histogram
from export.errors import ProjectError
from export.records import read_record, to_json
from export.words import listed

# The smallest normal FP16: a smaller scale loses bits, and TensorRT refuses a scale of 0 (a dead tensor).
MINIMUM_SCALE = 2.0**-14
INT8_MAX = 127
SCALES_REMEDY = "Run the quantize stage again."
METHODS = ("minmax", "percentile_99.9", "percentile_99.99", "percentile_99.999", "entropy", "mse")
_LEVELS = 128  # INT8 levels of non-negative values
_STEP = 8  # bins between two candidates of entropy and mse
_ROUNDING = 1e-9  # error of a divergence from cumulative sums


@dataclass(frozen=True)
class Scales:
    """The INT8 scale of each quantized activation, the record ``quantize/scales.json``.

    Args:
        scales: Tensor name -> scale, such that ``x ≈ scale * int8``; float32 values, at least 2^-14.
        method: The calibration method, one of `METHODS`.
        images: Number of calibration images.
        key: The inputs of calibration: sha256 of the model and of the images, preprocessing, and settings. Defaults to
            none; scales with another key are stale.
        schema: Version of the file's format.

    Raises:
        ProjectError: If a scale is smaller, or not finite.
    """

    scales: dict[str, float]
    method: str
    images: int
    key: dict[str, object] = field(default_factory=dict)
    schema: int = 1

    def __post_init__(self) -> None:
        for name, value in self.scales.items():
            if not (math.isfinite(value) and value >= MINIMUM_SCALE):
                raise ProjectError(
                    f"Expected scales of at least 2^-14. Received: {value} for {name!r} (calibrate again)."
                )

    @classmethod
    def from_histograms(
        cls, histograms: Mapping[str, Histogram], method: str, *, images: int, key: dict[str, object] | None = None
    ) -> Scales:
        """Return the scales of a method, ``clipping point / 127`` in float32.

        A scale below 2^-14 (a dead tensor has 0) becomes 2^-14; `smallest` returns their tensors.

        Raises:
            ProjectError: If there is no such method.
        """
        scales = {
            name: max(MINIMUM_SCALE, float(np.float32(clipping_point(histogram, method) / INT8_MAX)))
            for name, histogram in histograms.items()
        }
        return cls(scales, method, images, dict(key or {}))

    @property
    def smallest(self) -> list[str]:
        """Return the (nearly) dead tensors, whose scale is `MINIMUM_SCALE`."""
        return [name for name, scale in self.scales.items() if scale == MINIMUM_SCALE]

    def to_json(self) -> str:
        """Return the scales as JSON text; float32 values are kept exactly."""
        return json.dumps(to_json(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path, key: Mapping[str, Any]) -> Scales:
        """Read the scales in a file with the text of `to_json`.

        Args:
            path: The file.
            key: The inputs of calibration, see `Scales`.

        Raises:
            ProjectError: If the file is missing or damaged, or its scales have another key.
        """
        scales = read_record(cls, path, remedy=SCALES_REMEDY, what="calibrated scales")
        if stale := sorted(name for name in {*scales.key, *key} if scales.key.get(name) != key.get(name)):
            raise ProjectError(
                f"Expected scales of this model and these images. Received: scales with another {listed(stale)}. "
                f"{SCALES_REMEDY}"
            )
        return scales


def clipping_point(histogram: Histogram, method: str) -> float:
    """Return the absolute value that is quantized to 127.

    Args:
        histogram: The histogram of one activation.
        method: One of `METHODS`.

    Raises:
        ProjectError: If there is no such method.
    """
    if method == "minmax" or not histogram.counts[1:].any():
        return histogram.limit
    if method.startswith("percentile_") and method in METHODS:
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        return (int(np.searchsorted(share, float(method.partition("_")[2]) / 100)) + 1) * histogram.width
    if method == "mse":
        return _least_squares(histogram)
    if method == "entropy":
        return _least_divergence(histogram)
    raise ProjectError(f"Expected a method of {', '.join(METHODS)}. Received: {method!r}.")


def _least_squares(histogram: Histogram) -> float:
    """Return the clipping point with the smallest mean squared error of rounding and clipping together."""
    used = np.flatnonzero(histogram.counts)
    centres, counts = (used + 0.5) * histogram.width, histogram.counts[used].astype(np.float64)
    points = np.arange(_LEVELS, len(histogram.counts) + 1, _STEP) * histogram.width
    errors = []
    for point in points:
        scale = point / INT8_MAX
        rounded = np.minimum(np.rint(centres / scale), INT8_MAX) * scale
        errors.append(float(counts @ (centres - rounded) ** 2))
    return float(points[int(np.argmin(errors))])


def _least_divergence(histogram: Histogram) -> float:
    """Return the clipping point whose 128 levels lose the least information (Kullback-Leibler divergence).

    The bin at 0 is left out: behind a Relu it holds most values, which are exact, and would dominate the others.

    Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = 0.0
    candidates = np.arange(_LEVELS, len(counts) + 1, _STEP)
    estimates = _estimated_divergences(counts, candidates)
    close = candidates[estimates <= estimates.min() + _ROUNDING] if np.isfinite(estimates).any() else [len(counts)]
    return min(close, key=lambda bins: _divergence(counts, int(bins))) * histogram.width


def _divergence(counts: np.ndarray, bins: int) -> float:
    """Return the divergence of the first `bins` bins in 128 levels from all counts, those above in the last bin."""
    exact = counts[:bins].copy()
    exact[-1] += counts[bins:].sum()
    level = np.arange(bins) * _LEVELS // bins
    filled = counts[:bins] > 0
    mass = np.bincount(level, counts[:bins], _LEVELS)
    shared = np.bincount(level, filled, _LEVELS)
    rounded = np.where(filled, (mass / np.maximum(shared, 1))[level], 0.0)
    used = exact > 0
    p, q = exact[used] / exact.sum(), rounded[used] / rounded.sum()
    return float(np.sum(p * np.log(p / q)))


def _estimated_divergences(counts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return `_divergence` of all candidates up to rounding, from cumulative sums.

    It is infinite if values would be clipped to a bin that has no counts itself.
    """
    filled = counts > 0
    log = np.log(np.where(filled, counts, 1.0))
    below, number, entropy = (np.concatenate([[0.0], np.cumsum(x)]) for x in (counts, filled, counts * log))
    edges = -(np.arange(_LEVELS + 1) * -candidates[:, None] // _LEVELS)  # where each level begins: rounded up
    mass, shared = np.diff(below[edges], axis=1), np.diff(number[edges], axis=1)
    rounded = np.log(np.where(mass > 0, mass, 1.0) / np.maximum(shared, 1.0))  # of each bin of a level
    last, clipped = counts[candidates - 1], below[-1] - below[candidates]
    whole = last + clipped
    exact = entropy[candidates - 1] + whole * np.log(np.where(whole > 0, whole, 1.0))
    infinite = (below[candidates] == 0) | ((last == 0) & (clipped > 0))
    inside = np.where(infinite, 1.0, below[candidates])
    difference = exact - (mass * rounded).sum(axis=1) - clipped * rounded[:, -1]
    return np.where(infinite, np.inf, difference / below[-1] + np.log(inside / below[-1]))


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Return ``max(|w|) / 127`` of each output channel of a Conv weight, at least 2^-14.

    Args:
        weight: (out, in / groups, height, width).

    Returns:
        float32 (out,).
    """
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(axis=1)
    return np.asarray(np.maximum(largest / INT8_MAX, MINIMUM_SCALE), np.float32)


def fake_quantize_weight(weight: np.ndarray) -> np.ndarray:
    """Return the weight rounded to INT8 and back, as by QuantizeLinear and DequantizeLinear.

    Args:
        weight: (out, in / groups, height, width) float32.

    Returns:
        float32, of that shape.
    """
    scale = weight_scales(weight).reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(np.clip(np.rint(weight / scale), -INT8_MAX - 1, INT8_MAX) * scale, np.float32)
