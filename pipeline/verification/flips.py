"""Which answers changed and how far apart they were, and what that does to each class. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import ProjectError
from export.metrics.distances import top_classes
from export.metrics.per_image import margins, sqnr_by_image
from export.words import listed
from pipeline.artifacts.image_results import NEAR_TIE, ImageResults
from pipeline.runners.base import softmax
from pipeline.verification.parity import Answer, Candidate, Reference


@dataclass(frozen=True)
class Flip:
    """An image with another answer than Keras'.

    Attributes:
        image: Index among the test images.
        name: Name; "" where unknown.
        label: True class; -1 where unknown.
        reference_class: Keras' answer.
        candidate_class: The run's answer; -1 where its logits are not finite.
        reference_score: Probability of Keras' answer.
        candidate_score: Probability of the run's answer; NaN where its logits are not finite.
        margin: Probability of Keras' best class minus that of its second.
        near_tie: Whether the margin is below `NEAR_TIE` and the run gave an answer at all.
    """

    image: int
    name: str
    label: int
    reference_class: int
    candidate_class: int
    reference_score: float
    candidate_score: float
    margin: float
    near_tie: bool


@dataclass(frozen=True)
class ClassChange:
    """The accuracy of Keras and of a run on the test images of one class, as shares."""

    number: int
    images: int
    reference: float
    candidate: float


def collect_results(
    reference: Reference, candidates: Sequence[Candidate], answers: Mapping[str, Answer]
) -> ImageResults:
    """Collect the results image by image of Keras and of every run that gave logits of Keras' shape.

    Args:
        reference: Keras' logits, and the images.
        candidates: Runs, in their order.
        answers: By run_name.
    """
    rows = [(reference.name, reference.logits, softmax(reference.logits))]
    for candidate in candidates:
        logits, own = (answer := answers[candidate.run_name]).logits, answer.probabilities
        if logits is not None and logits.shape == reference.logits.shape:
            with np.errstate(invalid="ignore"):  # of logits that are not finite
                rows.append((candidate.run_name, logits, softmax(logits) if own is None else own))
    classes = np.stack([top_classes(logits) for _, logits, _ in rows]).astype(np.int32)
    scores = [np.take_along_axis(own, np.maximum(top, 0)[:, None], 1)[:, 0] for top, (_, _, own) in zip(classes, rows)]
    return ImageResults(
        names=reference.names or ("",) * len(reference.labels),
        labels=reference.labels.astype(np.int64),
        runs=tuple(name for name, _, _ in rows),
        classes=classes,
        scores=np.where(classes >= 0, np.stack(scores), np.nan).astype(np.float32),
        margins=margins(rows[0][2]).astype(np.float32),
        noise_db=np.stack([sqnr_by_image(reference.logits, logits) for _, logits, _ in rows]).astype(np.float32),
    )


def changed_answers(results: ImageResults, run: str) -> list[Flip]:
    """List the images for which a run has another answer than Keras, in their order.

    Raises:
        ProjectError: The results have no such run.
    """
    row = _row(results, run)
    return [
        Flip(
            image=int(image),
            name=results.names[image],
            label=int(results.labels[image]),
            reference_class=int(results.classes[0, image]),
            candidate_class=int(results.classes[row, image]),
            reference_score=float(results.scores[0, image]),
            candidate_score=float(results.scores[row, image]),
            margin=float(results.margins[image]),
            near_tie=bool(results.margins[image] < NEAR_TIE and results.classes[row, image] >= 0),
        )
        for image in np.flatnonzero(results.classes[row] != results.classes[0])
    ]


def confusion(results: ImageResults, run: str) -> np.ndarray:
    """Count the images by true class and answer.

    Args:
        results: Of the verify stage.
        run: One of its runs; the first is Keras.

    Returns:
        np.ndarray: int64 (C, C), rows are true classes; C is one more than the largest class that occurs. Images
        without a label or an answer are not counted.

    Raises:
        ProjectError: The results have no such run.
    """
    answers, size = results.classes[_row(results, run)], _class_count(results)
    known = (results.labels >= 0) & (answers >= 0)
    pairs = results.labels[known] * size + answers[known]
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def accuracy_by_class(results: ImageResults, run: str) -> np.ndarray:
    """Return the share of the images of each class that a run classifies correctly.

    Returns:
        np.ndarray: float64 (C,), see `confusion`; NaN for a class without a test image.

    Raises:
        ProjectError: The results have no such run.
    """
    labels, answers, size = results.labels, results.classes[_row(results, run)], _class_count(results)
    known = labels >= 0
    images = np.bincount(labels[known], minlength=size)
    correct = np.bincount(labels[known & (answers == labels)], minlength=size)
    return np.asarray(np.divide(correct, images, out=np.full(size, np.nan), where=images > 0))


def most_lost(results: ImageResults, run: str) -> list[ClassChange]:
    """List the classes that a run classifies worse than Keras: those that lost most images first.

    Raises:
        ProjectError: The results have no such run.
    """
    before, after = accuracy_by_class(results, results.runs[0]), accuracy_by_class(results, run)
    images = np.bincount(results.labels[results.labels >= 0], minlength=len(before))
    worse = np.flatnonzero(after < before)
    lost = np.round((before[worse] - after[worse]) * images[worse])
    order = worse[np.lexsort((worse, after[worse] - before[worse], -lost))]
    return [ClassChange(int(n), int(images[n]), float(before[n]), float(after[n])) for n in order]


def _row(results: ImageResults, run: str) -> int:
    if run not in results.runs:
        raise ProjectError(f"Expected one of the runs {listed(results.runs)}. Received: {run}. Run verify again.")
    return results.runs.index(run)


def _class_count(results: ImageResults) -> int:
    return int(max(results.labels.max(initial=0), results.classes.max(initial=0))) + 1
