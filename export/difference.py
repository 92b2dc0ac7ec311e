"""How far two answers are from each other, where one masked class must not hide the others."""

from __future__ import annotations

import numpy as np

_DEEPEST = 88.0  # below the largest: e^-88 is 0 in float32
_MASK = -1e4  # no network gives such a logit: it is a constant that rules a class out


def visible(logits: np.ndarray) -> np.ndarray:
    """Returns (N, C) logits in which a masked class stands where its probability is 0, not at -1e9.

    Distances are relative to the largest value, and one class that is ruled out by -1e9 would hide whatever the others
    do. Logits without such a class, and what is not finite, stay as they are.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not np.isfinite(logits).all() or logits.min() > _MASK:
        return logits
    return logits.clip(min=logits.max(axis=1, keepdims=True) - _DEEPEST)


def relative_difference(expected: np.ndarray, received: np.ndarray) -> float:
    """Returns the largest absolute difference over the largest absolute value expected.

    Infinite where the shapes differ, or where not the same values are finite on both sides.
    """
    finite = np.isfinite(expected)
    if expected.shape != received.shape or not np.array_equal(finite, np.isfinite(received)):
        return float("inf")
    if not finite.any():
        return 0.0
    before, after = (visible(np.asarray(values, np.float64))[finite] for values in (expected, received))
    return float(np.abs(before - after).max() / max(np.abs(before).max(), 1e-30))
