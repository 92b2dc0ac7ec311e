"""What makes a verdict worth little is said, with advice that fits how the model came to be."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.verification.checks.doubts import accuracy_of, doubts
from tests.made_records import make_card

CLASSES = ("ant", "bee", "cat")
LABELS = np.array([0] * 6 + [1] * 2 + [2] * 2)


def said(answers: list[int], labels: np.ndarray = LABELS, source: str | None = None) -> list[str]:
    card = make_card(classes=CLASSES, source=source)
    return doubts(np.array(answers), labels, card)


def test_a_model_that_tells_classes_apart_is_not_doubted() -> None:
    assert said([0] * 6 + [1] * 2 + [0] * 2) == []


def test_what_was_doubtful_when_the_model_was_taken_over_is_said_first() -> None:
    card = make_card(classes=CLASSES, source="m.h5", doubts=("It normalises twice.",))
    assert doubts(np.array([0] * 6 + [1] * 2 + [0] * 2), LABELS, card) == ["It normalises twice."]


def test_one_answer_to_everything_is_said_though_it_is_often_right() -> None:
    (line,) = said([0] * 10)
    assert line.startswith("Keras itself predicts 'ant' for all 10 test images.")
    assert "Train longer" in line


def test_an_accuracy_that_naming_the_largest_class_reaches_too_is_said() -> None:
    (line,) = said([0, 0, 0, 0, 1, 1, 1, 0, 2, 1])  # 6 of 10, as ant for every one
    assert "classifies 60.0% of the test images correctly; always predicting 'ant' would reach 60.0%" in line


def test_guessing_is_said_where_the_classes_are_alike() -> None:
    labels = np.repeat(np.arange(3), 3)
    (line,) = said([0, 0, 1, 1, 2, 0, 2, 0, 1], labels)  # 4 of 9
    assert "classifies 44.4% of the test images correctly, about what guessing among 3 classes gives" in line
    assert said([0, 0, 1, 1, 1, 0, 2, 0, 1], labels) == []  # 5 of 9


@pytest.mark.parametrize(
    ("source", "advice"), [(None, "Train longer"), ("a.h5, written by Keras 2.2.4", "Check model.preprocessing")]
)
def test_the_advice_is_for_a_trained_or_for_a_finished_model(source: str | None, advice: str) -> None:
    (line,) = said([1] * 10, source=source)
    assert advice in line


def test_classes_without_a_test_image_are_named() -> None:
    assert said([0, 0, 1], np.array([0, 0, 1])) == ["There is no test image of 1 class of 3: cat."]
    assert said([0, 0], np.array([0, 0])) == ["There is no test image of 2 classes of 3: bee, cat."]


def test_images_without_a_label_count_in_no_accuracy() -> None:
    answers, labels = np.array([0] * 6 + [1] * 2 + [0] * 2 + [2] * 30), np.concatenate([LABELS, np.full(30, -1)])
    assert accuracy_of(answers, labels) == 0.8
    assert said(answers.tolist(), labels) == []
    assert accuracy_of(answers, np.full(40, -1)) is None
    assert said(answers.tolist(), np.full(40, -1)) == []
    (line, absent) = said([0, 0, 1, 2, 2], np.array([0, 1, 0, -1, -1]))
    assert "classifies 33.3% of the labelled test images correctly" in line
    assert absent == "There is no labelled test image of 1 class of 3: cat."
    assert said([2, 2], np.full(2, -1))[0].startswith("Keras itself predicts 'cat' for all 2 test images.")
