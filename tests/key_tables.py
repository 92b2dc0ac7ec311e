"""``make key-tables``: the tables of a recipe's keys in README.md and docs/recipe.md, made from the fields themselves.

A table stands between ``<!-- keys of SECTION -->`` and ``<!-- end of keys -->``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from export.files import ROOT
from export.words import listed
from pipeline.recipe.limits import Limit
from pipeline.recipe.load import to_dict
from pipeline.recipe.messages import TYPES
from pipeline.recipe.schema import Recipe

PAGES = ("README.md", "docs/recipe.md")
HEAD = "| key | default | takes | what |\n|---|---|---|---|"
TABLE = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
MOST_CHOICES = 8


def with_tables(page: str) -> str:
    """A page with every table of keys as the fields say now."""
    recipe = Recipe("that-of-the-file")
    sections = {"recipe": recipe, **vars(recipe)}
    return TABLE.sub(lambda found: f"{found[1]}{key_table(sections[found[2]])}\n{found[3]}", page)


def key_table(section: Any) -> str:
    """The keys of a section in Markdown, those of the sections in it by dotted names."""
    return "\n".join([HEAD, *rows(section)])


def rows(section: Any, prefix: str = "") -> Iterator[str]:
    usual = to_dict(section)
    for name, kind in get_type_hints(type(section), include_extras=True).items():
        value, notes = getattr(section, name), get_args(kind)[1:] if get_origin(kind) is Annotated else ()
        told = next((note for note in notes if isinstance(note, str)), "")
        if dataclasses.is_dataclass(value) and not told:
            if not isinstance(section, Recipe):
                yield from rows(value, f"{prefix}{name}.")
            continue
        takes = next((note.expected for note in notes if isinstance(note, Limit)), None) or type_words(kind)
        plain = get_args(kind)[0] if notes else kind
        takes += " or null" if type(None) in get_args(plain) else ""
        default = yaml.safe_dump(usual[name], default_flow_style=True, sort_keys=False, width=10**6).splitlines()[0]
        yield f"| `{prefix}{name}` | `{default}` | {takes} | {told} |"


def type_words(kind: Any) -> str:
    """What a key of a type takes: its choices, or what such a value is called."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_words(args[0])
    if origin is Literal:
        return listed([f"`{choice}`" for choice in args], MOST_CHOICES)
    if origin is tuple:
        return f"a list: {type_words(args[0])}"
    if origin is Mapping:
        return f"names, each with {type_words(args[1])}"
    if origin in (Union, UnionType):
        lists_last = sorted(args, key=lambda one: get_origin(one) is tuple)
        return " or ".join(type_words(one) for one in lists_last if one is not type(None))
    return "keys and values" if dataclasses.is_dataclass(kind) else TYPES[kind]


if __name__ == "__main__":
    for page in (ROOT / name for name in PAGES):
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
