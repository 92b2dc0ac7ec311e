"""What makes a verdict worth little, whatever it is: answers that know nothing, classes that no image is of.

What was doubtful when the model was taken over comes first.
"""

import numpy as np

from export.words import count, listed
from pipeline.models.model_card import ModelCard

BETTER_THAN_CHANCE = 1.5
ITSELF = "Keras itself"  # the first words where the model's own answers are in doubt, whatever was exported


def doubts(answers: np.ndarray, labels: np.ndarray, card: ModelCard) -> list[str]:
    """Sentences for the verdict and the report.

    Args:
        answers: int (N,), the class that Keras gives each test image.
        labels: int (N,), its right class.
        card: of the model.
    """
    said = list(card.doubts)
    numbers = np.bincount(labels, minlength=len(card.classes))
    accuracy, largest = float((answers == labels).mean()), int(numbers.argmax())
    always = numbers[largest] / len(labels)
    if len(set(answers.tolist())) == 1 and always < 1:
        only = card.classes[int(answers[0])]
        said.append(f"{ITSELF} answers {only!r} to all {count(len(labels), 'test image')}. {_advice(card)}")
    elif accuracy <= always < 1:
        said.append(
            f"{ITSELF} names {accuracy:.1%} of the test images right; {card.classes[largest]!r} for every one "
            f"would be right for {always:.1%}. {_advice(card)}"
        )
    elif accuracy < BETTER_THAN_CHANCE / len(card.classes):
        said.append(
            f"{ITSELF} names {accuracy:.1%} of the test images right, about what guessing among "
            f"{count(len(card.classes), 'class', 'classes')} gives. {_advice(card)}"
        )
    if absent := [name for name, number in zip(card.classes, numbers) if not number]:
        classes = count(len(absent), "class", "classes")
        said.append(f"No test image is of {classes} of {len(card.classes):,}: {listed(absent)}.")
    return said


def _advice(card: ModelCard) -> str:
    if card.source is None:
        return "Train longer, with more images, or from weights that know pictures (model.weights: imagenet)."
    return "Check model.preprocessing, and that the class folders sort in the order of the model's outputs."
