"""The statistics that are written by hand, because they run without packages, against those of scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from export.metrics.confidence import drop_interval, images_to_decide, mcnemar, wilson_interval

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(COUNTS, st.floats(0.5, 0.999))
def test_wilson_intervals(counts: tuple[int, int], confidence: float) -> None:
    expected = stats.binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert wilson_interval(*counts, confidence) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test_of_one_half(losses: int, gains: int) -> None:
    changed = losses + gains
    expected = stats.binomtest(losses, changed).pvalue if changed else 1.0
    assert mcnemar(losses, gains).p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("share", "limit", "confidence"), [(0.998, 0.999, 0.95), (0.94, 0.95, 0.9), (0.9, 0.8, 0.99)])
def test_as_many_images_decide_as_leave_the_limit_outside_of_the_wilson_interval(
    share: float, limit: float, confidence: float
) -> None:
    z = stats.norm.ppf(0.5 + confidence / 2)
    expected = optimize.brentq(lambda n: abs(share - limit) - z * math.sqrt(limit * (1 - limit) / n), 1, 10**6)
    assert images_to_decide(share, limit, confidence) == math.floor(expected) + 1


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("losses", "gains", "n"), [(12, 2, 50), (3, 1, 500), (1, 7, 21), (7, 7, 200)])
def test_tangos_interval_ends_where_the_score_test_just_rejects(
    losses: int, gains: int, n: int, confidence: float
) -> None:
    """The likeliest share of gains under a drop is searched here, where our code has its formula."""
    observed, z = (losses - gains) / n, stats.norm.ppf(0.5 + confidence / 2)

    def excess(drop: float) -> float:
        def against(q: float) -> float:
            shares = (q + drop, q, 1 - 2 * q - drop)
            return -sum(k * math.log(p) for k, p in zip((losses, gains, n - losses - gains), shares))

        tiny = 1e-12
        bounds = (max(0.0, -drop) + tiny, (1 - drop) / 2 - tiny)
        q = optimize.minimize_scalar(against, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return abs(observed - drop) - z * math.sqrt((2 * q + drop - drop**2) / n)

    expected = [optimize.brentq(excess, observed, end) for end in (-0.95, 0.95)]
    assert drop_interval(losses, gains, n, confidence) == pytest.approx(expected, abs=1e-6)
