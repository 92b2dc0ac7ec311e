"""The best classes that a graph itself picks (`export.top_k`): are they those of its probabilities?"""

from __future__ import annotations

import numpy as np

from pipeline.runners.base import Top, top_of

# TensorRT 8.6 may compute a TopK in FP16, whatever the file says: a rounding of 2^-11, and of 2^-25 near zero.
RELATIVE, ABSOLUTE = 1e-3, 1e-7


def wrong_images(top: Top, probabilities: np.ndarray) -> np.ndarray:
    """Returns which images got other best classes, or other probabilities of them, than all probabilities say.

    Equal probabilities may stand in any order, as TensorRT promises none.

    Args:
        top: As the graph gave it, k classes of each image.
        probabilities: As the same file gave them for the same images, float32 (N, C).

    Returns:
        Bool, (N,).
    """
    if top.classes.shape != top.probabilities.shape or len(top.classes) != len(probabilities):
        return np.ones(len(probabilities), bool)
    known = (top.classes >= 0) & (top.classes < probabilities.shape[1])
    classes = np.where(known, top.classes, 0)
    own = np.take_along_axis(probabilities, classes, axis=1)
    best = top_of(probabilities, classes.shape[1]).probabilities
    repeated = (np.diff(np.sort(classes, axis=1), axis=1) == 0).any(axis=1)
    return np.asarray(repeated | ~(known & _alike(own, best) & _alike(top.probabilities, own)).all(axis=1))


def _alike(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.asarray(np.isclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE))
