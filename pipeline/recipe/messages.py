"""YAML parsed within bounds, and sentences about what a recipe does not take.

Parses YAML that somebody else wrote: never deeper, longer or larger than a recipe is, aliases counted in full.

Sentences about keys, values and names that a recipe does not take, for who writes YAML and knows no Python.
"""

import datetime
import os
import re
import shlex
import unicodedata
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from export.errors import RecipeError
from export.words import count
from pipeline.recipe.backbones import by_family
from pipeline.terminal.command_line import closest, meant

MOST_BYTES = 2**18  # the longest recipe of this project has 3 kB
MOST_VALUES = 10_000  # keys and values, an alias as many as it stands for; PyYAML reads some 20,000 a second
DEEPEST = 20  # a recipe has five levels
LONGEST_NUMBER = 100  # characters; whole numbers of thousands take Python quadratic time
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


class _Loader(yaml.SafeLoader):
    """Safe loading within bounds. It refuses a key given twice, of which YAML would silently take the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # of finished nodes, with what their aliases stand for
        self._heights: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > DEEPEST:
            raise _error(f"nested more than {DEEPEST} deep", mark)
        node: yaml.Node = super().compose_node(parent, index)  # type: ignore[assignment]  # None is for its stubs only
        self._depth -= 1
        if alias and node not in self._sizes:
            raise _error("an alias inside of what it stands for", mark)
        if not alias:
            inner = _inner(node)
            self._sizes[node] = 1 + sum(self._sizes[part] for part in inner)
            self._heights[node] = 1 + max((self._heights[part] for part in inner), default=0)
        if self._depth + self._heights[node] > DEEPEST:
            raise _error(f"nested more than {DEEPEST} deep", mark)
        if max(self._sizes[node], len(self._sizes)) > MOST_VALUES:
            raise _error(
                f"more than {MOST_VALUES:,} keys and values; a long list of class names belongs in a file", mark
            )
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise _error(f"a number of {count(len(node.value), 'character')}", node.start_mark)
        if _UNUSABLE.search(node.value):
            raise _error("a character that neither a file name nor a text file can hold", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # what is not is refused by PyYAML itself
                if key in seen:
                    raise _error(f"the key {shown(key)} is given twice", node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML within bounds of size, depth and number of values.

    Raises:
        ValueError: not YAML, or out of bounds; the message says which and where.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{count(len(text), 'character')}, where at most {MOST_BYTES:,} are read")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(_where_and_why(error)) from error
    except (OverflowError, LookupError, AttributeError) as error:
        raise ValueError(f"a tag such as !!int on what is none ({error})") from error


def shown(value: Any) -> str:
    """A value for a message: whole where it is short."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:160]} ... ({count(len(text), 'character')})"


def inline_yaml(value: Any) -> str:
    """A value as YAML in one line, quoted where it has to be."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).splitlines()[0]


def set_option(key: str, value: object) -> str:
    """``--set key=value`` to be pasted into a shell: the value is what YAML reads again, whatever characters it has."""
    return f"--set {shlex.quote(f'{key}={inline_yaml(str(value))}')}"


ADVICE = {  # by what PyYAML says
    "escape": "a backslash in double quotes begins an escape: write / in paths, or single quotes",
    "cannot start any token": "indent with spaces; quote a value that begins with a sign",
    "mapping values are not allowed": "quote a value that holds a colon; keys of one section begin in one column",
    "expected ',' or": "a list or section in brackets has commas between its parts, and ends with its bracket",
    "expected <block end>": "keys of one section begin in one column",
    "could not find expected ':'": "a key ends with a colon and a space",
}


def _where_and_why(error: yaml.YAMLError) -> str:
    """One line: line and column as an editor counts them, what was found there, and what helps."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return str(error)
    advice = next((text for said, text in ADVICE.items() if said in problem), "")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{f'; {advice}' if advice else ''}"


def _error(found: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, found, mark)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


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
    from pipeline.recipe.schema import SPLIT_NAMES  # it needs NumPy, and recipes are read without

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


def what_it_is(path: Path) -> str:
    """What lies at a path that is not the folder that was expected, and what to do about it."""
    suffix, written = path.suffix.lower(), str(path)
    kinds = {
        "which does not exist. The quotes are part of the name there; leave them out.": (
            not path.exists() and any(quote in written for quote in "\"'")
        ),
        "which does not exist. Backslashes are part of a name here; write / between folders.": (
            not path.exists() and os.sep == "/" and "\\" in written
        ),
        "which does not exist.": not path.exists(),
        "which is a folder with tables. It fits with --set data.source=csv.": any(path.glob("*.csv")),
        "which is a folder. With a subfolder for each class it fits with --set data.source=folder.": path.is_dir(),
        "which is an archive. Unpack it, and name the folder.": suffix in ARCHIVES,
        f"which is a file. It fits with --set data.source={suffix[1:]}.": suffix in (".npz", ".csv"),
        "which is one image. Name the folder that holds a folder of images for each class.": suffix in EXTENSIONS,
    }
    return next(
        (kind for kind, fits in kinds.items() if fits), "which is a file. Name a folder, a .csv or an .npz file."
    )
