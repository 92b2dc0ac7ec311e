"""Percentiles that the samples carry, and the outcome that follows from the limits."""

from __future__ import annotations

import random

import pytest

from benchmarks.inference.record import at_most
from benchmarks.server.record import judge_limits, summarize_latency


def test_percentiles_are_of_the_samples() -> None:
    samples = [float(number) for number in range(1, 1002)]
    random.Random(0).shuffle(samples)
    latency = summarize_latency(samples)
    assert (latency.n, latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.max_ms) == (
        *(1001, 501, 901, 951, 991, 1001),
    )


@pytest.mark.parametrize(
    ("number", "carried"),
    [(0, []), (1, []), (2, [50]), (10, [50, 90]), (20, [50, 90, 95]), (99, [50, 90, 95]), (100, [50, 90, 95, 99])],
)
def test_a_percentile_needs_a_sample_above_it(number: int, carried: list[int]) -> None:
    latency = summarize_latency([1.0] * number)
    given = {50: latency.p50_ms, 90: latency.p90_ms, 95: latency.p95_ms, 99: latency.p99_ms}
    assert [percent for percent, value in given.items() if value is not None] == carried
    assert latency.max_ms == (1.0 if number else None)


def test_one_missed_limit_fails_and_one_that_was_not_measured_decides_nothing() -> None:
    met, missed, unknown = at_most("a", "", 0, 0), at_most("b", "", 1, 0), at_most("c", "", None, 0)
    assert judge_limits([met, met]) == "passed"
    assert judge_limits([met, unknown]) == "not decided"
    assert judge_limits([unknown, missed, met]) == "failed"
