"""The limits and the help that the fields of a recipe carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from export.errors import RecipeError
from pipeline.recipe.limits import NAMED, VARIANT_NAMED, Limit, at_least, within
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Profile, Recipe, Splits


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


EDGES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {  # what a limit in these words takes, and what it refuses
    "a share from 0 to 1": ((0, 1), (-0.001, 1.001)),
    "a share from 0 to 1 (0.99 is 99 %)": ((0, 1), (-0.001, 1.001)),
    "a share from -1 to 1 (0.01 is one point)": ((-1, 1), (-1.001, 1.001)),
    "0 to 1": ((0, 1), (-0.001, 1.001)),
    "above 0, up to 0.5": ((0.001, 0.5), (0, 0.501)),
    "0 to below 1": ((0, 0.999), (-0.001, 1)),
    "a number above 0": ((1e-9, 1e9), (0, -1)),
    "0 to 180 degrees": ((0, 180), (-1, 180.1)),
    "0 to 1000 dB": ((0, 1000), (-1, 1000.1)),
    "0 to 100, as a share of the largest logit": ((0, 100, "auto"), (-1, 100.1)),
    "0 to below 3600": ((0, 3599.9), (-1, 3600)),
    "0 or more": ((0, 1e9), (-1,)),
    "0 (none) or more": ((0, 1e9), (-1,)),
    "a whole number from 0 on": ((0, 10**9), (-1,)),
    "at least 1": ((1, 10**9), (0,)),
    "0 to 5": ((0, 5), (-1, 6)),
    "0 to 64": ((0, 64), (-1, 65)),
    "a number from 1 to 64": ((1, 64), (0, 65)),
    "1 to 1024": ((1, 1024), (0, 1025)),
    "0 to 1,024": ((0, 1024), (-1, 1025)),
    "1 to 1,048,576": ((1, 1_048_576), (0, 1_048_577)),
    "1 to 10,000,000": ((1, 10_000_000), (0, 10_000_001)),
    "1 to 65,536": ((1, 65_536), (0, 65_537)),
    "1 to 16777216": ((1, 16_777_216), (0, 16_777_217)),
    "0 to 2**32 - 1": ((0, 2**32 - 1), (-1, 2**32)),
    "sizes from 1": (([], [1, 8]), ([1, 0],)),
    "up to 16 sizes from 1 to 65,536": (([], [1, 65_536], [8] * 16), ([0], [65_537], [8] * 17)),
    "at least one precision, each once": ((["int8"], ["int8", "fp32"]), ([], ["int8", "int8"])),
    "at least one share above 0": ((Splits(0, 0, 0, 0.1),), (Splits(0, 0, 0, 0),)),
    "1 <= min <= opt <= max <= 65,536": (
        (Profile(1, 1, 1), Profile(1, 8, 65_536)),
        (Profile(0, 1, 1), Profile(2, 1, 2), Profile(1, 3, 2), Profile(1, 8, 65_537)),
    ),
    NAMED.expected: (("a", "A9._-", "a" * 100), ("", ".a", "a/b", "a b", "ä", "a" * 101)),
}


@pytest.mark.parametrize("key", LIMITED)
def test_a_limit_is_where_its_words_say(key: str) -> None:
    expected = LIMITED[key].expected
    assert expected in EDGES, (
        f"Expected the values around {key}'s limit in EDGES. Received: no row for {expected!r} "
        "(use a limit of pipeline/recipe/limits.py, or add a row: what it just takes, what it just refuses)."
    )
    taken, refused = EDGES[expected]
    assert all(map(LIMITED[key].holds, taken))
    assert not any(map(LIMITED[key].holds, refused))


def test_a_variant_is_named_as_its_files_may_be() -> None:
    assert all(map(VARIANT_NAMED.holds, ("a", "batch_8", "a" * 100)))
    assert not any(map(VARIANT_NAMED.holds, ("", "A", "a-b", "a.b", "a/b", "a" * 101)))


@pytest.mark.parametrize(
    "kept",
    [
        "model.input_size=32",
        "model.input_size=600",
        "verify.max_images=50",
        "quantize.max_images=128",
        "build.strip_weights=true",
        "build.version_compatible=true",
    ],
)
def test_what_just_keeps_to_a_rule_is_taken(kept: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("data: {source: digits}\nmodel: {backbone: resnet20}")
    load_recipe(path, [kept])


@pytest.mark.parametrize("refused", ["model.input_size=31", "model.input_size=601", "quantize.max_images=127"])
def test_what_just_breaks_a_rule_is_refused(refused: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("data: {source: digits}\nmodel: {backbone: resnet20}")
    with pytest.raises(RecipeError, match=refused.partition("=")[0]):
        load_recipe(path, [refused])
