"""The report: one self-contained HTML page on the results of the other stages."""

from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pipeline import __version__
from pipeline.artifacts.array_rows import each_row
from pipeline.artifacts.benchmark_report import read_benchmark
from pipeline.artifacts.manifest import MANIFEST, read_stage
from pipeline.artifacts.parity_report import (
    FAIL,
    NOT_VERIFIED,
    PASS,
    ParityReport,
    read_parity,
    thresholds_by_precision,
)
from pipeline.artifacts.paths import BENCHMARK, CARD, PARITY, REPORT, Artifacts
from pipeline.models.model_card import ModelCard, read_card
from pipeline.recipe.schema import Recipe
from pipeline.reporting import charts
from pipeline.reporting.cards import cards
from pipeline.reporting.charts import data_uri, read_labels
from pipeline.reporting.classes import classes_sections
from pipeline.reporting.decoding import decoding_sections
from pipeline.reporting.evidence import evidence_sections
from pipeline.reporting.failures import Situation
from pipeline.reporting.flips import flips_section
from pipeline.reporting.glossary import glossary_section
from pipeline.reporting.headline import headline
from pipeline.reporting.hints import hints_sections
from pipeline.reporting.html import Cell, Section, Table, badge, render, section, size
from pipeline.reporting.image_noise import image_noise_sections
from pipeline.reporting.layers import layers_section
from pipeline.reporting.next_step import next_step
from pipeline.reporting.parity import parity_section
from pipeline.reporting.quantization import quantization_sections
from pipeline.reporting.records import read_explanations
from pipeline.reporting.sections import engines_section, predictions_section, recipe_section, when
from pipeline.reporting.speed import speed_section
from pipeline.reporting.validity import SHOWN_STAGES, check_validity, digest_now, engine_verdicts
from pipeline.terminal.command_line import Invocation
from pipeline.training.checkpoint import read_history

HISTORY_FILE, SAMPLES = "train/history.json", "train/samples.npz"
OTHER_THRESHOLDS = "The verdict was given by other thresholds than the recipe has now. `verify` judges by those."


def write_report(artifacts: Artifacts, recipe: Recipe, invocation: Invocation, out: Path) -> str:
    """Write ``report.html``, which needs no other file, script or font, so it can be mailed.

    Args:
        artifacts: the files that the stage declares.
        recipe: as it is now.
        invocation: how the command was called, for commands in advice.
        out: folder of the page.

    Returns:
        The verdict that the page shows.

    Raises:
        ProjectError: a file that it shows is missing or damaged; with the file and the key.
    """
    card, parity = read_card(artifacts.path(CARD)), read_parity(artifacts.path(PARITY))
    benchmark = read_benchmark(artifacts.path(BENCHMARK)) if artifacts.has(BENCHMARK) else None
    stands, engines = check_validity(artifacts, parity), engine_verdicts(artifacts, parity)
    verify, explanations = read_stage(artifacts, "verify"), read_explanations(artifacts, card)
    hints = explanations.diagnosis.hints if explanations.diagnosis and stands.shown == FAIL else ()
    same_thresholds = parity.thresholds == thresholds_by_precision(recipe.verify.thresholds)
    page = render(
        "page.html.j2",
        version=__version__,
        style=(Path(__file__).parent / "report.css").read_text(encoding="utf-8"),
        recipe=recipe,
        headline=headline(stands, parity, engines),
        verified=when(verify),
        alerts=[*parity.warnings, *stands.broken, *stands.remarks, *([] if same_thresholds else [OTHER_THRESHOLDS])],
        cards=cards(parity, benchmark, engines),
        sections=[
            *hints_sections(hints, invocation),
            next_step(Situation(artifacts, recipe, invocation, card, parity, verify, hints), stands, engines),
            parity_section(parity),
            flips_section(artifacts, card, explanations),
            *classes_sections(artifacts, card, explanations),
            *image_noise_sections(artifacts, card, parity, explanations),
            layers_section(explanations, invocation),
            *decoding_sections(explanations),
            engines_section(artifacts, engines),
            speed_section(benchmark, artifacts, invocation, parity),
            *evidence_sections(artifacts),
            predictions_section(artifacts, card, parity),
            _training(artifacts, card),
            *quantization_sections(artifacts, invocation),
            section("Stages", "stages.html.j2", stages={stage: _ran(artifacts, stage) for stage in SHOWN_STAGES}),
            recipe_section(recipe, invocation, verify),
            _judged(artifacts, parity),
            glossary_section(),
        ],
    )
    (out / Path(REPORT).name).write_text(page, encoding="utf-8", errors="backslashreplace")
    return stands.shown


def _ran(artifacts: Artifacts, stage: str) -> str:
    """How long a stage took and how much it wrote, or why that is unknown."""
    if manifest := read_stage(artifacts, stage):
        return f"{manifest.seconds:.1f} s, {size(sum(entry.bytes for entry in manifest.outputs.values()))}"
    return "its record is damaged" if artifacts.has(f"{stage}/{MANIFEST}") else "not run, or its record is gone"


def _training(artifacts: Artifacts, card: ModelCard) -> Section:
    history = read_history(artifacts.path(HISTORY_FILE))
    return section(
        "Training" if card.source is None else "Model",
        "training.html.j2",
        card=card,
        epochs=len(history),
        curves=charts.training_curves(history) if history and card.source is None else (),
        images=_sample_images(artifacts, card),
    )


def _sample_images(artifacts: Artifacts, card: ModelCard) -> list[tuple[str, str]]:
    """Some training images as (class name, data URI); a result of an earlier version has none."""
    if not artifacts.has(SAMPLES):
        return []
    path = artifacts.path(SAMPLES)
    labels = read_labels(path, card, "Run the train stage again.")
    named = [(card.classes[label] if label >= 0 else "an image without a label") for label in labels]
    return [(name, data_uri(pixels)) for name, pixels in zip(named, each_row(path, "pixels"))]


def _judged(artifacts: Artifacts, parity: ParityReport) -> Section:
    subjects = [
        (_state(digest, digest_now(artifacts, name)), name, Cell(digest, code=True))
        for name, digest in parity.subjects.items()
    ]
    manifests = [manifest for stage in SHOWN_STAGES if (manifest := read_stage(artifacts, stage))]
    versions = sorted({pair for manifest in manifests for pair in manifest.versions.items()})
    tools = [(tool, ", ".join(version for _, version in group)) for tool, group in groupby(versions, itemgetter(0))]
    return section(
        "What was judged",
        "judged.html.j2",
        subjects=Table(("now", "file", "sha256"), subjects),
        versions=Table(("tool", "version"), tools, titled=False),
    )


def _state(judged: str, now: str | None) -> Cell:
    return badge(PASS, "as judged") if now == judged else badge(NOT_VERIFIED, "altered" if now else "missing")
