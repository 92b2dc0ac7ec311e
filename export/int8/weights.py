"""Weights of convolutions as INT8 codes and a scale for each output channel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from export.int8.scales import INT8_MAX, MINIMUM_SCALE


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A rounded weight: ``weight ≈ codes * scales``.

    The scales stay those that the codes were rounded with. The largest value of a channel may have become smaller, so
    scales that are computed from rounded values again would be others, and round a second time.

    Args:
        codes: int8 (out, in / groups, height, width).
        scales: float32 (out,).
    """

    codes: np.ndarray
    scales: np.ndarray

    @cached_property
    def values(self) -> np.ndarray:
        """The rounded weight, float32 (out, in / groups, height, width)."""
        return np.asarray(self.codes * self._steps, np.float32)

    @property
    def _steps(self) -> np.ndarray:
        return self.scales.reshape(-1, *[1] * (self.codes.ndim - 1))

    def most_steps(self, weight: np.ndarray) -> float:
        """Return the largest distance of a rounded value from a weight's, in scales of its channel."""
        return float((np.abs(self.values.astype(np.float64) - weight) / self._steps).max(initial=0.0))


def weight_scales(weight: np.ndarray, kind: str = "fp32") -> np.ndarray:
    """Return ``max(|w|) / 127`` of each output channel of a Conv weight, at least 2^-14.

    Args:
        weight: (out, in / groups, height, width).
        kind: The type that the file holds scales in: ``"fp32"`` or ``"fp16"``, to which they are rounded. Defaults to
            ``"fp32"``.

    Returns:
        float32 (out,).
    """
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(axis=1)
    scales = np.maximum(largest / INT8_MAX, MINIMUM_SCALE)
    return np.asarray(scales.astype(np.float16 if kind == "fp16" else np.float32), np.float32)


def round_to_nearest(weight: np.ndarray, kind: str = "fp32") -> RoundedWeight:
    """Return each value rounded to the nearest code, with the scales of `weight_scales`.

    Args:
        weight: (out, in / groups, height, width) float32.
        kind: As for `weight_scales`.
    """
    scales = weight_scales(weight, kind)
    ratio = weight / scales.reshape(-1, *[1] * (weight.ndim - 1))
    return RoundedWeight(np.clip(np.rint(ratio), -INT8_MAX, INT8_MAX).astype(np.int8), scales)
