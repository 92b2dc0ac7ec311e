"""INT8 scales: of activations, from histograms by each calibration method; of weights, one per output channel."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
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
SHIFT_STEPS = 128  # a shifted activation is lower by this many scales, see `export.int8.shift`
SHIFTED_MAX = SHIFT_STEPS + INT8_MAX  # scales from 0 to its largest value: 255
SCALES_REMEDY = "Run the quantize stage again."
METHODS = (
    *("minmax", "percentile_99.9", "percentile_99.99", "percentile_99.999", "entropy", "mse"),
    *("lp_2.4", "lp_3"),
)
_STEP = 8  # bins between two candidates of entropy, mse and the norms
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
        shifted: The tensors that are lowered by `SHIFT_STEPS` scales before they are quantized, so that 255 levels
            cover [0, 255 * scale]; see `export.int8.shift`. In a file, those that the INT8 graph lowers. Defaults to
            none.
        schema: Version of the file's format.

    Raises:
        ProjectError: If a scale is smaller, or not finite, or a shifted tensor has none.
    """

    scales: dict[str, float]
    method: str
    images: int
    key: dict[str, object] = field(default_factory=dict)
    shifted: tuple[str, ...] = ()
    schema: int = 2

    def __post_init__(self) -> None:
        if unknown := [name for name in self.shifted if name not in self.scales]:
            raise ProjectError(
                f"Expected a scale for each shifted tensor. Received: none for {unknown[:3]} (calibrate again)."
            )
        for name, value in self.scales.items():
            if not (math.isfinite(value) and value >= MINIMUM_SCALE):
                raise ProjectError(
                    f"Expected scales of at least 2^-14. Received: {value} for {name!r} (calibrate again)."
                )

    @classmethod
    def from_histograms(
        cls,
        histograms: Mapping[str, Histogram],
        method: str,
        *,
        images: int,
        key: dict[str, object] | None = None,
        shifted: Collection[str] = (),
    ) -> Scales:
        """Return the scales of a method in float32: the clipping point over 127, of a shifted tensor over 255.

        A scale below 2^-14 (a dead tensor has 0) becomes 2^-14; `smallest` returns their tensors.

        Args:
            histograms: Tensor name -> its histogram.
            method: One of `METHODS`.
            images: Number of calibration images.
            key: See `Scales`.
            shifted: Those of the tensors that are shifted; none of their values is negative. Defaults to none.

        Raises:
            ProjectError: If there is no such method.
        """
        steps = {name: SHIFTED_MAX if name in shifted else INT8_MAX for name in histograms}
        scales = {
            name: max(MINIMUM_SCALE, float(np.float32(clipping_point(histogram, method, steps[name]) / steps[name])))
            for name, histogram in histograms.items()
        }
        return cls(scales, method, images, dict(key or {}), tuple(name for name in histograms if name in shifted))

    def shift(self, tensor: str) -> float:
        """Return what a tensor is lowered by before it is quantized: 128 scales, which is exact in float32, or 0."""
        return self.scales[tensor] * SHIFT_STEPS if tensor in self.shifted else 0.0

    def of_type(self, kind: str) -> Scales:
        """Return the scales rounded to ``"fp16"``, or as they are for ``"fp32"``.

        One beyond FP16's largest stays as it is: only nodes that stay FP32 read its tensor.
        """
        if kind == "fp32":
            return self
        most = float(np.finfo(np.float16).max)
        rounded = {name: float(np.float16(value)) if value <= most else value for name, value in self.scales.items()}
        return replace(self, scales=rounded)

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


def clipping_point(histogram: Histogram, method: str, steps: int = INT8_MAX) -> float:
    """Return the absolute value that is the largest after quantization.

    Args:
        histogram: The histogram of one activation.
        method: One of `METHODS`.
        steps: Scales from 0 to it: 127, or 255 for a shifted tensor. Defaults to 127.

    Raises:
        ProjectError: If there is no such method.
    """
    if method == "minmax" or not histogram.counts[1:].any():
        return histogram.limit
    if method.startswith("percentile_") and method in METHODS:
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        return (int(np.searchsorted(share, float(method.partition("_")[2]) / 100)) + 1) * histogram.width
    if method == "mse":
        return _least_error(histogram, 2.0, steps)
    if method.startswith("lp_") and method in METHODS:
        return _least_error(histogram, float(method.partition("_")[2]), steps)
    if method == "entropy":
        return _least_divergence(histogram, steps + 1)
    raise ProjectError(f"Expected a method of {', '.join(METHODS)}. Received: {method!r}.")


def _least_error(histogram: Histogram, power: float, steps: int) -> float:
    """Return the clipping point with the smallest sum of ``|x - q(x)| ** power``, of rounding and clipping together.

    The larger the power, the less is clipped: 2 is the mean squared error, infinity the largest value.
    """
    used = np.flatnonzero(histogram.counts)
    centres, counts = (used + 0.5) * histogram.width, histogram.counts[used].astype(np.float64)
    points = np.arange(steps + 1, len(histogram.counts) + 1, _STEP) * histogram.width
    least, best = math.inf, histogram.limit
    for point in points[::-1]:
        scale = point / steps
        rounded = np.minimum(np.rint(centres / scale), steps) * scale
        errors = np.abs(centres - rounded) ** power
        error = float(counts @ errors)
        if error <= least:
            least, best = error, float(point)
        clipped = np.searchsorted(centres, point)
        if counts[clipped:] @ errors[clipped:] > least:
            break  # a smaller point clips more
    return best


def _least_divergence(histogram: Histogram, levels: int) -> float:
    """Return the clipping point whose levels lose the least information (Kullback-Leibler divergence).

    The bin at 0 is left out: behind a Relu it holds most values, which are exact, and would dominate the others.

    Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = 0.0
    candidates = np.arange(levels, len(counts) + 1, _STEP)
    estimates = _estimated_divergences(counts, candidates, levels)
    close = candidates[estimates <= estimates.min() + _ROUNDING] if np.isfinite(estimates).any() else [len(counts)]
    return min(close, key=lambda bins: _divergence(counts, int(bins), levels)) * histogram.width


def _divergence(counts: np.ndarray, bins: int, levels: int) -> float:
    """Return the divergence of the first `bins` bins in some levels from all counts, those above in the last bin."""
    exact = counts[:bins].copy()
    exact[-1] += counts[bins:].sum()
    level = np.arange(bins) * levels // bins
    filled = counts[:bins] > 0
    mass = np.bincount(level, counts[:bins], levels)
    shared = np.bincount(level, filled, levels)
    rounded = np.where(filled, (mass / np.maximum(shared, 1))[level], 0.0)
    used = exact > 0
    p, q = exact[used] / exact.sum(), rounded[used] / rounded.sum()
    return float(np.sum(p * np.log(p / q)))


def _estimated_divergences(counts: np.ndarray, candidates: np.ndarray, levels: int) -> np.ndarray:
    """Return `_divergence` of all candidates up to rounding, from cumulative sums.

    It is infinite if values would be clipped to a bin that has no counts itself.
    """
    filled = counts > 0
    log = np.log(np.where(filled, counts, 1.0))
    below, number, entropy = (np.concatenate([[0.0], np.cumsum(x)]) for x in (counts, filled, counts * log))
    edges = -(np.arange(levels + 1) * -candidates[:, None] // levels)  # where each level begins: rounded up
    mass, shared = np.diff(below[edges], axis=1), np.diff(number[edges], axis=1)
    rounded = np.log(np.where(mass > 0, mass, 1.0) / np.maximum(shared, 1.0))  # of each bin of a level
    last, clipped = counts[candidates - 1], below[-1] - below[candidates]
    whole = last + clipped
    exact = entropy[candidates - 1] + whole * np.log(np.where(whole > 0, whole, 1.0))
    infinite = (below[candidates] == 0) | ((last == 0) & (clipped > 0))
    inside = np.where(infinite, 1.0, below[candidates])
    difference = exact - (mass * rounded).sum(axis=1) - clipped * rounded[:, -1]
    return np.where(infinite, np.inf, difference / below[-1] + np.log(inside / below[-1]))
