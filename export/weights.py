"""INT8 weights: one symmetric scale for each output channel."""

from __future__ import annotations

import numpy as np

from export.scales import INT8_MAX, MINIMUM_SCALE


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Returns ``max(|w|) / 127`` of each output channel of a Conv weight, at least 2^-14.

    Args:
        weight: (out, in / groups, height, width).

    Returns:
        float32 (out,).
    """
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(axis=1)
    return np.asarray(np.maximum(largest / INT8_MAX, MINIMUM_SCALE), np.float32)


def fake_quantize_weight(weight: np.ndarray) -> np.ndarray:
    """Returns the weight rounded to INT8 and back, as QuantizeLinear and DequantizeLinear make it.

    Args:
        weight: (out, in / groups, height, width) float32.

    Returns:
        float32, of that shape.
    """
    scale = weight_scales(weight).reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(np.clip(np.rint(weight / scale), -INT8_MAX - 1, INT8_MAX) * scale, np.float32)
