"""Confidence intervals of a share, and of the difference of two shares of the same images. Standard library only.

The intervals are score intervals: they contain exactly the values that a score test of the same confidence does not
reject, so an interval and `images_to_decide` never contradict each other.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from export.errors import ProjectError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of a reference and a candidate on the same labelled images.

    Args:
        losses: Number of images that only the reference classifies correctly.
        gains: Number of images that only the candidate classifies correctly.
        p_value: Two-sided p value of the hypothesis that losses and gains are equally likely.
    """

    losses: int
    gains: int
    p_value: float


def mcnemar(losses: int, gains: int) -> McNemar:
    """Return the exact McNemar test: the binomial test of the changed answers against one half.

    Args:
        losses: Number of images that only the reference classifies correctly.
        gains: Number of images that only the candidate classifies correctly.

    Returns:
        The test; its p value is 1 if both counts are 0.

    Raises:
        ProjectError: If a count is negative.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947), with the exact conditional (binomial) distribution in place of its chi-square.
    """
    if losses < 0 or gains < 0:
        raise ProjectError(f"Expected counts of 0 or more. Received: {losses}, {gains} (check the counts).")
    changed, term, tail = losses + gains, 1, 0
    for k in range(min(losses, gains) + 1):
        tail += term  # integers do not overflow
        term = term * (changed - k) // (k + 1)
    return McNemar(losses, gains, min(1.0, 2 * tail / 2**changed))


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    Args:
        successes: Number of successes in `n` trials.
        n: Number of trials; 0 gives (0, 1).
        confidence: Two-sided confidence level. Defaults to 0.95.

    Raises:
        ProjectError: If a count or the confidence is out of its range.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    z = _quantile(confidence)
    if not 0 <= successes <= n:
        raise ProjectError(f"Expected 0 ≤ successes ≤ n. Received: {successes}, {n} (check the counts).")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    scale = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and 1 the interval includes the share exactly, whatever the rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def drop_interval(losses: int, gains: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Tango's score interval of the accuracy drop (losses − gains) / n on paired images.

    Args:
        losses: Number of images that only the reference classifies correctly.
        gains: Number of images that only the candidate classifies correctly.
        n: Number of all images; 0 gives (-1, 1).
        confidence: Two-sided confidence level. Defaults to 0.95.

    Raises:
        ProjectError: If a count or the confidence is out of its range.

    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17 (1998).
    """
    z = _quantile(confidence)
    if losses < 0 or gains < 0 or losses + gains > n:
        raise ProjectError(
            "Expected losses and gains of 0 or more, and no more than n together. "
            f"Received: {losses}, {gains}, {n} (check the counts)."
        )
    if n == 0:
        return -1.0, 1.0
    least = z / math.sqrt(n)
    rates = losses / n, gains / n
    return _limit_of_drop(*rates, -1.0, least), _limit_of_drop(*rates, 1.0, least)


def images_to_decide(share: float, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return the least number of images whose Wilson interval excludes a limit, if the observed share stays the same.

    Args:
        share: The observed share, 0 to 1.
        limit: The limit, 0 to 1.
        confidence: Two-sided confidence level. Defaults to 0.95.

    Returns:
        The number of images; None if the share equals the limit, as no number decides then.

    Raises:
        ProjectError: If a number is out of its range.
    """
    if not (0.0 <= share <= 1.0 and 0.0 <= limit <= 1.0):
        raise ProjectError(f"Expected shares of 0 to 1. Received: {share}, {limit} (shares, not percent).")
    return _least_count(share - limit, limit * (1.0 - limit), confidence)


def images_to_decide_drop(losses: float, gains: float, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return the least number of images whose `drop_interval` excludes a limit, if the observed shares stay the same.

    Args:
        losses: Share of the images that only the reference classifies correctly.
        gains: Share of the images that only the candidate classifies correctly.
        limit: Largest accuracy drop that is allowed, -1 to 1.
        confidence: Two-sided confidence level. Defaults to 0.95.

    Returns:
        The number of images; None if the observed drop equals the limit, as no number decides then.

    Raises:
        ProjectError: If a number is out of its range.
    """
    if min(losses, gains) < 0.0 or losses + gains > 1.0 or not -1.0 <= limit <= 1.0:
        raise ProjectError(
            "Expected shares of 0 or more, no more than 1 together, and a limit of -1 to 1. "
            f"Received: {losses}, {gains}, {limit} (shares, not percent)."
        )
    return _least_count(losses - gains - limit, _drop_variance(losses, gains, limit), confidence)


def _quantile(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ProjectError(f"Expected 0 < confidence < 1. Received: {confidence} (0.95, not 95).")
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def _least_count(distance: float, variance: float, confidence: float) -> int | None:
    """Return the least n with |distance| > z·√(variance / n); None if the distance is 0 up to rounding."""
    if abs(distance) < 1e-12:
        return None
    return math.floor(variance * (_quantile(confidence) / distance) ** 2) + 1


def _drop_variance(losses: float, gains: float, drop: float) -> float:
    """Return the variance of the observed drop for one image, if the true drop is `drop`.

    It is 2q + drop (1 − drop), where q is the most likely share of gains under that drop (Tango 1998).
    """
    b = (2.0 - losses + gains) * drop - losses - gains
    root = math.sqrt(max(0.0, b * b + 8.0 * gains * drop * (1.0 - drop)))
    return max(0.0, (root - b) / 2.0 + drop * (1.0 - drop))


def _limit_of_drop(losses: float, gains: float, end: float, least: float) -> float:
    """Return the drop between the observed drop and `end` (-1 or 1) from which on the score test rejects.

    The score grows from the observed drop to either end, so bisection finds it.
    """
    observed = losses - gains
    inside, outside = observed, end
    for _ in range(60):
        middle = (inside + outside) / 2.0
        if abs(observed - middle) > least * math.sqrt(_drop_variance(losses, gains, middle)):
            outside = middle
        else:
            inside = middle
    return inside
