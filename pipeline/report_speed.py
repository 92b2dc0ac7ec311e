"""The report's sections on engines and on speed."""

from __future__ import annotations

from pathlib import Path

from export.errors import ExportError
from export.sidecar import Sidecar, read_sidecar
from pipeline import charts
from pipeline.benchmark_report import BenchmarkReport, BenchmarkRow
from pipeline.html import badge, chart, notes, number, section, size, table, text
from pipeline.layout import engines
from pipeline.manifest import read_manifest
from pipeline.parity_report import ParityReport
from pipeline.report_standing import engine_verdict, other_inputs

ENGINES = (
    *("engine", "TensorRT", "built for", "*batch min / opt / max", "convolutions", "*size", "*build time"),
    "verdict",
)
SPEEDS = ("backend", "precision", "*batch", "*p50 ms", "*p90 ms", "*p99 ms", "*images/s", "what it does not say")


def engines_section(root: Path, parity: ParityReport) -> str:
    """The engines that are there, as HTML; one whose sidecar is damaged is listed with the reason."""
    rows, remarks = [], []
    for plan in engines(root):
        name = f"{plan.parent.name}/{plan.name}"
        verdict = engine_verdict(root, plan, parity)
        try:
            sidecar = read_sidecar(plan)
        except ExportError as error:
            rows.append((text(name), *[""] * 6, badge(verdict, verdict)))
            remarks.append(f"{name}: {error}")
            continue
        rows.append((text(name), *_facts(sidecar), badge(verdict, verdict)))
        remarks += [f"{name}: {warning}." for warning in sidecar.warnings]
    if not rows:
        manifest = read_manifest(root / "build")
        why = manifest.result.get("why_not", "") if manifest else ""
        return section("Engines", f"None was built on this machine. {text(why)}", "")
    words = "TensorRT engines, built from the ONNX files."
    return section("Engines", words, table(ENGINES, rows) + notes(remarks))


def _facts(sidecar: Sidecar) -> tuple[str, ...]:
    profile = sidecar.profile
    return (
        text(f"{sidecar.flavour} {sidecar.tensorrt_version}"),
        text(", ".join(sidecar.targets) or sidecar.gpu or sidecar.runs_on or ""),
        f"{profile.min} / {profile.opt} / {profile.max}",
        text(_convolutions(sidecar)),
        size(sidecar.plan_bytes),
        "" if sidecar.seconds is None else f"{sidecar.seconds:.1f} s",
    )


def _convolutions(sidecar: Sidecar) -> str:
    """How many run in which type, or, where the engine was not loaded, how many were asked for in which."""
    found = sidecar.found.convolutions if sidecar.found else {}
    asked = sidecar.asked.convolutions if sidecar.asked else {}
    listed = ", ".join(f"{count} {kind.upper()}" for kind, count in (found or asked).items())
    return listed if found or not listed else f"{listed} asked for"


def speed_section(benchmark: BenchmarkReport | None, root: Path, parity: ParityReport) -> str:
    """What the benchmark measured, as HTML; rows that failed are in the table."""
    if benchmark is None:
        return section("Speed", "Not measured. Run python -m benchmarks.", "")
    cpu, gpus = benchmark.machine.cpu, benchmark.machine.gpus
    cores = "" if cpu.usable_cores is None else f", {cpu.usable_cores} cores"
    words = f"{cpu.model or 'unknown CPU'}{cores}; {', '.join(gpu.name for gpu in gpus) or 'no NVIDIA GPU'}."
    remarks = [f"{row.backend}: {row.includes}." for row in benchmark.results if row.includes]
    manifest = read_manifest(root / "benchmark")
    if manifest and (others := other_inputs(root, manifest.inputs, parity)):
        remarks.insert(0, f"Measured with other bytes than are here now: {', '.join(others)}.")
    rows = [_row(row) for row in benchmark.results]
    return section("Speed", text(words), chart(charts.speed(benchmark.results)) + table(SPEEDS, rows) + notes(remarks))


def _row(row: BenchmarkRow) -> tuple[str, ...]:
    first = (text(row.backend), text(row.name), str(row.batch))
    if row.error is not None:
        return (*first, "", "", "", "", f"failed: {text(row.error)}")
    p50, p90, p99 = (number(value, ".3f") for value in (row.p50_ms, row.p90_ms, row.p99_ms))
    return (*first, p50, p90, p99, number(row.images_per_second, ",.1f"), text(_remarks(row)))


def _remarks(row: BenchmarkRow) -> str:
    alone = [f"{row.compute.p50_ms:.3f} ms of it the engine alone"] if row.compute else []
    return "; ".join([*alone, *([row.caveat] if row.caveat else [])])
