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
        labels: int (N,), its true class.
        card: the model's card.
    """
    sentences = list(card.doubts)
    numbers = np.bincount(labels, minlength=len(card.classes))
    accuracy, largest = float((answers == labels).mean()), int(numbers.argmax())
    share = numbers[largest] / len(labels)  # the accuracy of always predicting the largest class
    advice = (
        "Train longer, with more images, or from pretrained weights (model.weights: imagenet)."
        if card.source is None
        else "Check model.preprocessing, and that the class folders sort in the order of the model's outputs."
    )
    if len(set(answers.tolist())) == 1 and share < 1:
        name = card.classes[int(answers[0])]
        sentences.append(f"{ITSELF} predicts {name!r} for all {count(len(labels), 'test image')}. {advice}")
    elif accuracy <= share < 1:
        sentences.append(
            f"{ITSELF} classifies {percent(accuracy, 1)} of the test images correctly; always predicting "
            f"{card.classes[largest]!r} would reach {percent(share, 1)}. {advice}"
        )
    elif accuracy < BETTER_THAN_CHANCE / len(card.classes):
        sentences.append(
            f"{ITSELF} classifies {accuracy:.1%} of the test images correctly, about what guessing among "
            f"{count(len(card.classes), 'class', 'classes')} gives. {advice}"
        )
    if absent := [name for name, number in zip(card.classes, numbers) if not number]:
        classes = count(len(absent), "class", "classes")
        sentences.append(f"There is no test image of {classes} of {len(card.classes):,}: {listed(absent)}.")
    return sentences
