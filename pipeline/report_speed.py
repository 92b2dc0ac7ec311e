"""The report's section on speed: what the benchmark measured, and apart from it what says nothing about engines."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.bars import Bar, bar_chart
from pipeline.benchmark_report import PEER, BenchmarkReport, BenchmarkRow
from pipeline.default_order import ON_GPU
from pipeline.html import Footnotes, Section, badge, command, details, notes, number, table, text
from pipeline.manifest import read_manifest
from pipeline.parity_report import FAIL, ParityReport, run_name
from pipeline.report_cards import is_proxy, verdict_on_row
from pipeline.report_standing import other_inputs
from pipeline.stage import Context
from pipeline.words import count, sentence

HEAD = ("verdict", "what ran", "*batch", "*p50, ms", "*p90, ms", "*p99, ms", "*images/s")
REFERENCE = "reference"  # what the others are held against
UNJUDGED = {"keras": REFERENCE, PEER: "peer"}  # rows that no verdict is asked of
REACH = 2.0  # times the longest bar, that a p90 may stretch the scale
PROXIES = (
    "A CPU runs the FP16 graph in FP32 and pairs of Q/DQ as they stand: these times say nothing about FP16 and INT8 "
    "engines, neither good nor bad."
)


def speed_section(benchmark: BenchmarkReport | None, context: Context, parity: ParityReport) -> Section:
    """What the benchmark measured; rows that failed are in the table."""
    if benchmark is None:
        return Section("Speed", f"Not measured. {command(context.command('benchmark', 'python'))} does it.")
    cpu, gpus = benchmark.machine.cpu, benchmark.machine.gpus
    cores = "" if cpu.usable_cores is None else f", {count(cpu.usable_cores, 'core')}"
    machine = f"{cpu.model or 'unknown CPU'}{cores}; {', '.join(gpu.name for gpu in gpus) or 'no NVIDIA GPU'}."
    words = f"{text(machine)} p50: half of the calls took less; p90: nine of ten."
    if serving := serving_words(benchmark, context):
        words += f" {text(serving)}"
    remarks = []
    manifest = read_manifest(context.root / "benchmark")
    if manifest and (others := other_inputs(context.root, manifest.inputs, parity)):
        remarks.append(f"Measured with other bytes than are here now: {', '.join(others)}.")
    proxies = [row for row in benchmark.results if is_proxy(row)]
    real = [row for row in benchmark.results if not is_proxy(row)]
    body = notes(remarks) + speed_bars(real) + _table(real, parity, "speed")
    if proxies:
        summary = (
            f"{count(len(proxies), 'time')} of a CPU that {'says' if len(proxies) == 1 else 'say'} nothing of engines"
        )
        body += details(summary, notes([PROXIES]) + _table(proxies, parity, "proxies"), "proxies")
    return Section("Speed", words, body)


def serving_words(benchmark: BenchmarkReport, context: Context) -> str:
    """What answered when the stage infer last ran, and why that file; "" where it has not run."""
    manifest = read_manifest(context.root / "infer")
    served, backend = (manifest.result.get(key) for key in ("model", "backend")) if manifest else (None, None)
    if manifest is None or not isinstance(served, str):
        return ""
    by = f"Images are classified by {run_name(served, str(backend))}"
    rival, batch = manifest.result.get("measured_faster_than"), manifest.result.get("at_batch")
    contests = benchmark.serves.contests if benchmark.serves else ()
    contest = next((one for one in contests if one.batch == batch), None)
    known = {one.file: run_name(one.file, one.backend) for one in contest.contenders} if contest else {}
    if contest and served in known and rival in known:
        words = contest.pair(served, str(rival)).words
        return f"{by}: measured {words} as fast as {known[rival]}, the first by default, at batch {batch}."
    if rival is not None:
        return f"{by}: it was measured to be faster than {rival}, in an earlier benchmark."
    if backend in ON_GPU:
        return f"{by}: it comes first by default, and nothing that may serve was measured decidedly faster."
    on_cpu = f"{by}: on a CPU it comes first of what may serve, whatever was measured."
    return on_cpu if backend == "onnxruntime" else ""


def speed_bars(results: Sequence[BenchmarkRow]) -> str:
    """Latency at the smallest batch and throughput at the largest, one bar a row that has numbers."""
    timed = [row for row in results if row.p50_ms is not None]
    batches = sorted({row.batch for row in timed})
    if not batches:
        return ""
    first, last = ([row for row in timed if row.batch == batch] for batch in (batches[0], batches[-1]))
    latency = bar_chart(
        f"Latency of a batch of {batches[0]}, ms (less is better)",
        [
            Bar(
                label,
                _length(row.p50_ms),
                f"{_speed(row.p50_ms)} ms",
                _kind(row),
                row.p90_ms,
                f"p90 {_speed(row.p90_ms)}",
            )
            for row, label in zip(first, _labels(first))
        ],
        "p90",
        REACH,
        "plot latency",
    )
    throughput = bar_chart(
        f"Throughput in batches of {batches[-1]}, images/s (more is better)",
        [
            Bar(label, _length(row.images_per_second), _speed(row.images_per_second), _kind(row))
            for row, label in zip(last, _labels(last))
        ],
    )
    return f'<div class="pair">{latency}{throughput}</div>'


def _length(value: float | None) -> float:
    return max(0.0, value or 0.0)


def _kind(row: BenchmarkRow) -> str:
    return "keras" if row.backend == "keras" else row.precision


def _labels(rows: Sequence[BenchmarkRow]) -> list[str]:
    """What each row is; with its file where two would be called alike."""
    labels = [f"{row.backend} {row.name}" for row in rows]
    return [f"{label} ({row.file})" if labels.count(label) > 1 else label for label, row in zip(labels, rows)]


def _speed(value: float | None) -> str:
    if value is None:
        return "too fast for the clock"
    return f"{value:,.0f}" if 1000 <= value < 1e12 else f"{value:,.3g}"


def _table(rows: Sequence[BenchmarkRow], parity: ParityReport, name: str) -> str:
    if not rows:
        return ""
    remarks = Footnotes(name)
    cells = [_row(row, parity, remarks) for row in rows]
    return table(HEAD, cells) + remarks.html


def _row(row: BenchmarkRow, parity: ParityReport, remarks: Footnotes) -> tuple[str, ...]:
    verdict = UNJUDGED.get(row.backend) or verdict_on_row(row, parity)
    what = text(f"{row.backend} {row.name}")
    includes = f"{row.backend}: {row.includes}." if row.includes else ""
    if row.error is not None:
        marks = remarks.mark(sentence(f"failed: {row.error}"), includes)
        return (badge(FAIL, "failed"), what + marks, str(row.batch), "", "", "", "")
    alone = f"{row.compute.p50_ms:.3f} ms of it the engine alone." if row.compute else ""
    caveat, refused = sentence(row.caveat), sentence(row.refused_graph)
    p50, p90, p99 = (number(value, ".3f") for value in (row.p50_ms, row.p90_ms, row.p99_ms))
    marks = remarks.mark(alone, refused, caveat, includes)
    return (badge(verdict, verdict), what + marks, str(row.batch), p50, p90, p99, number(row.images_per_second, ",.1f"))
