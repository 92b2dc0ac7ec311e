import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ProjectError
from export.metrics import confidence as statistics

Z = NormalDist().inv_cdf(0.975)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_solves_its_equation(counts, confidence):
    """The bounds are the shares p for which the observed share is just z standard errors of p away."""
    successes, n = counts
    low, high = statistics.wilson_interval(successes, n, confidence)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6, abs=1e-12)


def test_wilson_published_value():
    low, high = statistics.wilson_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert statistics.wilson_interval(0, 0) == (0, 1)
    assert statistics.wilson_interval(0, 5)[0] == 0
    assert statistics.wilson_interval(5, 5)[1] == 1


@pytest.mark.parametrize(("successes", "n", "confidence"), [(2, 1, 0.95), (-1, 1, 0.95), (1, 1, 1.0)])
def test_wilson_refuses_nonsense(successes, n, confidence):
    with pytest.raises(ProjectError, match="Expected"):
        statistics.wilson_interval(successes, n, confidence)


# --- McNemar ---


@pytest.mark.parametrize(
    ("losses", "gains", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (6, 0, 0.03125),
        (5, 0, 0.0625),
        (1, 7, 0.0703125),  # Bentur et al. in Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014): 0.070
        (4, 4, 1.0),
        (4, 5, 1.0),
    ],
)
def test_mcnemar_values(losses, gains, p):
    assert statistics.mcnemar(losses, gains) == statistics.McNemar(losses, gains, p)
    assert statistics.mcnemar(gains, losses).p_value == p


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_sums_the_binomial_distribution(losses, gains):
    """The p value: how likely a split at least as far from the half as the observed one is."""
    n = losses + gains
    far = [k for k in range(n + 1) if abs(2 * k - n) >= abs(losses - gains)]
    expected = sum(Fraction(math.comb(n, k), 2**n) for k in far)
    assert statistics.mcnemar(losses, gains).p_value == pytest.approx(float(expected), rel=1e-12)


def test_mcnemar_of_many_changes():
    """Beyond the range of a float's exponent; against the normal approximation with its continuity correction."""
    losses, gains = 2100, 2000
    approximation = 2 * NormalDist().cdf(-(losses - gains - 1) / math.sqrt(losses + gains))
    assert statistics.mcnemar(losses, gains).p_value == pytest.approx(approximation, rel=1e-3)


def test_mcnemar_refuses_nonsense():
    with pytest.raises(ProjectError, match="0 or more"):
        statistics.mcnemar(-1, 2)


# --- the accuracy drop ---


@pytest.mark.parametrize(
    ("losses", "gains", "n", "confidence", "published"),
    [
        # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014), table V.
        (1, 7, 21, 0.95, (-0.517, -0.026)),
        # PropCIs 0.3 of R, scoreci.mp(25, 28, 618, 0.90), whose difference is the second count less the first.
        (28, 25, 618, 0.90, (-0.0148, 0.0247)),
    ],
)
def test_published_drop_intervals(losses, gains, n, confidence, published):
    decimals = 3 if abs(published[0]) > 0.1 else 4
    interval = statistics.drop_interval(losses, gains, n, confidence)
    assert tuple(round(end, decimals) for end in interval) == published
    mirrored = statistics.drop_interval(gains, losses, n, confidence)
    assert mirrored == pytest.approx((-interval[1], -interval[0]))


def test_drop_interval_where_nothing_changed_is_the_wilson_interval_of_none():
    """Without a changed answer either end is the share that none of n would still hide."""
    low, high = statistics.drop_interval(0, 0, 360)
    assert high == pytest.approx(statistics.wilson_interval(0, 360)[1], rel=1e-9)
    assert low == pytest.approx(-high)


def test_drop_interval_at_the_ends():
    assert statistics.drop_interval(5, 0, 5)[1] == 1
    assert statistics.drop_interval(0, 5, 5)[0] == -1
    assert statistics.drop_interval(0, 0, 0) == (-1, 1)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_drop_interval_holds_the_drop(counts):
    n, losses, gains = counts
    losses, gains = min(losses, gains), max(0, gains - losses)
    low, high = statistics.drop_interval(losses, gains, n)
    assert -1 <= low <= (losses - gains) / n <= high <= 1


@pytest.mark.parametrize(("losses", "gains", "n"), [(12, 2, 50), (3, 0, 500), (0, 4, 90), (7, 7, 200)])
def test_drop_interval_solves_its_equation(losses, gains, n):
    """At either end the likeliest model of that drop, searched on a grid, puts the observed drop z errors away."""
    grid = np.linspace(0, 1, 2_000_001)
    for drop in statistics.drop_interval(losses, gains, n):
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = [
                count * np.log(share) if count else np.where(share >= 0, 0.0, -np.inf)
                for count, share in ((losses, grid + drop), (gains, grid), (n - losses - gains, 1 - 2 * grid - drop))
            ]
        q = grid[np.nanargmax(np.where((grid + drop >= 0) & (2 * grid + drop <= 1), sum(logs), -np.inf))]
        error = math.sqrt((2 * q + drop - drop * drop) / n)
        assert abs((losses - gains) / n - drop) == pytest.approx(Z * error, rel=1e-4)


@pytest.mark.parametrize(
    ("n", "loss_rate", "gain_rate"),
    [(60, 0.03, 0.01), (240, 0.03, 0.02), (372, 0.01, 0.003), (500, 0.02, 0.01), (1000, 0.02, 0.005)],
)
def test_coverage_of_the_drop_interval(n, loss_rate, gain_rate):
    """Of 20,000 draws 95 % hold the true drop, and at most 4 % lie above it, which would be a false FAIL."""
    counts = np.random.default_rng(11).multinomial(n, [loss_rate, gain_rate, 1 - loss_rate - gain_rate], 20_000)
    held = false_fail = 0
    for (losses, gains, _), times in zip(*np.unique(counts, axis=0, return_counts=True)):
        low, high = statistics.drop_interval(int(losses), int(gains), n)
        held += times * (low <= loss_rate - gain_rate <= high)
        false_fail += times * (low > loss_rate - gain_rate)
    assert 0.94 <= held / 20_000 <= 0.995
    assert false_fail / 20_000 <= 0.04


@pytest.mark.parametrize(
    ("losses", "gains", "n", "confidence"), [(-1, 0, 5, 0.95), (3, 3, 5, 0.95), (0, 0, 5, 0.0), (0, 0, 5, 95)]
)
def test_drop_interval_refuses_nonsense(losses, gains, n, confidence):
    with pytest.raises(ProjectError, match="Expected"):
        statistics.drop_interval(losses, gains, n, confidence)


# --- how many images decide ---


@pytest.mark.parametrize(
    ("share", "limit", "images"),
    [(0.998, 0.999, 3838), (0.94, 0.95, 1825), (0.999, 0.999, None), (0.5, 1.0, 1), (1.0, 0.999, 3838), (1.0, 0.0, 1)],
)
def test_images_to_decide(share, limit, images):
    assert statistics.images_to_decide(share, limit) == images


@given(st.integers(0, 50), st.integers(1, 49))
def test_images_to_decide_is_where_the_wilson_interval_leaves_the_limit(hits, limit):
    """On multiples of 50, where the share can be met: outside from that number on, inside before it."""
    needed = statistics.images_to_decide(hits / 50, limit / 50)
    if hits == limit:
        assert needed is None
        return
    for n in (needed // 50 * 50, needed // 50 * 50 + 50):
        low, high = statistics.wilson_interval(hits * n // 50, n)
        assert (n >= needed) == (not low <= limit / 50 <= high)


@pytest.mark.parametrize(
    ("losses", "gains", "limit", "images"), [(0.002, 0.0, 0.0, 1921), (0.06, 0.0, 0.06, None), (0.07, 0.01, 0.06, None)]
)
def test_images_to_decide_a_drop(losses, gains, limit, images):
    assert statistics.images_to_decide_drop(losses, gains, limit) == images


@given(st.integers(0, 10), st.integers(0, 10), st.integers(-20, 20))
def test_images_to_decide_a_drop_is_where_its_interval_leaves_the_limit(losses, gains, limit):
    needed = statistics.images_to_decide_drop(losses / 40, gains / 40, limit / 40)
    if losses - gains == limit:
        assert needed is None
        return
    for n in (needed // 40 * 40, needed // 40 * 40 + 40):
        low, high = statistics.drop_interval(losses * n // 40, gains * n // 40, n)
        assert (n >= needed) == (not low <= limit / 40 <= high)


def test_images_to_decide_refuses_percent():
    with pytest.raises(ProjectError, match="not percent"):
        statistics.images_to_decide(99.8, 99.9)
    with pytest.raises(ProjectError, match="not percent"):
        statistics.images_to_decide_drop(1.0, 0.5, 0.0)
