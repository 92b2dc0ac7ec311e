"""Numbers, lists and sentences for people."""

from __future__ import annotations

import pytest

from export.words import aligned, count, listed, sentence


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


def test_a_long_list_is_five_names_and_how_many_there_are_besides() -> None:
    names = [f"conv{index}" for index in range(47)]
    assert listed(names) == "conv0, conv1, conv2, conv3, conv4 and 42 more"
    assert listed(names[:6]) == "conv0, conv1, conv2, conv3, conv4, conv5", "nothing is as short as its own name"
    assert listed(names[:7]) == "conv0, conv1, conv2, conv3, conv4 and 2 more"
    assert listed([]) == ""
    assert listed(iter([1, 2, 3, 4]), most=2, separator="; ") == "1; 2 and 2 more"
    assert listed(range(10_000), most=1) == "0 and 9,999 more"


def test_columns_begin_or_end_alike_and_a_remark_takes_the_rest_of_its_line() -> None:
    rows = [
        ("what", "batch", "ms"),
        ("a longer name", "8", "10.5"),
        ("b", "128", "a long remark"),
        ("c", "why"),
    ]
    assert aligned(rows[:2], right=(1, 2)) == ["  what           batch    ms", "  a longer name      8  10.5"]
    assert aligned([rows[0], rows[3]], right=(1, 2), indent="") == ["what  batch  ms", "c     why"]
    assert aligned([rows[0], rows[2]]) == ["  what  batch  ms", "  b     128    a long remark"]
    assert aligned([]) == []
