"""Batch sizes and waiting time of Triton's dynamic batcher: from the engine's profile and the recipe's benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ProjectError
from export.words import count
from pipeline.artifacts.benchmark_report import BenchmarkReport, BenchmarkRow, read_benchmark
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.manifest import matches_manifest, read_stage
from pipeline.artifacts.paths import BENCHMARK, Artifacts
from pipeline.serving.select_model import MOST_AT_ONCE, Selection

USUAL_BATCH = 8  # preferred where nothing was measured
USUAL_DELAY, SHORTEST_DELAY, LONGEST_DELAY = 500, 100, 5000  # microseconds


@dataclass(frozen=True)
class Number:
    """A number of the configuration, and where it comes from, for the comment above it."""

    value: int
    source: str


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Attributes:
        largest: images in a batch, at most.
        preferred: images in a batch that is sent at once; 1: requests are not put together.
        delay: microseconds that a request waits for others, at most.
    """

    largest: Number
    preferred: Number
    delay: Number


_NO_DELAY = Number(0, "single images are preferred, which wait for no others")


def find_batching(artifacts: Artifacts, choice: Selection, batch_size: int) -> Batching:
    """Return the batch sizes for a file, within its profile.

    The preferred size is the one with the most images a second in the benchmark of these very bytes. A request waits
    for others as long as an image alone takes, so that waiting at most doubles its time.

    Args:
        artifacts: files of the recipe; the benchmark and its manifest are read.
        choice: the file.
        batch_size: the recipe's ``infer.batch_size``.
    """
    largest = _largest(choice, batch_size)
    rows, source = _measured(artifacts, choice)
    usual = choice.profile.opt if choice.profile else min(USUAL_BATCH, largest.value)
    speeds = {row.batch: row.images_per_second for row in rows if row.images_per_second and row.batch <= largest.value}
    if not speeds:
        usual_source = "opt of the engine's profile" if choice.profile else "default"
        preferred = Number(usual, f"{usual_source}: {source}")
        return Batching(largest, preferred, _NO_DELAY if usual == 1 else Number(USUAL_DELAY, f"default: {source}"))
    best = max(speeds, key=lambda batch: speeds[batch] or 0.0)
    preferred = Number(best, f"{count(round(speeds[best] or 0), 'image')}/s, the most {source}")
    if best == 1:
        return Batching(largest, preferred, Number(0, "no batch is faster than single images"))
    alone = next((row.p50_ms for row in rows if row.batch == 1), None)
    if alone is None:
        return Batching(largest, preferred, Number(USUAL_DELAY, "default: a single image was not timed"))
    delay = round(min(max(1000 * alone, SHORTEST_DELAY), LONGEST_DELAY))
    limits = f"{SHORTEST_DELAY} to {LONGEST_DELAY:,} microseconds"
    return Batching(largest, preferred, Number(delay, f"{alone:.3g} ms, which an image alone takes, within {limits}"))


def _largest(choice: Selection, batch_size: int) -> Number:
    if choice.profile is not None:
        return Number(choice.profile.max, "max of the engine's profile, the largest batch that it takes")
    return Number(min(batch_size, MOST_AT_ONCE), f"the recipe's infer.batch_size, at most {MOST_AT_ONCE}")


def _measured(artifacts: Artifacts, choice: Selection) -> tuple[list[BenchmarkRow], str]:
    """Return the rows of the file as it is now, and the machine that timed it; or none, and why."""
    if not artifacts.has(BENCHMARK):
        return [], "there is no benchmark of the recipe"
    manifest = read_stage(artifacts, "benchmark")
    if manifest is None or not matches_manifest(artifacts, BENCHMARK):
        return [], "the benchmark was altered since it ran"
    if manifest.inputs.get(choice.name) != sha256_file(choice.path):
        return [], "the benchmark timed another file than this one"
    try:
        report = read_benchmark(artifacts.path(BENCHMARK))
    except ProjectError:
        return [], "the benchmark cannot be read"
    rows = [
        row
        for row in report.results
        if row.artifact == choice.name and row.backend == choice.backend and row.error is None
    ]
    return (rows, f"in the benchmark on {_machine(report, choice)}") if rows else ([], "the benchmark did not time it")


def _machine(report: BenchmarkReport, choice: Selection) -> str:
    if choice.backend == "onnxruntime" or not report.machine.gpus:
        return str(report.machine.cpu)
    return report.serves.gpu if report.serves else report.machine.gpus[0].name
