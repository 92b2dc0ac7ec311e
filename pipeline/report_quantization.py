"""The report's sections on precision: how the scales were chosen, what each layer costs, what computes in what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from export.placement_row import Placement
from pipeline.bars import Bar, bar_chart
from pipeline.charts import share_text, shares
from pipeline.csv_rows import read_rows
from pipeline.html import Section, badge, command, details, notes, number, share, table, text
from pipeline.manifest import read_manifest
from pipeline.parity_report import PASS
from pipeline.report_recipe import make_with
from pipeline.stage import Context
from pipeline.stage_records import CalibrationReport, Distances, read_calibration, read_placement
from pipeline.words import count

SENSITIVITY = ("keras_layer", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept")
REMEDY = "Run the quantize stage again."
DRAWN = 15  # layers that have a bar; the others share one


def quantization_sections(context: Context) -> list[Section]:
    """The sections of a recipe's artifacts.

    Raises:
        PipelineError: a record of the quantize stage is missing or damaged.
    """
    folder = context.folder("quantize")
    report = read_calibration(folder / "calibration.json")
    placement = read_placement(folder / "placement.json")
    measure = make_with(context, ["quantize.sensitivity=always"], "run", read_manifest(context.folder("verify")))
    layers = _sensitivity(folder / "sensitivity.csv", report, measure)
    return [_calibration(report), layers, _placement(placement, report)]


def _calibration(report: CalibrationReport) -> Section:
    rows = [_row(f"scales by {name}", found, name == report.method) for name, found in report.methods.items()]
    bias, rounding = report.bias_correction, report.fp16.rounding
    if bias:
        rows.append(_row("with corrected biases", bias.after, bias.used))
    if report.kept and report.mixed:
        rows.append(_row(f"most sensitive layers kept in float: {len(report.kept):,}", report.mixed, True))
    rows.append(_row("FP16, weights rounded to nearest", rounding.nearest, rounding.chosen == "nearest"))
    rows.append(_row("FP16, rounded to keep the means", rounding.mean, rounding.chosen == "mean"))
    if report.fp16.mixed:
        rows.append(_row(f"FP16, layers kept in FP32: {len(report.fp16.kept):,}", report.fp16.mixed, True))
    head = ("chosen", "what was tried", "*SQNR, dB", "*agreement", "*accuracy drop")
    met = "" if report.budget_met else " The INT8 graph missed it on these images."
    met += "" if report.fp16.budget_met else f" The FP16 graph missed its own ({text(report.fp16.budget)})."
    equalized = count(report.equalized_activations, "activation was", "activations were")
    words = (
        f"Scales from {count(report.scale_images, 'calibration image')}; every choice was made on "
        f"{count(report.held_out_images, 'other')}, none of which is a test image. Budget: {text(report.budget)}.{met} "
        f"{report.int8_convolutions:,} of {count(report.convolutions, 'convolution')} "
        f"{'computes' if report.int8_convolutions == 1 else 'compute'} in INT8; {equalized} equalized."
    )
    return Section("Quantization", words, table(head, rows))


def _row(title: str, found: Distances, used: bool) -> tuple[str, ...]:
    return (
        badge(PASS, "used") if used else "",
        text(title),
        number(found.sqnr_db, ".1f"),
        share(found.top1_agreement),
        number(found.accuracy_drop, ".2%"),
    )


def _sensitivity(path: Path, report: CalibrationReport, measure: str) -> Section:
    if not path.is_file():
        why = "INT8 throughout meets the budget. " if report.budget_met else ""
        return Section("Layers", f"Not measured: {why}{command(measure)} does it.")
    layers, rows, precisions = [], [], {}
    for row in read_rows(path, SENSITIVITY, REMEDY):
        layer, op, kept = (row.cells[name] for name in ("keras_layer", "op", "kept"))
        row.choice("kept", ("int8", "fp16", "fp32"), "int8, fp16 or fp32")
        noise = row.number("noise", finite=False, low=0.0)
        layers.append((f"{layer} ({op})", noise, kept != "int8"))
        precisions[f"{layer} ({op})"] = kept
        sqnr, agreement = row.number("sqnr_db", finite=False), row.number("top1_agreement", low=0.0, high=1.0)
        drop = row.number("accuracy_drop", low=-1.0, high=1.0)
        rows.append((kept.upper(), text(layer), text(op), f"{sqnr:.2f}", share(agreement), f"{drop:.2%}"))
    head = ("stays", "layer", "operator", "*SQNR alone, dB", "*agreement", "*accuracy drop")
    words = "What quantising one layer alone does to the logits. " + (
        "The dearest stay in float." if any(kept for *_, kept in layers) else "All of them are INT8."
    )
    listed = details(
        f"Show {'the' if len(rows) == 1 else 'all'} {count(len(rows), 'layer')}", table(head, rows), "long"
    )
    return Section("Layers", words, noise_bars(layers, precisions, DRAWN) + listed)


def noise_bars(layers: Sequence[tuple[str, float, bool]], precisions: dict[str, str], most: int) -> str:
    """Each layer's share of the INT8 noise, the dearest first.

    Args:
        layers: as `charts.shares` takes them.
        precisions: what each layer computes in, by name.
        most: how many have a bar; the others share one.
    """
    rows = []
    for name, portion, kept in shares(layers, most):
        stays = f"stays {precisions.get(name, 'fp16').upper()}" if kept else ""
        rows.append(Bar(name, portion, share_text(portion), "fp16" if kept else "int8", more=stays))
    return bar_chart("Share of the noise that quantising each layer alone adds to the logits", rows)


def _placement(rows: Sequence[Placement], report: CalibrationReport) -> Section:
    counts = Counter(row.precision for row in rows)
    summary = ", ".join(f"{number:,} {text(precision.upper())}" for precision, number in sorted(counts.items()))
    head = ("precision", "layer", "operator", "why")
    cells = [tuple(text(cell) for cell in (row.precision, row.keras_layer, row.op, row.why)) for row in rows]
    listed = details(
        f"Show {'the' if len(rows) == 1 else 'all'} {count(len(rows), 'node')}", table(head, cells), "long"
    )
    kept = notes([f"FP32: {node}, {why}." for node, why in report.fp16.kept_fp32.items()])
    words = f"Which node of the INT8 graph computes in which precision: {summary}."
    return Section("INT8 placement", words, kept + listed)
