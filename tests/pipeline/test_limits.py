"""The limits and the help that the fields of a recipe carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from pipeline.config import load_recipe
from pipeline.errors import RecipeError
from pipeline.limits import Limit, at_least, within
from pipeline.recipe import Recipe


def annotated(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Each key with its default and what its ``Annotated`` holds besides the type."""
    for name, kind in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if get_origin(kind) is Annotated:
            yield f"{prefix}{name}", value, get_args(kind)[1:]
        if dataclasses.is_dataclass(value):
            yield from annotated(value, f"{prefix}{name}.")


KEYS = {key: (value, notes) for key, value, notes in annotated(Recipe("x"))}
LIMITED = {key: next(n for n in notes if isinstance(n, Limit)) for key, (_, notes) in KEYS.items() if any(
    isinstance(n, Limit) for n in notes)}  # fmt: skip


def test_numbers_within() -> None:
    assert [within(1, 64).holds(n) for n in (0, 1, 64, 65)] == [False, True, True, False]
    assert [at_least(1).holds(n) for n in (0, 1, 10**9)] == [False, True, True]
    assert (within(1, 65_536).expected, at_least(1).expected) == ("1 to 65,536", "at least 1")
    assert within(0, 5, "0 to 5 dB").expected == "0 to 5 dB"


def test_every_default_keeps_to_its_limit() -> None:
    assert len(LIMITED) > 60
    for key, limit in LIMITED.items():
        value = KEYS[key][0]
        assert value is None or limit.holds(value), key


@pytest.mark.parametrize("key", [key for key, limit in LIMITED.items() if type(KEYS[key][0]) in (int, float)])
def test_a_number_beyond_its_limit_is_refused_with_its_words(key: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("data: {source: digits}")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"{key}=-7"])
    assert str(caught.value).startswith(f"{key}: expected {LIMITED[key].expected}. Received: -7")


def test_what_is_beside_a_type_is_a_limit_or_help() -> None:
    for key, (_, notes) in KEYS.items():
        assert all(isinstance(note, Limit | str) for note in notes), key
        assert sum(isinstance(note, str) for note in notes) <= 1, key
        assert all(note == note.strip(" .") and note for note in notes if isinstance(note, str)), key
