"""The report's section on precision: how the scales were chosen, what each layer costs, what computes in what."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline import charts
from pipeline.files import read_json
from pipeline.html import number, section, table

Json = Mapping[str, Any]


def quantization_sections(root: Path) -> str:
    """The sections of a recipe's artifacts, as HTML."""
    report = read_json(root / "quantize/calibration.json")
    placement = read_json(root / "quantize/placement.json")
    return _calibration(report) + _sensitivity(root, report) + _placement(placement, report)


def _calibration(report: Json) -> str:
    rows = [_row(f"scales by {name}", found, name == report["method"]) for name, found in report["methods"].items()]
    bias = report.get("bias_correction")
    if bias:
        rows.append(_row("with corrected biases", bias["after"], bias["used"]))
    if report["kept"] and "mixed" in report:
        rows.append(_row(f"most sensitive layers kept in float: {len(report['kept'])}", report["mixed"], True))
    for name, title in (("nearest", "FP16, weights rounded to nearest"), ("mean", "FP16, rounded to keep the means")):
        rows.append(_row(title, report["fp16"]["rounding"][name], name == report["fp16"]["rounding"]["chosen"]))
    head = ("", "*SQNR dB", "*agreement", "*accuracy drop", "")
    text = (
        f"Scales from {report['scale_images']} calibration images; every choice was made on "
        f"{report['held_out_images']} others, none of which is a test image. Budget: {escape(report['budget'])}. "
        f"{report['int8_convolutions']} of {report['convolutions']} convolutions compute in INT8; "
        f"{report['equalized_activations']} activations were equalized."
    )
    return section("Quantization", text, table(head, rows))


def _row(title: str, found: Json, used: bool) -> tuple[str, ...]:
    return (
        escape(title),
        number(found["sqnr_db"], ".1f"),
        number(found["top1_agreement"], ".2%"),
        number(found["accuracy_drop"], ".2%"),
        "used" if used else "",
    )


def _sensitivity(root: Path, report: Json) -> str:
    path = root / "quantize/sensitivity.csv"
    if not path.is_file():
        text = "Not measured: INT8 throughout meets the budget. <code>--set quantize.sensitivity=always</code> does it."
        return section("Layers", text, "")
    with path.open(encoding="utf-8", newline="") as file:
        layers = list(csv.DictReader(file))
    chart = charts.sensitivity(
        [(f"{row['keras_layer']} ({row['op']})", float(row["noise"]), row["kept"] != "int8") for row in layers]
    )
    head = ("layer", "operator", "*SQNR alone, dB", "*agreement", "*accuracy drop", "")
    rows = [
        (
            *(escape(row["keras_layer"]), row["op"], row["sqnr_db"]),
            *(f"{float(row['top1_agreement']):.2%}", f"{float(row['accuracy_drop']):.2%}", row["kept"].upper()),
        )
        for row in layers
    ]
    text = "What quantising one layer alone does to the logits. " + (
        "The dearest stay in float." if report["kept"] else "All of them are INT8."
    )
    body = f"{chart}<details><summary>Show all {len(rows)} layers</summary>{table(head, rows)}</details>"
    return section("Layers", text, body)


def _placement(rows: Sequence[Json], report: Json) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["precision"]] = counts.get(row["precision"], 0) + 1
    summary = ", ".join(f"{count} {precision.upper()}" for precision, count in sorted(counts.items()))
    head = ("layer", "operator", "precision", "why")
    cells = [tuple(escape(str(row[key])) for key in ("keras_layer", "op", "precision", "why")) for row in rows]
    body = f"<details><summary>Show all {len(rows)} nodes</summary>{table(head, cells)}</details>"
    fp32 = report["fp16"]["kept_fp32"]
    notes = "".join(f'<p class="note">FP32: {escape(node)}, {escape(why)}.</p>' for node, why in fp32.items())
    return section(
        "INT8 placement", f"Which node of the INT8 graph computes in which precision: {summary}.", notes + body
    )
