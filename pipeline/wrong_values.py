"""Sentences about keys, values and names that a recipe does not take, for who writes YAML and knows no Python."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline.backbones import by_family
from pipeline.bounded_yaml import inline_yaml, shown
from pipeline.errors import RecipeError
from pipeline.usage import closest, meant

CHOOSE = "CHOOSE"  # what `inspect` leaves in a recipe where the model's file does not say
TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_NOTHING = ("none", "null", "nil")


def means_nothing(value: Any) -> bool:
    """Whether somebody wrote a word for no value that YAML reads as text: ``None``, or a quoted null."""
    return isinstance(value, str) and value.strip().lower() in _NOTHING


def nothing_is_null(where: str, value: str) -> RecipeError:
    """The error for such a word."""
    return RecipeError(
        f"{where}: expected a value, or null for none. Received: the text {shown(value)}. Write null, without quotes."
    )


def wrong_type(where: str, expected: type, value: Any) -> RecipeError:
    """The error for a value of another type.

    Args:
        where: the key.
        expected: int, float, str or bool.
        value: as YAML reads it.
    """
    advice = ""
    if expected is str and isinstance(value, (int, float, datetime.date)):
        quoted = f'"{_inline(value)}"'
        advice = f" Put it in quotes: {quoted}; on a command line --set '{where}={quoted}'."
    return RecipeError(f"{where}: expected {TYPES[expected]}. Received: {_received(value)}.{advice}")


def no_choice(where: str, choices: Sequence[Any], value: Any, besides: str = "") -> RecipeError:
    """The error for a value that is none of some, the one that was meant before a long list of them.

    Args:
        where: the key.
        choices: the values that it takes.
        value: as YAML reads it.
        besides: what it takes as well, in words. Defaults to "": nothing.
    """
    if value == CHOOSE and "auto" in choices:
        known = ", ".join(str(one) for one in choices if one != "auto")
        return RecipeError(f"{where}: expected one of {known}. Received: {CHOOSE}, as `inspect` wrote it. Fill it in.")
    if where == "model.backbone":
        near = closest(value, choices)
        said = f"{where}: expected a backbone. Received: {_received(value)}.{meant(value, choices)}"
        return RecipeError(f"{said} There are {by_family(near=near)}.")
    known = ", ".join(_inline(one) for one in choices)
    known = f"{besides} or {known}" if besides else known if len(choices) == 1 else f"one of {known}"
    return RecipeError(f"{where}: expected {known}. Received: {_received(value)}.{meant(value, choices)}")


def no_list(where: str, item: Any, value: Any) -> RecipeError:
    """The error for a value that should stand in brackets.

    Args:
        where: the key.
        item: the type of the list's items.
        value: as YAML reads it.
    """
    said = f"{where}: expected a list. Received: {_received(value)}."
    if isinstance(value, dict):
        return RecipeError(said)
    items = [] if value is None else [_inline(value)]
    if isinstance(value, str):  # a space parts what is no text, and may stand in the name of a layer
        items = [part.strip() for part in re.split("," if item is str else r"[,\s]+", value) if part.strip()]
        items = [_inline(part) if item is str else part for part in items]
    line = f"[{', '.join(items)}]"
    return RecipeError(f"{said} Write {line}; on a command line --set '{where}={line}'.")


def missing_space(where: str, text: Any, keys: Collection[str]) -> RecipeError | None:
    """The error where YAML took a key, its colon and its value for one word, as of ``{train:0.8}``; None elsewhere.

    Args:
        where: the section; "" for the recipe.
        text: what stands where a key, or keys and values, are due.
        keys: those that are known there.
    """
    name, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not rest or name not in keys:
        return None
    return RecipeError(
        f"{where or 'recipe'}: expected a space behind each colon. Received: {text[:200]}. Write {name}: {rest[:200]}."
    )


def other_split(key: Any, keys: Collection[str]) -> str:
    """The split that goes by another name elsewhere, as a folder may: val, testing, calib; empty where none is."""
    from pipeline.samples import SPLIT_NAMES  # it needs NumPy, and recipes are read without

    name = SPLIT_NAMES.get(str(key).lower())
    return f" Did you mean {name!r}?" if name in keys else ""


def file_name(path: Path) -> RecipeError:
    """The error for a recipe without ``name`` whose file's name names no folder, in terms of the file."""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:100] or "mine"
    return RecipeError(
        "Expected a recipe's file with a name of up to 100 letters (a to z), digits, '.', '_' and '-', because it "
        f"names a folder as well. Received: {path}. Rename the file, such as to {fitting}.yaml, or add this line to "
        f"it: name: {fitting}"
    )


def _received(value: Any) -> str:
    """A value as a recipe shows it, with what it is where the sight of it does not tell."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return _inline(value)
    if isinstance(value, datetime.date):
        return f"{value}, a date"
    return f"{shown(value)}, a number" if isinstance(value, (int, float)) else shown(value)


def _inline(value: Any) -> str:
    """A value as YAML in one line; numbers, dates and words as they are."""
    return inline_yaml(value).removesuffix("\n...")
