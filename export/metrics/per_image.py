"""Distances of each image by itself: one image of hundreds can carry a third of all noise. NumPy only, in float64."""

import numpy as np

from export.errors import ProjectError
from export.metrics.difference import clip_masked_classes

# A smaller probability of the candidate counts as this, the least normal float32, since log(0) is infinite.
LEAST = 2.0**-126


def sqnr_by_image(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return 10·log10(Σ reference² / Σ (reference − candidate)²) of each row of two (N, C) arrays of logits.

    Args:
        reference: (N, C), finite.
        candidate: (N, C).

    Returns:
        np.ndarray: float64 (N,), dB; inf where both rows are equal, -inf where the candidate's is not finite, or the
        reference's is all zero and the candidate's is not.

    Raises:
        ProjectError: The shapes differ.
    """
    if reference.shape != candidate.shape or reference.ndim != 2:
        raise ProjectError(
            f"Expected logits of one shape (N, C). Received: {reference.shape} and {candidate.shape} (compare the same "
            "images, the same output)."
        )
    a, b = (clip_masked_classes(np.asarray(logits, np.float64)) for logits in (reference, candidate))
    finite = np.isfinite(b).all(axis=1)
    signal = np.square(a).sum(axis=1)
    noise = np.square(a - np.where(finite[:, None], b, 0.0)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(noise == 0.0, np.inf, 10.0 * np.log10(signal / noise))
    return np.where(finite, values, -np.inf)


def kl_divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the mean over rows of Σ p·ln(p / q), the Kullback-Leibler divergence of q from p, in nats.

    Rows are divided by their sums, as rounding leaves them beside 1. A class of probability 0 in the reference adds
    nothing; one of probability 0 in the candidate alone counts as `LEAST`.

    Args:
        reference: (N, C), p, probabilities.
        candidate: (N, C), q.

    Returns:
        float: At least 0; inf if a row of the candidate is negative somewhere, not finite, or all zero.
    """
    p, q = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if not (np.isfinite(q).all() and (q >= 0).all() and (q.sum(axis=1) > 0).all()):
        return float("inf")
    p, q = p / p.sum(axis=1, keepdims=True), np.maximum(q / q.sum(axis=1, keepdims=True), LEAST)
    ratios = np.log(np.where(p > 0, p, 1.0)) - np.log(q)
    return max(0.0, float((p * ratios).sum(axis=1).mean()))


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Return how far the best class of each row of (N, C) probabilities is ahead of the second, (N,) of their type."""
    ordered = np.partition(probabilities, -2, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])
