"""The report's section on classes: which are taken for which, their accuracy, and which lost most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.words import count, listed
from pipeline.artifacts.image_results import ImageResults
from pipeline.artifacts.paths import Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.reporting.flips import serving_run
from pipeline.reporting.glossary import TOP_1
from pipeline.reporting.headline import short_name
from pipeline.reporting.html import Section, Table, section, share
from pipeline.reporting.records import Explanations
from pipeline.verification.flips import accuracy_by_class, confusion, most_lost

MOST_CLASSES = 12  # in a matrix; of more, the most frequent confusions are listed
CONFUSIONS = 20
LOST = 5  # classes that a sentence names
ROWS_BY_CLASS = 200


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: true classes down, answers across.

    Attributes:
        runs: whose answers; all of them have the same matrix.
        classes: names of rows and columns.
        rows: for each true class and answer the number of images, and the depth of its colour from 0 to 4.
    """

    runs: str
    classes: Sequence[str]
    rows: Sequence[Sequence[tuple[int, int]]]


def classes_sections(artifacts: Artifacts, card: ModelCard, explanations: Explanations) -> list[Section]:
    """Make the section on confusions and the accuracy of each class; none where no image has a label.

    It is about Keras and what serves; where nothing serves, about Keras and every file.
    """
    results = explanations.results
    if results is None or not (results.labels >= 0).any():
        return []
    serves = serving_run(artifacts)
    runs = [run for run in results.runs[1:] if serves not in results.runs or run == serves]
    shown = [results.runs[0], *runs]
    few = len(card.classes) <= MOST_CLASSES
    rows, columns = _by_class(results, card, shown), [f"*{_name(results, run)}" for run in shown]
    return [
        section(
            "Classes",
            "classes.html.j2",
            (TOP_1,),
            lost=[f"{short_name(run)}: {words}." for run in runs if (words := _most_lost(results, card, run))],
            matrices=_matrices(results, card, shown) if few else [],
            unanswered=_unanswered(results, shown),
            confusions=Table(("true class", "answer", *columns), [] if few else _confusions(results, card, shown)),
            by_class=Table(("class", "*images", *columns), rows[:ROWS_BY_CLASS], titled=False),
            left_out=max(0, len(rows) - ROWS_BY_CLASS),
        )
    ]


def _name(results: ImageResults, run: str) -> str:
    return "Keras" if run == results.runs[0] else short_name(run)


def _most_lost(results: ImageResults, card: ModelCard, run: str) -> str:
    """The classes that lost most, such as "cat lost 3 of 12 images"."""
    words = []
    for change in most_lost(results, run):
        lost = round((change.reference - change.candidate) * change.images)
        words.append(f"{card.classes[change.number]} lost {lost:,} of {count(change.images, 'image')}")
    return listed(words, most=LOST)


def _matrices(results: ImageResults, card: ModelCard, runs: Sequence[str]) -> list[Matrix]:
    """One matrix for all runs that have the same."""
    matrices: dict[bytes, tuple[np.ndarray, list[str]]] = {}
    for run in runs:
        counts = _padded(confusion(results, run), len(card.classes))
        matrices.setdefault(counts.tobytes(), (counts, []))[1].append(_name(results, run))
    return [_matrix(", ".join(names), card, counts) for counts, names in matrices.values()]


def _matrix(runs: str, card: ModelCard, counts: np.ndarray) -> Matrix:
    # Each row by its own sum, so that a class with few images shows its mistakes too.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    depths = np.ceil(shares * 4).astype(int)
    rows = [[(int(number), int(depth)) for number, depth in zip(*row)] for row in zip(counts, depths)]
    return Matrix(runs, card.classes, rows)


def _unanswered(results: ImageResults, runs: Sequence[str]) -> list[str]:
    """How many images got no finite logits, by run."""
    numbers = {run: int((results.classes[results.runs.index(run)] < 0).sum()) for run in runs}
    return [f"{number:,} of {_name(results, run)}" for run, number in numbers.items() if number]


def _padded(counts: np.ndarray, size: int) -> np.ndarray:
    whole = np.zeros((size, size), dtype=counts.dtype)
    whole[: len(counts), : len(counts)] = counts
    return whole


def _confusions(results: ImageResults, card: ModelCard, runs: Sequence[str]) -> list[tuple[str, ...]]:
    """The most frequent confusions of all these runs together."""
    counts = np.stack([confusion(results, run) for run in runs])
    wrong = counts.max(axis=0)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    rows = []
    for true, said in (divmod(int(at), len(wrong)) for at in order if wrong.flat[at]):
        numbers = (f"{number:,}" for number in counts[:, true, said])
        rows.append((card.classes[true], card.classes[said], *numbers))
    return rows


def _by_class(results: ImageResults, card: ModelCard, runs: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each class with images: those that lost most in any run first."""
    accuracies = np.stack([accuracy_by_class(results, run) for run in runs])
    images = np.bincount(results.labels[results.labels >= 0], minlength=accuracies.shape[1])
    known = np.flatnonzero(images)
    lost = ((accuracies[0] - accuracies.min(axis=0)) * images)[known]
    order = known[np.argsort(-lost, kind="stable")]
    return [(card.classes[at], f"{images[at]:,}", *(share(value) for value in accuracies[:, at])) for at in order]
