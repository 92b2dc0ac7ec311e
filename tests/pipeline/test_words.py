"""Numbers in sentences."""

from __future__ import annotations

import pytest

from pipeline.words import count


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
