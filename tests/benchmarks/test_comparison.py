"""The ratio of two times: its interval keeps its promise on a machine that drifts, and says nothing from too little."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from scipy import stats

from benchmarks.contests import Ratio, compare, t_quantile
from benchmarks.timing import Measurement, in_turns, measure


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_quantiles_are_those_of_another_implementation(level: float) -> None:
    for freedom in [*range(1, 40), 119, 1000]:
        expected = stats.t.ppf((1 + level) / 2, freedom)
        assert t_quantile(freedom, level) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("freedom", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (19, 2.093), (29, 2.045), (120, 1.980)]
)
def test_quantiles_are_those_of_printed_tables(freedom: int, printed: float) -> None:
    assert round(t_quantile(freedom), 3) == printed


@pytest.mark.parametrize(("freedom", "level"), [(0, 0.95), (5, 0.0), (5, 1.0)])
def test_senseless_quantiles_are_refused(freedom: int, level: float) -> None:
    with pytest.raises(ValueError, match="freedom >= 1"):
        t_quantile(freedom, level)


def of(*turns: list[float]) -> Measurement:
    return Measurement.of_turns(turns)


def test_the_interval_is_that_of_the_logarithms_of_the_rounds_medians() -> None:
    first = [[10.0, 99.0, 10.0], [11.0], [10.5, 10.5], [9.5], [10.0], [10.2]]
    second = [[20.0], [23.0], [20.5], [19.5], [21.0], [20.0]]
    logs = [math.log(two[0] / np.median(one)) for one, two in zip(first, second)]
    low, high = stats.t.interval(0.95, 5, np.mean(logs), stats.sem(logs))
    found = compare(of(*first), of(*second))
    assert found.rounds == 6
    assert found.ratio == pytest.approx(math.exp(np.mean(logs)))
    assert found.interval == pytest.approx((math.exp(low), math.exp(high)))


def test_the_other_way_round_it_is_the_inverse() -> None:
    first, second = of(*([1.0 + 0.1 * n] for n in range(6))), of(*([2.0 - 0.1 * n] for n in range(6)))
    there, back = compare(first, second), compare(second, first)
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.interval == pytest.approx((1 / back.interval[1], 1 / back.interval[0]))


def test_too_few_rounds_give_no_interval() -> None:
    turns = [[10.0], [10.1], [10.2], [10.3], [10.4]]
    assert compare(of(*turns), of(*turns)).interval is not None
    assert compare(of(*turns), of(*turns[:4])) == Ratio(4, 1.0, None)
    assert compare(of(*turns), of()) == Ratio(0)


def test_a_clock_too_coarse_counts_for_no_round() -> None:
    found = compare(of(*[[0.0, 0.0, 1.0]] * 3, *[[2.0]] * 5), of(*[[4.0]] * 8))
    assert (found.rounds, found.ratio) == (5, pytest.approx(2.0))
    assert compare(of([0.0]), of([0.0])) == Ratio(0)


def drifting(random: np.random.Generator, ratio: float, rounds: int = 20) -> tuple[Measurement, Measurement]:
    """Two candidates in turns A B, B A on a machine whose state moves from turn to turn, with spikes."""
    state, turns = 0.0, ([], [])
    for number in range(rounds):
        for who in (0, 1) if number % 2 == 0 else (1, 0):
            state = 0.9 * state + random.normal(0, 0.022)
            values = np.exp(state + random.normal(0, 0.01) + random.normal(0, 0.02, 12)) * (ratio if who else 1)
            turns[who].append(list(values * np.where(random.random(12) < 0.01, 1.5, 1.0)))
    return of(*turns[0]), of(*turns[1])


def decided(random: np.random.Generator, ratio: float, tries: int) -> float:
    intervals = [compare(*drifting(random, ratio)).interval for _ in range(tries)]
    return float(np.mean([not low <= 1 <= high for low, high in intervals]))


def test_equal_speeds_are_told_apart_one_time_in_twenty() -> None:
    """By the samples, as if they were independent, it is several times as often (see the module's first words)."""
    random = np.random.default_rng(3)
    assert 0.02 <= decided(random, 1.0, 400) <= 0.085
    assert decided(random, 1.05, 50) > 0.95
    pooled = [stats.mannwhitneyu(*(one.samples_ms for one in drifting(random, 1.0))).pvalue < 0.05 for _ in range(150)]
    assert np.mean(pooled) > 0.1


def test_turns_of_one_number_were_taken_in_one_round() -> None:
    """Of what is measured for real: a machine that gets slower while both are timed changes their ratio nothing."""
    now = 0.0

    def call(cost: float) -> object:
        def run() -> None:
            nonlocal now
            now += cost * 1e6 * (1 + now / 1e8)

        return run

    samples = measure(
        {"a": call(1.0), "b": call(1.5)},  # type: ignore[dict-item]
        seconds_each=0.1,
        warmup_seconds=0.0,
        clock=lambda: round(now),
    )
    assert [sum(one.turns) for one in samples.values()] == [len(one.samples_ms) for one in samples.values()]
    assert samples["a"].turns[0] > 1
    assert samples["a"].samples_ms[-1] > 1.5 * samples["a"].samples_ms[0]
    found = compare(samples["a"], samples["b"])
    assert found.rounds >= 10
    assert found.interval[0] < 1.5 < found.interval[1]
    assert found.interval[1] / found.interval[0] < 1.05


def test_samples_and_their_turns_go_together() -> None:
    measurement = Measurement.of_turns([[1.0, 2.0], [3.0], [4.0], []])
    assert measurement == Measurement((1.0, 2.0, 3.0, 4.0), (2, 1, 1))
    assert measurement.by_turn() == [(1.0, 2.0), (3.0,), (4.0,)]
    for turns in ((2,), (2, 2), (3, 0), (-1, 4)):
        with pytest.raises(ValueError, match="add up to 3"):
            Measurement((1.0, 2.0, 3.0), turns)
    alone = in_turns({"a": lambda: [1.0, 2.0], "b": lambda: [3.0]}, turns=3)
    assert (alone["a"].turns, alone["b"].turns) == ((2, 2, 2), (1, 1, 1))


def test_a_measurement_is_not_changed_behind_its_summary() -> None:
    with pytest.raises(FrozenInstanceError):
        of([1.0]).samples_ms = (2.0,)  # type: ignore[misc]
