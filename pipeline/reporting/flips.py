"""The report's section on changed answers: which images, and how sure Keras was of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from export.words import count
from pipeline.artifacts.manifest import read_result, read_stage
from pipeline.artifacts.parity_report import run_name
from pipeline.artifacts.paths import IMAGE_RESULTS, PARITY, Artifacts
from pipeline.artifacts.results import Inferred
from pipeline.models.model_card import ModelCard
from pipeline.reporting.glossary import NEAR_TIE, TOP_1
from pipeline.reporting.headline import short_name
from pipeline.reporting.html import Section, Table, section, share
from pipeline.reporting.pictures import small_pictures
from pipeline.reporting.records import Explanations
from pipeline.reporting.validity import digest_now
from pipeline.verification.flips import Flip, changed_answers

TITLE = "Changed answers"
PICTURES = 24  # on the page, of all runs
MOST_ROWS = 500  # changed answers of a run in its table; images.npz has all of them
NO_ANSWER = "NaN or infinite"


@dataclass(frozen=True)
class Answer:
    """A class with its probability; as text such as "cat 52 %".

    Attributes:
        name: of the class, or that the logits are not finite.
        share: the probability in percent; "" where there is none.
    """

    name: str
    share: str

    def __str__(self) -> str:
        return f"{self.name} {self.share}".rstrip()


@dataclass(frozen=True)
class Changed:
    """A changed answer as the page shows it.

    Attributes:
        name: of the image's file, or its number.
        picture: data URI; "": it has none.
        before: Keras' answer.
        after: the run's answer.
        truth: true class; "" where unknown.
    """

    name: str
    picture: str
    before: Answer
    after: Answer
    truth: str


@dataclass(frozen=True)
class Changes:
    """The changed answers of a run.

    Attributes:
        run: name of the run.
        serves: whether it classifies.
        words: how many there are, and how many of them are near ties.
        real: with a picture, where Keras was sure.
        near: with a picture, near ties.
        rest: all without a picture.
        left_out: how many more there are.
    """

    run: str
    serves: bool
    words: str
    real: Sequence[Changed]
    near: Sequence[Changed]
    rest: Table
    left_out: int


def serving_run(artifacts: Artifacts) -> str:
    """Return the run that classified after this verdict; "" where nothing did."""
    manifest = read_stage(artifacts, "infer")
    if manifest is None or manifest.inputs.get(PARITY) != digest_now(artifacts, PARITY):
        return ""
    inferred = read_result(manifest, Inferred)
    return run_name(inferred.model, inferred.backend)


def flips_section(artifacts: Artifacts, card: ModelCard, explanations: Explanations) -> Section:
    """Make the section on every changed answer, of what serves first.

    Raises:
        ProjectError: ``reference.npz`` is damaged, or of another model.
    """
    results = explanations.results
    if results is None:
        return _without(TITLE, explanations)
    serves = serving_run(artifacts)
    runs = sorted(results.runs[1:], key=lambda run: run != serves)
    flips = {run: changed_answers(results, run) for run in runs}
    # The real changes first: they are what a reader has to look at.
    ordered = {run: sorted(of_run, key=lambda flip: (flip.near_tie, -flip.margin)) for run, of_run in flips.items()}
    drawn = [(run, flip.image) for run, of_run in ordered.items() for flip in of_run][:PICTURES]
    pictures = small_pictures(artifacts, card, (image for _, image in drawn), len(results.names)) if drawn else {}
    return section(
        TITLE,
        "flips.html.j2",
        (TOP_1, NEAR_TIE),
        images=len(results.names),
        changes=[
            _changes(run, run == serves, of_run, card, {i: pictures[i] for r, i in drawn if r == run and i in pictures})
            for run, of_run in ordered.items()
            if of_run
        ],
        unchanged=[short_name(run) for run, of_run in flips.items() if not of_run],
    )


def _without(title: str, explanations: Explanations) -> Section:
    """A section whose record is not there, with the reason."""
    why = explanations.why_not.get(IMAGE_RESULTS) or "This verdict has no results image by image."
    return section(title, "left_out.html.j2", why=why)


def _changes(run: str, serves: bool, flips: Sequence[Flip], card: ModelCard, pictures: dict[int, str]) -> Changes:
    near = sum(flip.near_tie for flip in flips)
    words = f"{count(len(flips), 'changed answer')}: {len(flips) - near:,} real, {count(near, 'near tie')}"
    shown = [(flip, _changed(flip, card, pictures[flip.image])) for flip in flips if flip.image in pictures]
    others = [flip for flip in flips if flip.image not in pictures]
    head = ("kind", "image", "Keras", "this file", "true class", "*margin")
    rows = []
    for flip in others[:MOST_ROWS]:
        changed = _changed(flip, card, "")
        kind = "near tie" if flip.near_tie else "real"
        rows.append((kind, changed.name, str(changed.before), str(changed.after), changed.truth, share(flip.margin)))
    return Changes(
        run,
        serves,
        words,
        real=[changed for flip, changed in shown if not flip.near_tie],
        near=[changed for flip, changed in shown if flip.near_tie],
        rest=Table(head, rows),
        left_out=max(0, len(others) - MOST_ROWS),
    )


def _changed(flip: Flip, card: ModelCard, picture: str) -> Changed:
    return Changed(
        flip.name or f"image {flip.image}",
        picture,
        answer(card, flip.reference_class, flip.reference_score),
        answer(card, flip.candidate_class, flip.candidate_score),
        card.classes[flip.label] if flip.label >= 0 else "",
    )


def answer(card: ModelCard, number: int, score: float) -> Answer:
    """Return an answer with its probability.

    Args:
        card: of the model.
        number: of the class; below 0: the logits are not finite.
        score: its probability.
    """
    return Answer(card.classes[number], f"{100 * score:.0f} %") if number >= 0 else Answer(NO_ANSWER, "")
