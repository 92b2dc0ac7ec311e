"""Numbers in sentences, and sentences."""

from __future__ import annotations

import pytest

from pipeline.words import count, sentence


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (999, "999 images"), (1234567, "1,234,567 images")],
)
def test_a_count_agrees_with_its_noun(number: int, words: str) -> None:
    assert count(number, "image") == words


def test_a_plural_that_is_not_made_with_an_s() -> None:
    assert [count(number, "class", "classes") for number in (1, 3)] == ["1 class", "3 classes"]
    assert [count(number, "of its files is", "of its files are") for number in (1, 2)] == [
        "1 of its files is",
        "2 of its files are",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a convolution is FP32", "A convolution is FP32."),
        ("no NVIDIA driver.", "No NVIDIA driver."),
        ("inconclusive: too few", "Inconclusive: too few."),
        ("model.int8.onnx: SQNR 3 dB", "model.int8.onnx: SQNR 3 dB."),
        ("rtx/int8.plan died", "rtx/int8.plan died."),
        ("99.0 % agree", "99.0 % agree."),
        ("", ""),
    ],
)
def test_a_remark_becomes_a_sentence(words: str, said: str) -> None:
    assert sentence(words) == said
