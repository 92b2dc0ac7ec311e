"""What of a classifier's logits can be seen in its probabilities."""

from __future__ import annotations

import numpy as np

_DEEPEST = 88.0


def visible(logits: np.ndarray) -> np.ndarray:
    """Returns (N, C) logits, none further below the largest of its row than a softmax in float32 shows (e^-88 is 0).

    Distances are relative to the largest value: one class that is masked with -1e9 would hide whatever the others do.
    What is not finite stays.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not np.isfinite(logits).all():
        return logits
    return np.maximum(logits, logits.max(axis=1, keepdims=True) - _DEEPEST)
