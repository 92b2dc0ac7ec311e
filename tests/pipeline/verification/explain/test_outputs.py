"""Logits are explained by what was done to them, and only by what fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.runners.base import softmax
from pipeline.verification.explain.outputs import explain_outputs

NAMES = tuple(f"class {index}" for index in range(12))


def logits(images: int = 40, classes: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (images, classes)).astype(np.float32)


def noisy(values: np.ndarray, precision: str) -> np.ndarray:
    share = {"fp32": 1e-6, "fp16": 5e-4, "int8": 0.03}[precision]
    drawn = np.random.default_rng(1).normal(0, share * values.std(), values.shape)
    return (values + drawn).astype(np.float32)


def exchanged(values: np.ndarray) -> np.ndarray:
    return values[:, [1, 0, *range(2, values.shape[1])]]


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
    "softmax": (softmax, "softmax twice", "probabilities already"),
    "log-softmax": (lambda x: np.log(softmax(x)), "activation", "logarithms"),
    "log of two softmaxes": (lambda x: np.log(softmax(softmax(x))), "softmax twice", "probabilities of probabilities"),
    "log of three": (lambda x: np.log(softmax(softmax(softmax(x)))), "softmax twice", "three softmaxes"),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), "activation", "sigmoid"),
    "relu": (lambda x: np.maximum(x, 0), "activation", "ReLU"),
    "factor": (lambda x: 2 * x, "logits scaled", "2 times"),
    "factor and offset": (lambda x: 0.5 * x + 3, "logits scaled", "+ 3"),
    "reversed": (lambda x: x[:, ::-1], "class order", "reversed"),
    "two exchanged": (exchanged, "class order", "two of them exchanged"),
    "shifted": (lambda x: np.roll(x, 1, axis=1), "class order", "shifted by one"),
    "by name": (lambda x: x[:, sorted(range(12), key=str)], "class order", "sorted by their names"),
    "first row": (lambda x: np.repeat(x[:1], len(x), axis=0), "repeated row", "first image"),
    "first row of each batch": (lambda x: np.repeat(x[::8], 8, axis=0), "repeated row", "first image"),
    "last row": (lambda x: np.repeat(x[-1:], len(x), axis=0), "repeated row", "last image"),
    "images reversed": (lambda x: x[::-1], "batch dependence", "another order"),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_done_to_logits_is_named(change: str, precision: str) -> None:
    expected = logits()
    changed, cause, words = CHANGES[change]
    received = (
        noisy(np.ascontiguousarray(changed(expected)), precision) if cause != "repeated row" else changed(expected)
    )
    found = explain_outputs(expected, received, None, precision, NAMES)
    assert [explanation.cause for explanation in found] == [cause]
    assert words in found[0].text
    assert "dB" in found[0].evidence
    assert found[0].remedy


def test_examples_name_the_classes() -> None:
    expected = logits(classes=3)
    (found,) = explain_outputs(expected, expected[:, [1, 0, 2]], None, "fp32", ("cat", "dog", "owl"))
    assert "Output 0 holds 'dog' instead of 'cat'" in found.evidence
    assert "2 outputs of 3" in found.text


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_noise_alone_is_not_explained(noise: float) -> None:
    expected = logits()
    received = expected + np.random.default_rng(3).normal(0, noise * 3, expected.shape).astype(np.float32)
    for precision in ("fp32", "fp16", "int8"):
        assert explain_outputs(expected, received, None, precision, NAMES) == []


def test_two_changes_at_once_are_not_taken_for_one() -> None:
    expected = logits()
    assert explain_outputs(expected, softmax(expected)[:, ::-1], None, "fp32", NAMES) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (softmax, "softmax twice"),
        (lambda x: x, ""),
        (lambda x: 1 / (1 + np.exp(-x)), "sigmoid"),
    ],
)
def test_probabilities_are_looked_at_where_logits_are_right(
    change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    expected = logits()
    probabilities = change(softmax(expected)) if words != "sigmoid" else change(expected)
    found = explain_outputs(expected, expected, probabilities, "fp32", NAMES)
    assert [words in explanation.text for explanation in found] == ([True] if words else [])
    assert [explanation.cause for explanation in found] == [words.replace("sigmoid", "activation")] * bool(words)


def test_a_missing_softmax_is_named() -> None:
    (found,) = explain_outputs(logits(), logits(), logits(), "fp32", NAMES)
    assert "the softmax is missing" in found.text
    assert found.cause == "activation"


def test_a_thousand_classes_take_no_time_and_a_few_exchanged_ones_are_found_in_int8() -> None:
    expected = logits(64, 1000)
    order = np.arange(1000)
    order[[3, 500]] = order[[500, 3]]
    (found,) = explain_outputs(expected, noisy(expected[:, order], "int8"), None, "int8", [str(i) for i in range(1000)])
    assert found.cause == "class order"
    assert "2 outputs of 1,000" in found.text


def test_logits_of_another_shape_or_without_numbers_are_left_to_others() -> None:
    expected = logits()
    assert explain_outputs(expected, expected[:, :5], None, "fp32", NAMES) == []
    assert explain_outputs(expected, expected * np.nan, None, "fp32", NAMES) == []
