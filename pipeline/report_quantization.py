"""The report's section on precision: how the scales were chosen, what each layer costs, what computes in what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from export.placement_row import Placement
from pipeline import charts
from pipeline.csv_rows import read_rows
from pipeline.html import chart, notes, number, section, share, table, text
from pipeline.stage_records import CalibrationReport, Distances, read_calibration, read_placement

SENSITIVITY = ("keras_layer", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept")
REMEDY = "Run the quantize stage again."


def quantization_sections(root: Path) -> str:
    """The sections of a recipe's artifacts, as HTML.

    Raises:
        PipelineError: a record of the quantize stage is missing or damaged.
    """
    report = read_calibration(root / "quantize/calibration.json")
    placement = read_placement(root / "quantize/placement.json")
    layers = root / "quantize/sensitivity.csv"
    return _calibration(report) + _sensitivity(layers, report) + _placement(placement, report)


def _calibration(report: CalibrationReport) -> str:
    rows = [_row(f"scales by {name}", found, name == report.method) for name, found in report.methods.items()]
    bias, rounding = report.bias_correction, report.fp16.rounding
    if bias:
        rows.append(_row("with corrected biases", bias.after, bias.used))
    if report.kept and report.mixed:
        rows.append(_row(f"most sensitive layers kept in float: {len(report.kept)}", report.mixed, True))
    rows.append(_row("FP16, weights rounded to nearest", rounding.nearest, rounding.chosen == "nearest"))
    rows.append(_row("FP16, rounded to keep the means", rounding.mean, rounding.chosen == "mean"))
    if report.fp16.mixed:
        rows.append(_row(f"FP16, layers kept in FP32: {len(report.fp16.kept)}", report.fp16.mixed, True))
    head = ("", "*SQNR dB", "*agreement", "*accuracy drop", "")
    met = "" if report.budget_met else " The INT8 graph missed it on these images."
    met += "" if report.fp16.budget_met else f" The FP16 graph missed its own ({text(report.fp16.budget)})."
    words = (
        f"Scales from {report.scale_images} calibration images; every choice was made on "
        f"{report.held_out_images} others, none of which is a test image. Budget: {text(report.budget)}.{met} "
        f"{report.int8_convolutions} of {report.convolutions} convolutions compute in INT8; "
        f"{report.equalized_activations} activations were equalized."
    )
    return section("Quantization", words, table(head, rows))


def _row(title: str, found: Distances, used: bool) -> tuple[str, ...]:
    return (
        text(title),
        number(found.sqnr_db, ".1f"),
        share(found.top1_agreement),
        number(found.accuracy_drop, ".2%"),
        "used" if used else "",
    )


def _sensitivity(path: Path, report: CalibrationReport) -> str:
    if not path.is_file():
        why = "INT8 throughout meets the budget. " if report.budget_met else ""
        return section("Layers", f"Not measured: {why}<code>--set quantize.sensitivity=always</code> does it.", "")
    bars, rows = [], []
    for row in read_rows(path, SENSITIVITY, REMEDY):
        layer, op, kept = (row.cells[name] for name in ("keras_layer", "op", "kept"))
        row.choice("kept", ("int8", "fp16", "fp32"), "int8, fp16 or fp32")
        noise = row.number("noise", finite=False, low=0.0)
        bars.append((f"{layer} ({op})", noise, kept != "int8"))
        sqnr, agreement = row.number("sqnr_db", finite=False), row.number("top1_agreement", low=0.0, high=1.0)
        drop = row.number("accuracy_drop", low=-1.0, high=1.0)
        rows.append((text(layer), text(op), f"{sqnr:.2f}", share(agreement), f"{drop:.2%}", kept.upper()))
    head = ("layer", "operator", "*SQNR alone, dB", "*agreement", "*accuracy drop", "")
    words = "What quantising one layer alone does to the logits. " + (
        "The dearest stay in float." if report.kept else "All of them are INT8."
    )
    listed = f"<details><summary>Show all {len(rows)} layers</summary>{table(head, rows)}</details>"
    return section("Layers", words, chart(charts.sensitivity(bars)) + listed)


def _placement(rows: Sequence[Placement], report: CalibrationReport) -> str:
    counts = Counter(row.precision for row in rows)
    summary = ", ".join(f"{count} {text(precision.upper())}" for precision, count in sorted(counts.items()))
    head = ("layer", "operator", "precision", "why")
    cells = [tuple(text(cell) for cell in (row.keras_layer, row.op, row.precision, row.why)) for row in rows]
    listed = f"<details><summary>Show all {len(rows)} nodes</summary>{table(head, cells)}</details>"
    kept = notes([f"FP32: {node}, {why}." for node, why in report.fp16.kept_fp32.items()])
    words = f"Which node of the INT8 graph computes in which precision: {summary}."
    return section("INT8 placement", words, kept + listed)
