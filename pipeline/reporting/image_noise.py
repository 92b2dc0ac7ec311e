"""The report's section on the noise of each image: one picture may carry a large part of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.artifacts.image_results import ImageResults
from pipeline.artifacts.layer_report import LayerReport
from pipeline.artifacts.parity_report import FAIL, FROM_KERAS, Hop, ImageNoise, ParityReport
from pipeline.artifacts.paths import Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.reporting.flips import Answer, answer, serving_run
from pipeline.reporting.glossary import SATURATED, SQNR
from pipeline.reporting.html import Section, Table, section, share
from pipeline.reporting.pictures import small_pictures
from pipeline.reporting.records import Explanations

TITLE = "Noise of each image"
HEAD = ("run", "*median, dB", "*5th percentile, dB", "*mean, dB", "*deviation, dB", "*worst, dB")
LEAST_CLIPPED = 0.00005  # a smaller share reads as 0.00 %
DRAWN = 6  # runs of which the worst images are shown


@dataclass(frozen=True)
class Worst:
    """One of the worst images of a run.

    Attributes:
        name: of the image's file, or its number.
        picture: data URI; "": it has none.
        noise: SQNR in words.
        before: Keras' answer.
        after: the run's answer.
    """

    name: str
    picture: str
    noise: str
    before: Answer
    after: Answer


def image_noise_sections(
    artifacts: Artifacts, card: ModelCard, parity: ParityReport, explanations: Explanations
) -> list[Section]:
    """Make the section; none where no run was measured image by image.

    Raises:
        ProjectError: ``reference.npz`` is damaged, or of another model.
    """
    serves, results = serving_run(artifacts), explanations.results
    measured = [(hop, hop.image_noise) for hop in parity.hops if hop.kind == FROM_KERAS and hop.image_noise]
    if not measured:
        return []
    # What serves first, then the noisiest.
    measured.sort(key=lambda pair: (pair[0].run_name != serves, pair[1].p5_db))
    drawn = [pair for pair in measured if results is not None and pair[0].run_name in results.runs][:DRAWN]
    images = {image for _, noise in drawn for image, _ in noise.worst}
    pictures = small_pictures(artifacts, card, images, len(results.names)) if results is not None and drawn else {}
    groups = []
    for hop, noise in drawn:
        if results is not None and (worst := _worst(hop, noise, results, card, pictures)):
            clips = clipping(explanations.layers, hop.run_name)
            groups.append((hop.run_name, hop.run_name == serves, hop.verdict == FAIL, clips, worst))
    runs = Table(HEAD, [_row(hop, noise) for hop, noise in measured], titled=False)
    return [section(TITLE, "image_noise.html.j2", (SQNR, SATURATED), runs=runs, groups=groups)]


def _row(hop: Hop, noise: ImageNoise) -> tuple[str, ...]:
    worst = decibels(noise.worst[0][1]) if noise.worst else ""
    return (
        hop.run_name,
        *(f"{value:.1f}" for value in (noise.median_db, noise.p5_db, noise.mean_db, noise.std_db)),
        worst,
    )


def decibels(value: float | None) -> str:
    """Return an SQNR in words; None: not finite."""
    return "NaN or infinite" if value is None else f"{value:.1f}"


def _worst(
    hop: Hop, noise: ImageNoise, results: ImageResults, card: ModelCard, pictures: dict[int, str]
) -> Sequence[Worst]:
    row = results.runs.index(hop.run_name)
    return [
        Worst(
            results.names[image] or f"image {image}",
            pictures.get(image, ""),
            decibels(value) + ("" if value is None else " dB"),
            answer(card, int(results.classes[0, image]), float(results.scores[0, image])),
            answer(card, int(results.classes[row, image]), float(results.scores[row, image])),
        )
        for image, value in noise.worst
        if 0 <= image < len(results.names)
    ]


def clipping(layers: LayerReport | None, run: str) -> str:
    """Return which layer clips most in a run, as a sentence; "" where none does, or the layers were not compared."""
    runs = [each for each in (layers.runs if layers else ()) if each.run == run]
    rows = [row for each in runs for row in each.rows if (row.saturated or 0.0) >= LEAST_CLIPPED]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row.saturated or 0.0)
    ends = f"{share(most.saturated)} of its values are at the end of the range"
    return f"{most.layer} clips most: {ends} (tensor {most.tensor})."
