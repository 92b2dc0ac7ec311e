"""Reasons to doubt any verdict on a model: predictions no better than chance, classes without a test image."""

import numpy as np

from export.words import count, listed, percent
from pipeline.models.model_card import ModelCard

BETTER_THAN_CHANCE = 1.5
ITSELF = "Keras itself"  # a doubt about the model's own predictions begins with these words


def doubts(answers: np.ndarray, labels: np.ndarray, card: ModelCard) -> list[str]:
    """Return sentences for the verdict and the report; doubts from the import of the model come first.

    Args:
        answers: int (N,), the class that Keras predicts for each test image.
        labels: int (N,), its true class; -1 where it has none, which tells nothing about the accuracy.
        card: the model's card.
    """
    sentences = list(card.doubts)
    known = labels >= 0
    numbers = np.bincount(labels[known], minlength=len(card.classes))
    accuracy, largest = accuracy_of(answers, labels), int(numbers.argmax())
    share = numbers[largest] / max(1, known.sum())  # the accuracy of always predicting the largest class
    tested = "test images" if known.all() else "labelled test images"
    advice = (
        "Train longer, with more images, or from pretrained weights (model.weights: imagenet)."
        if card.source is None
        else "Check model.preprocessing, and that the class folders sort in the order of the model's outputs."
    )
    if len(set(answers.tolist())) == 1 and share < 1:
        name = card.classes[int(answers[0])]
        sentences.append(f"{ITSELF} predicts {name!r} for all {count(len(labels), 'test image')}. {advice}")
    elif accuracy is not None and accuracy <= share < 1:
        sentences.append(
            f"{ITSELF} classifies {percent(accuracy, 1)} of the {tested} correctly; always predicting "
            f"{card.classes[largest]!r} would reach {percent(share, 1)}. {advice}"
        )
    elif accuracy is not None and accuracy < BETTER_THAN_CHANCE / len(card.classes):
        sentences.append(
            f"{ITSELF} classifies {accuracy:.1%} of the {tested} correctly, about what guessing among "
            f"{count(len(card.classes), 'class', 'classes')} gives. {advice}"
        )
    if known.any() and (absent := [name for name, number in zip(card.classes, numbers) if not number]):
        classes = count(len(absent), "class", "classes")
        sentences.append(
            f"There is no {tested.removesuffix('s')} of {classes} of {len(card.classes):,}: {listed(absent)}."
        )
    return sentences


def accuracy_of(answers: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of right answers among the images with a label; None where no image has one.

    Args:
        answers: int (N,), the class that was predicted for each image.
        labels: int (N,), its true class; -1 where it has none.
    """
    known = labels >= 0
    return float((answers[known] == labels[known]).mean()) if known.any() else None
