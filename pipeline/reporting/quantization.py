"""The report's sections on quantization: the choice of scales, the sensitivity of layers, the precision of nodes."""

import math
from collections import Counter
from collections.abc import Sequence

from export.int8.report import CalibrationReport, Distances, Placement
from export.words import count
from pipeline.artifacts.manifest import read_stage
from pipeline.artifacts.parity_report import PASS
from pipeline.artifacts.paths import Artifacts
from pipeline.artifacts.stage_files import read_calibration, read_placement, read_rows
from pipeline.reporting.glossary import SECOND_ORDER, SHIFTED, SQNR, TOP_1
from pipeline.reporting.html import Bar, Cell, Chart, Section, Table, badge, number, section, share
from pipeline.reporting.int8_steps import all_tried, gains, grouped, layers, not_shifted
from pipeline.reporting.sections import make_with
from pipeline.terminal.command_line import Invocation

TRIED = (
    *("chosen", "what was tried", "*SQNR, dB", "*median, dB", "*worst 5 %, dB", "*worst, dB"),
    *("*agreement", "*accuracy drop"),
)
SENSITIVITY = ("keras_layer", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept")
SENSITIVITY_TITLE = "Sensitivity to INT8"
REMEDY = "Run the quantize stage again."
DRAWN = 15  # layers with a bar of their own; the others share one


def quantization_sections(artifacts: Artifacts, invocation: Invocation) -> list[Section]:
    """Make the sections Quantization, Sensitivity to INT8 and INT8 placement.

    Raises:
        ProjectError: a record of the quantize stage is missing or damaged.
    """
    report = read_calibration(artifacts.path("quantize/calibration.json"))
    placement = read_placement(artifacts.path("quantize/placement.json"))
    measure = make_with(invocation, ["quantize.sensitivity=always"], "run", read_stage(artifacts, "verify"))
    return [_calibration(report), _sensitivity(artifacts, report, measure), _placement(placement, report)]


def _calibration(report: CalibrationReport) -> Section:
    fp16 = report.fp16
    rows = [
        *(_row(tried.title, tried.distances, tried.used) for tried in all_tried(report)),
        _row("FP16, weights rounded to nearest", fp16.rounding.nearest, fp16.rounding.chosen == "nearest"),
        _row("FP16, rounded to keep the means", fp16.rounding.mean, fp16.rounding.chosen == "mean"),
        *([_row(f"FP16, layers kept in FP32: {len(fp16.kept):,}", fp16.mixed, True)] if fp16.mixed else []),
    ]
    skipped = report.rounding.skipped if report.rounding else {}
    return section(
        "Quantization",
        "quantization.html.j2",
        (SQNR, TOP_1, SHIFTED, SECOND_ORDER),
        report=report,
        chart=gains(report),
        tried=Table(TRIED, rows),
        not_shifted=not_shifted(report.shift),
        not_rounded=[f"No second-order rounding of {layers(names)}: {why}." for why, names in grouped(skipped).items()],
    )


def _row(title: str, distances: Distances, used: bool) -> tuple[str | Cell, ...]:
    in_db = (distances.sqnr_db, distances.median_db, distances.tail_db, distances.worst_db)
    return (
        badge(PASS, "used") if used else "",
        title,
        *(number(value, ".1f") for value in in_db),
        share(distances.top1_agreement),
        number(distances.accuracy_drop, ".2%"),
    )


def _sensitivity(artifacts: Artifacts, report: CalibrationReport, measure: str) -> Section:
    if not artifacts.has("quantize/sensitivity.csv"):
        values = {"layers": None, "measure": measure, "budget_met": report.budget_met}
        return section(SENSITIVITY_TITLE, "sensitivity.html.j2", (), **values)
    measured, rows = [], []
    for row in read_rows(artifacts.path("quantize/sensitivity.csv"), SENSITIVITY, REMEDY):
        layer, op, kept = (row.cells[name] for name in ("keras_layer", "op", "kept"))
        row.choice("kept", ("int8", "fp16", "fp32"), "int8, fp16 or fp32")
        noise = row.number("noise", finite=False, low=0.0)
        measured.append((f"{layer} ({op})", noise, kept))
        sqnr, agreement = row.number("sqnr_db", finite=False), row.number("top1_agreement", low=0.0, high=1.0)
        drop = row.number("accuracy_drop", low=-1.0, high=1.0)
        rows.append((kept.upper(), layer, op, f"{sqnr:.2f}", share(agreement), f"{drop:.2%}"))
    head = ("stays", "layer", "operator", "*SQNR alone, dB", "*agreement", "*accuracy drop")
    return section(
        SENSITIVITY_TITLE,
        "sensitivity.html.j2",
        (SQNR, TOP_1),
        layers=Table(head, rows),
        chart=noise_bars(measured, DRAWN),
        any_kept=any(kept != "int8" for *_, kept in measured),
    )


def noise_bars(layers: Sequence[tuple[str, float, str]], most: int) -> Chart:
    """Draw each layer's share of the INT8 noise, in the given order.

    Args:
        layers: name, noise of the layer alone (energy of the error over that of the logits; infinite where the logits
            are not finite), and the precision that it computes in; the most sensitive first.
        most: how many layers have a bar of their own; the others share one.
    """
    total = sum(noise for _, noise, _ in layers if math.isfinite(noise)) or 1.0
    shown = list(layers[:most])
    if rest := layers[most:]:
        shown.append((count(len(rest), "other"), sum(noise for _, noise, _ in rest), "int8"))
    bars = []
    for name, noise, precision in shown:
        percent = 100 * noise / total
        text = f"{percent:.1f} %" if math.isfinite(percent) else "NaN or infinite"
        kind, stays = ("int8", "") if precision == "int8" else ("fp16", f"stays {precision.upper()}")
        bars.append(Bar(name, percent, text, kind, more=stays))
    return Chart("Share of the noise that quantising each layer alone adds to the logits", bars)


def _placement(rows: Sequence[Placement], report: CalibrationReport) -> Section:
    counts = Counter(row.precision for row in rows)
    return section(
        "INT8 placement",
        "placement.html.j2",
        summary=", ".join(f"{number:,} {precision.upper()}" for precision, number in sorted(counts.items())),
        in_fp32=[f"FP32: {node}, {why}." for node, why in report.fp16.kept_fp32.items()],
        nodes=Table(
            ("precision", "layer", "operator", "why"),
            [(row.precision, row.keras_layer, row.op, row.why) for row in rows],
        ),
    )
