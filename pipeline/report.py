"""The report stage: one self-contained HTML page of what the other stages wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__, charts
from pipeline.benchmark_report import read_benchmark
from pipeline.card import ModelCard
from pipeline.html import alerts, badge, chart, section, size, table, text
from pipeline.layout import BENCHMARK, PARITY, REPORT
from pipeline.manifest import read_manifest
from pipeline.parity_report import ParityReport, by_precision, read_parity
from pipeline.report_cards import cards
from pipeline.report_parity import parity_section
from pipeline.report_predictions import predictions_section
from pipeline.report_quantization import quantization_sections
from pipeline.report_speed import engines_section, speed_section
from pipeline.report_standing import Standing, standing
from pipeline.stage import Context
from pipeline.stage_records import Epoch, read_history

STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer")


def write_report(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``report.html``: no file, script or font from elsewhere, so it can be mailed.

    Raises:
        PipelineError: a file that it shows is missing or damaged; with the file and the key.
    """
    root = context.root
    card, parity = context.card(), read_parity(root / PARITY)
    benchmark = read_benchmark(root / BENCHMARK) if (root / BENCHMARK).is_file() else None
    stands = standing(root, parity)
    sections = [
        alerts([*parity.warnings, *stands.broken, *stands.remarks, *_other_thresholds(context, parity)]),
        cards(parity, benchmark, root),
        _chain(root),
        _training(read_history(root / "train/history.json"), card),
        parity_section(parity),
        engines_section(root, parity),
        speed_section(benchmark, root, parity),
        predictions_section(root, card, parity),
        quantization_sections(root),
        _provenance(root, parity),
    ]
    page = _page(context, stands, sections)
    (folder / Path(REPORT).name).write_text(page, encoding="utf-8", errors="backslashreplace")
    return {"verdict_shown": stands.shown}


def _other_thresholds(context: Context, parity: ParityReport) -> list[str]:
    """What to say where the recipe asks for something else by now than the verdict was given by."""
    if parity.thresholds == by_precision(context.recipe.verify.thresholds):
        return []
    return ["The verdict was given by other thresholds than the recipe has now. `verify` judges by those."]


def _page(context: Context, stands: Standing, sections: Sequence[str]) -> str:
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    name, description = context.recipe.name, context.recipe.description or "From Keras to TensorRT"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(name)}: Keras to TensorRT</title><style>{style}</style></head><body>
<header><div><h1>{text(name)} {badge(stands.shown, stands.words)}</h1>
<p>{text(description)}</p></div></header>
<main>{"".join(sections)}<footer>Made by keras-resnet-to-tensorrt {__version__}. Every number on this page was
measured by the run that it is reported for; files are bound to the verdict by sha256.</footer></main></body></html>
"""


def _chain(root: Path) -> str:
    boxes = []
    for stage in STAGES:
        manifest = read_manifest(root / stage)
        if manifest is not None:
            written = sum(entry.bytes for entry in manifest.outputs.values())
            what = f"{manifest.seconds:.1f} s, {size(written)}"
        else:
            what = "its record is missing or damaged" if (root / stage).is_dir() else "not run"
        boxes.append(f"<div><b>{stage}</b><span>{what}</span></div>")
    return section("Stages", "What ran, how long it took, what it wrote.", f'<div class="chain">{"".join(boxes)}</div>')


def _training(history: Sequence[Epoch], card: ModelCard) -> str:
    if card.source is not None:
        changes = "".join(f"<li>{text(change)}</li>" for change in card.changes)
        how = "with changes that keep its answers" if changes else "as it is"
        words = f"Taken over {how}: {text(card.source)}; nothing was trained."
        return section("Model", words, f"<ul>{changes}</ul>" if changes else "")
    how = "transfer learning from pretrained weights" if card.transfer else "from scratch"
    parameters = "" if card.parameters is None else f", {card.parameters:,} parameters"
    words = f"{text(card.backbone or 'a model')}{parameters}, {how}"
    if not history:
        return section("Training", f"{words}; no epoch was trained.", "")
    return section("Training", f"{words}.", chart(charts.training_curves(history)))


def _provenance(root: Path, parity: ParityReport) -> str:
    subjects = [(text(name), f"<code>{text(digest)}</code>") for name, digest in parity.subjects.items()]
    versions: dict[str, set[str]] = {}
    for stage in STAGES:
        manifest = read_manifest(root / stage)
        for tool, version in (manifest.versions if manifest else {}).items():
            versions.setdefault(tool, set()).add(version)
    tools = [(text(tool), text(", ".join(sorted(found)))) for tool, found in sorted(versions.items())]
    tables = table(("file", "sha256"), subjects), table(("tool", "version"), tools)
    body = f"{tables[0]}<details><summary>Versions</summary>{tables[1]}</details>"
    return section("What was judged", "The verdict holds for these bytes and no others.", body)
