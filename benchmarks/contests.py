"""Determine which of the files that a GPU runs is fastest at each batch size: the ``serves`` of a benchmark.

Two files are compared by the ratio of their times, with a confidence interval. The unit is the round, not the sample:
samples of one turn share the machine's state, and tests that assume independent samples find differences where there
are none (up to one in four at equal speed, for a nominal one in twenty). A t interval on the log ratios of the rounds'
medians keeps its 5 %.
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
    speed_options,
)
from pipeline.artifacts.paths import Artifacts
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.serving.candidates import ON_GPU, default_rank

LEVEL = 0.95  # confidence level of the interval
MIN_ROUNDS = 5  # fewer rounds do not allow an estimate of their spread


def find_serves(artifacts: Artifacts, rows: Sequence[BenchmarkRow], runtime: RuntimeOptions) -> Serves | None:
    """Compare every two rows of a batch size that a GPU ran and that can serve.

    An engine that splits the batch is left out: its time depends on the split, not only on the engine.

    Args:
        artifacts: that were timed.
        rows: of the benchmark.
        runtime: how engines were run.

    Returns:
        Serves | None: None where no GPU ran anything that can be compared.
    """
    timed = [row for row in rows if row.backend in ON_GPU and row.samples_ms is not None]
    devices = driver_status().devices
    if not timed or not 0 <= runtime.device < len(devices):
        return None
    gpu = devices[runtime.device]
    contests = []
    for batch in dict.fromkeys(row.batch for row in timed):
        entries = sorted(
            (
                (contender, row)
                for row in timed
                if row.batch == batch and (contender := _contender(artifacts, row)).runs_at_once(batch)
            ),
            key=lambda entry: (
                *default_rank(entry[0].backend, entry[0].precision, entry[0].batches, batch),
                entry[0].file,
            ),
        )
        if entries:
            pairs = [_pair(first, second) for first, second in combinations(entries, 2)]
            contests.append(make_contest(batch, [contender for contender, _ in entries], pairs))
    return Serves(gpu.name, gpu.compute_capability, speed_options(runtime), tuple(contests))


def _contender(artifacts: Artifacts, row: BenchmarkRow) -> Contender:
    return (
        engine_contender(artifacts, row.artifact)
        if row.backend == "tensorrt"
        else onnx_contender(artifacts, row.artifact, row.precision)
    )


def _pair(first: tuple[Contender, BenchmarkRow], second: tuple[Contender, BenchmarkRow]) -> Pair:
    rounds, ratio, interval = compare(
        *(Measurement(row.samples_ms or (), row.turns or ()) for _, row in (first, second))
    )
    rounded = None if interval is None else (round(interval[0], 6), round(interval[1], 6))
    return Pair(first[0].file, second[0].file, rounds, None if ratio is None else round(ratio, 6), rounded)


class Ratio(NamedTuple):
    """The time of the second over the time of the first: above 1, the first is faster.

    Attributes:
        rounds: number of rounds that were compared.
        ratio: geometric mean over the rounds; None where none could be compared.
        interval: confidence interval of the ratio, at `LEVEL`; None with fewer than `MIN_ROUNDS` rounds.
    """

    rounds: int
    ratio: float | None = None
    interval: tuple[float, float] | None = None


def compare(first: Measurement, second: Measurement) -> Ratio:
    """Compare two candidates of one `benchmarks.timing.measure`.

    Turn i of each belongs to round i. Each round contributes the logarithm of the ratio of the two medians; a round
    whose clock was too coarse (a median of zero) is left out.

    Args:
        first: times of the first.
        second: times of the second.

    Returns:
        Ratio: the second's times over the first's.
    """
    medians = [[float(np.median(turn)) for turn in turns] for turns in zip(first.by_turn(), second.by_turn())]
    logs = np.array([math.log(later / earlier) for earlier, later in medians if earlier > 0 and later > 0])
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
    """Return the two-sided quantile of Student's t distribution.

    Args:
        freedom: degrees of freedom, 1 or more.
        level: the probability, between 0 and 1. Defaults to 0.95.

    Returns:
        float: such as 2.262 for 9 degrees of freedom.

    Raises:
        ValueError: an argument is out of its range.
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
    """Return P(-t <= T <= t), by the finite sums for integer degrees of freedom (Abramowitz and Stegun, 26.7.3-4)."""
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
    """Return a line of text for each batch size where several files can serve."""
    lines = []
    for contest in serves.contests if serves else ():
        others = [contender.file for contender in contest.contenders if contender.file != contest.serves]
        pairs = {file: contest.pair(contest.serves, file) for file in others}
        if pairs:
            words = "; ".join(
                f"{pair.words} as fast as {file}{'' if pair.faster else ', not decided'}"
                for file, pair in pairs.items()
            )
            lines.append(f"  batch {contest.batch}: {contest.serves} serves if it passes: {words}")
    return lines
