"""How far two answers are from each other, where one masked class must not hide the others. NumPy only."""

import numpy as np

_DEEPEST = 88.0  # below the largest logit: e^-88 is 0 in float32
_MASK = -1e4  # below the logits of all networks: a constant that excludes a class


def clip_masked_classes(logits: np.ndarray) -> np.ndarray:
    """Return (N, C) logits with masked classes clipped to where their probability is 0, instead of such as -1e9.

    Distances are relative to the largest value, so a class that is excluded by -1e9 would hide the differences of all
    others. Logits without such a class, and those that are not all finite, are not changed.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not np.isfinite(logits).all() or logits.min() > _MASK:
        return logits
    return logits.clip(min=logits.max(axis=1, keepdims=True) - _DEEPEST)


def relative_difference(expected: np.ndarray, received: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    It is infinite if the shapes differ, or if different values are finite on both sides.
    """
    finite = np.isfinite(expected)
    if expected.shape != received.shape or not np.array_equal(finite, np.isfinite(received)):
        return float("inf")
    if not finite.any():
        return 0.0
    before, after = (clip_masked_classes(np.asarray(values, np.float64))[finite] for values in (expected, received))
    return float(np.abs(before - after).max() / max(np.abs(before).max(), 1e-30))
