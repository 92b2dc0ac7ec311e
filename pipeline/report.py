"""The report stage: one self-contained HTML page of what the other stages wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__, charts
from pipeline.benchmark_report import read_benchmark
from pipeline.card import ModelCard
from pipeline.html import Section, alerts, badge, contents, details, size, table, text
from pipeline.layout import BENCHMARK, PARITY, REPORT
from pipeline.manifest import read_manifest
from pipeline.parity_report import NOT_VERIFIED, PASS, ParityReport, by_precision, read_parity
from pipeline.report_cards import cards
from pipeline.report_engines import engines_section
from pipeline.report_evidence import evidence_sections
from pipeline.report_headline import Headline, headline
from pipeline.report_next import next_step
from pipeline.report_parity import parity_section
from pipeline.report_predictions import predictions_section
from pipeline.report_quantization import quantization_sections
from pipeline.report_recipe import recipe_section, when
from pipeline.report_speed import speed_section
from pipeline.report_standing import digest_now, engine_verdicts, standing
from pipeline.stage import Context
from pipeline.stage_records import Epoch, read_history
from pipeline.words import count

STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer")


def write_report(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``report.html``: no file, script or font from elsewhere, so it can be mailed.

    Raises:
        PipelineError: a file that it shows is missing or damaged; with the file and the key.
    """
    root = context.root
    card, parity = context.card(), read_parity(root / PARITY)
    benchmark = read_benchmark(root / BENCHMARK) if (root / BENCHMARK).is_file() else None
    stands, engines, verify = standing(root, parity), engine_verdicts(root, parity), read_manifest(root / "verify")
    warnings = alerts([*parity.warnings, *stands.broken, *stands.remarks, *_other_thresholds(context, parity)])
    sections = [
        next_step(context, card, stands, parity, engines, verify),
        parity_section(parity),
        engines_section(root, engines),
        speed_section(benchmark, context, parity),
        *evidence_sections(root),
        predictions_section(root, card, parity),
        _training(read_history(root / "train/history.json"), card),
        *quantization_sections(context),
        _chain(root),
        recipe_section(context, verify),
        _provenance(root, parity),
    ]
    top = warnings + cards(parity, benchmark, engines) + contents(sections)
    body = top + "".join(section.html for section in sections)
    page = _page(context, headline(stands, parity, engines), when(verify), body)
    (folder / Path(REPORT).name).write_text(page, encoding="utf-8", errors="backslashreplace")
    return {"verdict_shown": stands.shown}


def _other_thresholds(context: Context, parity: ParityReport) -> list[str]:
    """What to say where the recipe asks for something else by now than the verdict was given by."""
    if parity.thresholds == by_precision(context.recipe.verify.thresholds):
        return []
    return ["The verdict was given by other thresholds than the recipe has now. `verify` judges by those."]


def _page(context: Context, head: Headline, moment: str, body: str) -> str:
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    name, description = context.recipe.name, context.recipe.description or "From Keras to TensorRT"
    sure = f'<p class="certainty">{text(head.certainty)}</p>' if head.certainty else ""
    verified = f'<p class="when">Verified on {moment}</p>' if moment else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(name)}: Keras to TensorRT</title><style>{style}</style></head><body>
<header><div><h1>{text(name)}</h1><p>{text(description)}</p>
<p class="verdict">{badge(head.verdict, head.words)}</p>{sure}{verified}</div></header>
<main>{body}</main>
<footer>Made by keras-resnet-to-tensorrt {__version__}. Every number on this page was measured by the run that it is
reported for; files are bound to the verdict by sha256.</footer></body></html>
"""


def _chain(root: Path) -> Section:
    boxes = []
    for stage in STAGES:
        manifest = read_manifest(root / stage)
        if manifest is not None:
            written = sum(entry.bytes for entry in manifest.outputs.values())
            what = f"{manifest.seconds:.1f} s, {size(written)}"
        else:
            what = "its record is missing or damaged" if (root / stage).is_dir() else "not run"
        boxes.append(f"<div><b>{stage}</b><span>{what}</span></div>")
    return Section("Stages", "What ran, how long it took, what it wrote.", f'<div class="chain">{"".join(boxes)}</div>')


def _training(history: Sequence[Epoch], card: ModelCard) -> Section:
    if card.source is not None:
        changes = "".join(f"<li>{text(change)}</li>" for change in card.changes)
        how = "with changes that keep its answers" if changes else "as it is"
        words = f"Taken over {how}: {text(card.source)}; nothing was trained."
        return Section("Model", words, f"<ul>{changes}</ul>" if changes else "")
    how = "transfer learning from pretrained weights" if card.transfer else "from scratch"
    parameters = "" if card.parameters is None else f", {count(card.parameters, 'parameter')}"
    words = f"{text(card.backbone or 'a model')}{parameters}, {how}"
    if not history:
        return Section("Training", f"{words}; no epoch was trained.")
    curves = "".join(f'<div class="curve">{curve}</div>' for curve in charts.training_curves(history))
    return Section("Training", f"{words}, {count(len(history), 'epoch')}.", f'<div class="curves">{curves}</div>')


def _provenance(root: Path, parity: ParityReport) -> Section:
    subjects = []
    for name, digest in parity.subjects.items():
        now = digest_now(root, name)
        shown = badge(PASS, "as judged") if now == digest else badge(NOT_VERIFIED, "altered" if now else "missing")
        subjects.append((shown, text(name), f"<code>{text(digest)}</code>"))
    versions: dict[str, set[str]] = {}
    for stage in STAGES:
        manifest = read_manifest(root / stage)
        for tool, version in (manifest.versions if manifest else {}).items():
            versions.setdefault(tool, set()).add(version)
    tools = [(text(tool), text(", ".join(sorted(found)))) for tool, found in sorted(versions.items())]
    body = table(("now", "file", "sha256"), subjects) + details(
        "Versions", table(("tool", "version"), tools, titled=False)
    )
    return Section("What was judged", "The verdict holds for these bytes and no others.", body)
