"""The comparison of all ways to an answer: what differs is found, and what is missing."""

from __future__ import annotations

import pytest

from tests.ways import Best, compare

REFERENCE = {"a.jpg": Best("cat", 0.9), "b.jpg": Best("dog", 0.5), "text.jpg": Best(None, 0.0)}


def test_the_same_answers_are_the_same() -> None:
    found = compare(REFERENCE, {**REFERENCE, "a.jpg": Best("cat", 0.8999)})
    assert (found.photos, found.same, found.different) == (3, 3, ())
    assert found.largest_difference == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"a.jpg": Best("dog", 0.9)},
        {"a.jpg": Best(None, 0.0)},
        {"text.jpg": Best("cat", 0.9)},
        {"more.jpg": Best("cat", 0.9)},
    ],
)
def test_another_class_is_found(changed: dict[str, Best]) -> None:
    found = compare(REFERENCE, REFERENCE | changed)
    assert found.different == tuple(changed)
    assert found.same == found.photos - 1


def test_a_photo_without_a_row_is_found() -> None:
    found = compare(REFERENCE, {name: best for name, best in REFERENCE.items() if name != "b.jpg"})
    assert (found.same, found.different) == (2, ("b.jpg",))
