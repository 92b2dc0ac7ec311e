"""The report's section on speed: the benchmark, with CPU times that do not predict engines apart from the others."""

from collections.abc import Sequence

from export.words import count, sentence
from pipeline.artifacts.benchmark_report import PEER, BenchmarkReport, BenchmarkRow
from pipeline.artifacts.manifest import read_result, read_stage
from pipeline.artifacts.parity_report import FAIL, ParityReport, run_name
from pipeline.artifacts.paths import Artifacts
from pipeline.artifacts.results import Inferred
from pipeline.reporting.cards import is_proxy, verdict_on_row
from pipeline.reporting.html import Bar, Cell, Chart, Section, Table, badge, number, section
from pipeline.reporting.validity import other_inputs
from pipeline.serving.candidates import ON_GPU
from pipeline.terminal.command_line import Invocation

HEAD = ("verdict", "what ran", "*batch", "*p50, ms", "*p90, ms", "*p99, ms", "*images/s")
REFERENCE = "reference"  # the row that others are compared with
UNJUDGED = {"keras": REFERENCE, PEER: "peer"}  # backends whose rows have no verdict
REACH = 2.0  # times the longest bar: up to here a p90 stretches the scale


def speed_section(
    benchmark: BenchmarkReport | None, artifacts: Artifacts, invocation: Invocation, parity: ParityReport
) -> Section:
    """Make the section; rows that failed are in the table.

    Args:
        benchmark: None where the benchmark stage has not run.
        artifacts: of a recipe.
        invocation: how the command was called, for the command in the section.
        parity: the verdict.
    """
    if benchmark is None:
        return section("Speed", "not_timed.html.j2", command=invocation.command("benchmark", "python"))
    cpu, gpus = benchmark.machine.cpu, benchmark.machine.gpus
    cores = "" if cpu.usable_cores is None else f", {count(cpu.usable_cores, 'core')}"
    manifest = read_stage(artifacts, "benchmark")
    real = [row for row in benchmark.results if not is_proxy(row)]
    return section(
        "Speed",
        "speed.html.j2",
        machine=f"{cpu.model or 'unknown CPU'}{cores}; {', '.join(gpu.name for gpu in gpus) or 'no NVIDIA GPU'}.",
        serving=serving_words(benchmark, artifacts),
        others=other_inputs(artifacts, manifest.inputs, parity) if manifest else [],
        charts=speed_bars(real),
        timed=Table(HEAD, [_row(row, parity) for row in real], "speed"),
        proxies=Table(HEAD, [_row(row, parity) for row in benchmark.results if is_proxy(row)], "proxies"),
    )


def serving_words(benchmark: BenchmarkReport, artifacts: Artifacts) -> str:
    """Return which file the infer stage last used, and why, in a sentence; "" where it has not run."""
    manifest = read_stage(artifacts, "infer")
    if manifest is None:
        return ""
    inferred = read_result(manifest, Inferred)
    served, rival, batch = inferred.model, inferred.measured_faster_than, inferred.at_batch
    by = f"Images are classified by {run_name(served, inferred.backend)}"
    contests = benchmark.serves.contests if benchmark.serves else ()
    contest = next((contest for contest in contests if contest.batch == batch), None)
    names = {run.file: run_name(run.file, run.backend) for run in contest.contenders} if contest else {}
    if contest and rival is not None and {served, rival} <= names.keys():
        words = contest.pair(served, rival).words
        return f"{by}: measured {words} as fast as {names[rival]}, the default, at batch {batch}."
    if rival is not None:
        return f"{by}: it was measured to be faster than {rival}, in an earlier benchmark."
    if inferred.backend in ON_GPU:
        return f"{by}: it is the default, and no other file that may serve was measured to be clearly faster."
    return f"{by}: it is the default on a CPU, where measurements do not count."


def speed_bars(results: Sequence[BenchmarkRow]) -> list[Chart]:
    """Draw latency at the smallest batch and throughput at the largest, with one bar for each row that has numbers."""
    timed = [row for row in results if row.p50_ms is not None]
    if not timed:
        return []
    batches = [row.batch for row in timed]
    first, last = ([row for row in timed if row.batch == batch] for batch in (min(batches), max(batches)))
    latency = [
        Bar(label, _length(row.p50_ms), f"{_speed(row.p50_ms)} ms", _kind(row), row.p90_ms, f"p90 {_speed(row.p90_ms)}")
        for row, label in zip(first, _labels(first))
    ]
    throughput = [
        Bar(label, _length(row.images_per_second), _speed(row.images_per_second), _kind(row))
        for row, label in zip(last, _labels(last))
    ]
    return [
        Chart(f"Latency of a batch of {min(batches)}, ms (less is better)", latency, "p90", REACH, "plot latency"),
        Chart(f"Throughput in batches of {max(batches)}, images/s (more is better)", throughput),
    ]


def _length(value: float | None) -> float:
    return max(0.0, value or 0.0)


def _kind(row: BenchmarkRow) -> str:
    return "keras" if row.backend == "keras" else row.precision


def _labels(rows: Sequence[BenchmarkRow]) -> list[str]:
    """The name of each row, with its file where two names would be the same."""
    labels = [f"{row.backend} {row.name}" for row in rows]
    return [f"{label} ({row.file})" if labels.count(label) > 1 else label for label, row in zip(labels, rows)]


def _speed(value: float | None) -> str:
    if value is None:
        return "too fast for the clock"
    return f"{value:,.0f}" if 1000 <= value < 1e12 else f"{value:,.3g}"


def _row(row: BenchmarkRow, parity: ParityReport) -> tuple[str | Cell, ...]:
    includes = f"{row.backend}: {row.includes}." if row.includes else ""
    name = f"{row.backend} {row.name}"
    if row.error is not None:
        remarks = [sentence(f"failed: {row.error}"), includes]
        return (badge(FAIL, "failed"), Cell(name, remarks=remarks), str(row.batch), *[""] * 4)
    alone = f"{row.compute.p50_ms:.3f} ms of it are the engine alone." if row.compute else ""
    return (
        badge(UNJUDGED.get(row.backend) or verdict_on_row(row, parity)),
        Cell(name, remarks=[alone, sentence(row.refused_graph), sentence(row.caveat), includes]),
        str(row.batch),
        *(number(value, ".3f") for value in (row.p50_ms, row.p90_ms, row.p99_ms)),
        number(row.images_per_second, ",.1f"),
    )
