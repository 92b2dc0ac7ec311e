"""How sure a share, and a difference of two shares of the same images, is. Standard library only.

The intervals are score intervals: each holds exactly the values that a score test of the same confidence does not
reject, so an interval and `images_to_decide` never contradict each other.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from export.errors import ProjectError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class McNemar:
    """Answers that changed between a reference and a candidate, each pair on one image, against the labels.

    Args:
        losses: Images that the reference names right and the candidate wrong.
        gains: The reverse.
        p_value: Two-sided p of the exact test that a changed answer is as likely a loss as a gain.
    """

    losses: int
    gains: int
    p_value: float


def mcnemar(losses: int, gains: int) -> McNemar:
    """Return the exact McNemar test: the binomial test of the changed answers against one half.

    The p value is 1 where nothing changed.

    Raises:
        ProjectError: If a count is negative.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947), with the exact conditional (binomial) distribution in place of its chi-square.
    """
    if losses < 0 or gains < 0:
        raise ProjectError(f"Expected counts of 0 or more. Received: {losses}, {gains} (check the counts).")
    changed, term, tail = losses + gains, 1, 0
    for k in range(min(losses, gains) + 1):
        tail += term  # integers, so that no count is too large for them
        term = term * (changed - k) // (k + 1)
    return McNemar(losses, gains, min(1.0, 2 * tail / 2**changed))


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    Args:
        successes: How many of `n`.
        n: How many were tried; 0 gives (0, 1), nothing is known.
        confidence: Two-sided. Defaults to 0.95.

    Raises:
        ProjectError: If the counts or the confidence make no sense.

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
    # At the ends the interval touches 0 or 1 exactly; rounding must not leave the share outside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def drop_interval(losses: int, gains: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Tango's score interval of the accuracy drop (losses − gains) / n of paired answers.

    Args:
        losses: Images that the reference names right and the candidate wrong.
        gains: The reverse.
        n: All images, those with equal answers too; 0 gives (-1, 1), nothing is known.
        confidence: Two-sided. Defaults to 0.95.

    Raises:
        ProjectError: If the counts or the confidence make no sense.

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
    """Return the least number of images whose Wilson interval excludes a limit, if the observed share held.

    Args:
        share: Observed, 0 to 1.
        limit: What is asked, 0 to 1.
        confidence: Two-sided. Defaults to 0.95.

    Returns:
        None where the share is the limit: no number decides.

    Raises:
        ProjectError: If a number is out of its range.
    """
    if not (0.0 <= share <= 1.0 and 0.0 <= limit <= 1.0):
        raise ProjectError(f"Expected shares of 0 to 1. Received: {share}, {limit} (shares, not percent).")
    return _least_count(share - limit, limit * (1.0 - limit), confidence)


def images_to_decide_drop(losses: float, gains: float, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return the least number of images whose `drop_interval` excludes a limit, if the observed rates held.

    Args:
        losses: Share of the images that the reference names right and the candidate wrong.
        gains: Share of the reverse.
        limit: Largest accuracy drop that is allowed, -1 to 1.
        confidence: Two-sided. Defaults to 0.95.

    Returns:
        None where the observed drop is the limit: no number decides.

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
    """Return the least n with |distance| > z·√(variance / n); None for the distance 0, rounding aside."""
    if abs(distance) < 1e-12:
        return None
    return math.floor(variance * (_quantile(confidence) / distance) ** 2) + 1


def _drop_variance(losses: float, gains: float, drop: float) -> float:
    """Return the variance, for one image, of the observed drop where `drop` is the true one.

    It is 2q + drop (1 − drop), q the likeliest share of gains under that drop (Tango 1998).
    """
    b = (2.0 - losses + gains) * drop - losses - gains
    root = math.sqrt(max(0.0, b * b + 8.0 * gains * drop * (1.0 - drop)))
    return max(0.0, (root - b) / 2.0 + drop * (1.0 - drop))


def _limit_of_drop(losses: float, gains: float, end: float, least: float) -> float:
    """Return the drop between the observed one and `end` (-1 or 1) where the score test just rejects.

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
