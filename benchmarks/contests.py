"""Which of the files that a GPU runs is fastest at each batch size: the ``serves`` of a benchmark, from its rows.

Two files are compared by the ratio of their times, with its interval. The unit is the round, not the sample: samples of
one turn share the machine's state, and tests that take them for independent find differences where there are none (up
to one in four at equal speed, for a nominal one in twenty). A t interval on the log ratios of the rounds' medians keeps
its 5 %.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from benchmarks.timing import Measurement
from export.tensorrt.driver import driver_status
from pipeline.artifacts.benchmark_report import BenchmarkRow
from pipeline.artifacts.fastest import (
    Contender,
    Pair,
    Serves,
    engine_contender,
    make_contest,
    onnx_contender,
    runtime_part,
)
from pipeline.artifacts.paths import Artifacts
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.serving.candidates import ON_GPU, fit

LEVEL = 0.95  # of the interval
MIN_ROUNDS = 5  # fewer say too little about their own spread


def find_serves(artifacts: Artifacts, rows: Sequence[BenchmarkRow], runtime: RuntimeOptions) -> Serves | None:
    """Compare every two rows of a batch size that a GPU ran and that can serve.

    An engine that runs the batch in pieces is left out: its time says how it is cut, not which engine is faster.

    Args:
        artifacts: that were timed.
        rows: of the benchmark.
        runtime: how engines were run.

    Returns:
        Serves | None: None where no GPU ran anything that could be told apart.
    """
    timed = [row for row in rows if row.backend in ON_GPU and row.samples_ms is not None]
    devices = driver_status().devices
    if not timed or not 0 <= runtime.device < len(devices):
        return None
    gpu = devices[runtime.device]
    contests = []
    for batch in dict.fromkeys(row.batch for row in timed):
        every = [(_contender(artifacts, row), row) for row in timed if row.batch == batch]
        found = [one for one in every if one[0].runs_at_once(batch)]
        found.sort(key=lambda one: (*fit(one[0].backend, one[0].precision, one[0].batches, batch), one[0].file))
        pairs = [_pair(*couple) for couple in combinations(found, 2)]
        if found:
            contests.append(make_contest(batch, [contender for contender, _ in found], pairs))
    return Serves(gpu.name, gpu.compute_capability, runtime_part(runtime), tuple(contests))


def _contender(artifacts: Artifacts, row: BenchmarkRow) -> Contender:
    if row.backend == "tensorrt":
        return engine_contender(artifacts, row.artifact)
    return onnx_contender(artifacts, row.artifact, row.precision)


def _pair(one: tuple[Contender, BenchmarkRow], other: tuple[Contender, BenchmarkRow]) -> Pair:
    rounds, ratio, interval = compare(*(Measurement(row.samples_ms or (), row.turns or ()) for _, row in (one, other)))
    rounded = None if interval is None else (round(interval[0], 6), round(interval[1], 6))
    return Pair(one[0].file, other[0].file, rounds, None if ratio is None else round(ratio, 6), rounded)


class Ratio(NamedTuple):
    """How many times as long the second takes as the first: above 1, the first is faster.

    Attributes:
        rounds: that were compared.
        ratio: geometric mean over the rounds; None where none could be compared.
        interval: that the true ratio lies in, at `LEVEL`; None with fewer than `MIN_ROUNDS` rounds.
    """

    rounds: int
    ratio: float | None = None
    interval: tuple[float, float] | None = None


def compare(first: Measurement, second: Measurement) -> Ratio:
    """Compare two candidates of one `benchmarks.timing.measure`.

    Turn i of each was in round i. Of each round the ratio of the two medians counts, as a logarithm; a round whose
    clock was too coarse (a median of zero) is left out.

    Args:
        first: of the one.
        second: of the other.

    Returns:
        Ratio: of the second's times over the first's.
    """
    medians = [
        (float(np.median(one)), float(np.median(other))) for one, other in zip(first.by_turn(), second.by_turn())
    ]
    logs = np.array([math.log(other / one) for one, other in medians if one > 0 and other > 0])
    rounds = len(logs)
    if not rounds:
        return Ratio(0)
    mean = float(logs.mean())
    if rounds < MIN_ROUNDS:
        return Ratio(rounds, math.exp(mean))
    half = t_quantile(rounds - 1) * float(logs.std(ddof=1)) / math.sqrt(rounds)
    return Ratio(rounds, math.exp(mean), (math.exp(mean - half), math.exp(mean + half)))


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Give the t that Student's distribution stays within, on both sides, with a probability.

    Args:
        freedom: degrees of freedom, 1 or more.
        level: the probability, between 0 and 1. Defaults to 0.95.

    Returns:
        float: such as 2.262 for 9 degrees of freedom.

    Raises:
        ValueError: a number outside its range.
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"Expected freedom >= 1 and a level between 0 and 1. Received: {freedom}, {level}.")
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:  # until no number lies between them
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(-t <= T <= t), in the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = sine * cosine if odd else sine
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= (power - 1) / power * cosine**2
        total += term
    return (angle + total) * 2 / math.pi if odd else total


def contest_lines(serves: Serves | None) -> list[str]:
    """What a benchmark's table says of it: a line a batch size where several files can serve."""
    lines = []
    for contest in serves.contests if serves else ():
        others = [one.file for one in contest.contenders if one.file != contest.serves]
        pairs = {file: contest.pair(contest.serves, file) for file in others}
        rivals = [
            f"{pair.words} as fast as {file}{'' if pair.faster else ', not decided'}" for file, pair in pairs.items()
        ]
        if rivals:
            lines.append(f"  batch {contest.batch}: {contest.serves} serves if it passes: {'; '.join(rivals)}")
    return lines
