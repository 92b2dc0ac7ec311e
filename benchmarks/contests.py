"""Which of the files that a GPU runs is fastest at each batch size: the ``serves`` of a benchmark, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from benchmarks.comparison import compare
from benchmarks.timing import Samples
from export.driver import driver_status
from pipeline.benchmark_report import BenchmarkRow
from pipeline.default_order import ON_GPU, fit
from pipeline.measured import Contender, Pair, Serves, engine_contender, make_contest, onnx_contender, runtime_part
from pipeline.runners.options import RuntimeOptions


def find_serves(root: Path, rows: Sequence[BenchmarkRow], runtime: RuntimeOptions) -> Serves | None:
    """Compare every two rows of a batch size that a GPU ran and that can serve.

    An engine that runs the batch in pieces is left out: its time says how it is cut, not which engine is faster.

    Args:
        root: the artifacts that were timed.
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
        every = [(_contender(root, row), row) for row in timed if row.batch == batch]
        found = [one for one in every if one[0].runs_at_once(batch)]
        if not found:
            continue
        found.sort(key=lambda one: (*fit(one[0].backend, one[0].precision, one[0].batches, batch), one[0].file))
        pairs = [_pair(*couple) for couple in combinations(found, 2)]
        contests.append(make_contest(batch, [contender for contender, _ in found], pairs))
    return Serves(gpu.name, gpu.compute_capability, runtime_part(runtime), tuple(contests))


def _contender(root: Path, row: BenchmarkRow) -> Contender:
    if row.backend == "tensorrt":
        return engine_contender(root, root / row.artifact)
    return onnx_contender(root, root / row.artifact, row.precision)


def _pair(one: tuple[Contender, BenchmarkRow], other: tuple[Contender, BenchmarkRow]) -> Pair:
    found = compare(_samples(one[1]), _samples(other[1]))
    ratio = None if found.ratio is None else round(found.ratio, 6)
    interval = None if found.interval is None else (round(found.interval[0], 6), round(found.interval[1], 6))
    return Pair(one[0].file, other[0].file, found.rounds, ratio, interval)


def _samples(row: BenchmarkRow) -> Samples:
    return Samples(row.samples_ms or (), row.turns or ())


def contest_lines(serves: Serves | None) -> list[str]:
    """What a benchmark's table says of it: a line a batch size where several files can serve."""
    lines = []
    for contest in serves.contests if serves else ():
        rivals = []
        for one in contest.contenders:
            if one.file == contest.serves:
                continue
            pair = contest.pair(contest.serves, one.file)
            mark = "" if pair.faster else ", not decided"
            rivals.append(f"{pair.words} as fast as {one.file}{mark}")
        if rivals:
            lines.append(f"  batch {contest.batch}: {contest.serves} serves if it passes: {'; '.join(rivals)}")
    return lines
