"""Parse untrusted YAML within bounds, and build the errors for keys and values that a recipe does not accept.

Nesting, length and the number of values are bounded, with aliases expanded. Messages use the terms of YAML, not of
Python.
"""

import datetime
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from export.errors import RecipeError
from export.words import count
from pipeline.recipe.backbones import by_family
from pipeline.recipe.schema import SPLIT_NAMES
from pipeline.terminal.command_line import closest, suggest_closest

MOST_BYTES = 2**18  # the longest recipe of this project has 3 kB
MOST_VALUES = 10_000  # keys and values, with aliases expanded; PyYAML reads some 20,000 per second
DEEPEST = 20  # a recipe has five levels
LONGEST_NUMBER = 100  # characters; Python takes quadratic time for integers of thousands of digits
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


class _Loader(yaml.SafeLoader):
    """Safe loader with bounds that also refuses duplicate keys, of which YAML would silently take the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # number of values in finished nodes, with aliases expanded
        self._heights: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > DEEPEST:
            raise _error(f"nested more than {DEEPEST} deep", mark)
        node: yaml.Node = super().compose_node(parent, index)  # type: ignore[assignment]  # None only in its stubs
        self._depth -= 1
        if alias and node not in self._sizes:
            raise _error("an alias inside of what it stands for", mark)
        if not alias:
            inner = [] if isinstance(node, yaml.ScalarNode) else node.value
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in inner for part in pair]
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
        keys = [self.construct_object(key_node, deep=True) for key_node, _ in node.value]
        counts = Counter(key for key in keys if isinstance(key, Hashable))  # PyYAML refuses the others
        if twice := [key for key, number in counts.items() if number > 1]:
            raise _error(f"the key {format_value(twice[0])} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML within bounds of size, depth and number of values.

    Raises:
        ValueError: It is not YAML, or out of bounds; the message says which and where.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{count(len(text), 'character')}, where at most {MOST_BYTES:,} are read")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(_where_and_why(error)) from error
    except (OverflowError, LookupError, AttributeError) as error:
        raise ValueError(f"a tag such as !!int on what is none ({error})") from error


def format_value(value: Any) -> str:
    """Return a value for a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:160]} ... ({count(len(text), 'character')})"


def inline_yaml(value: Any) -> str:
    """Return a value as YAML in one line, quoted where necessary."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).splitlines()[0]


def set_option(key: str, value: object) -> str:
    """Return ``--set key=value`` to paste into a shell; YAML reads the value unchanged, whatever characters it has."""
    return f"--set {shlex.quote(f'{key}={inline_yaml(str(value))}')}"


ADVICE = {  # by a part of PyYAML's message
    "escape": "a backslash in double quotes begins an escape: write / in paths, or single quotes",
    "cannot start any token": "indent with spaces; quote a value that begins with a sign",
    "mapping values are not allowed": "quote a value that holds a colon; keys of one section begin in one column",
    "expected ',' or": "a list or section in brackets has commas between its parts, and ends with its bracket",
    "expected <block end>": "keys of one section begin in one column",
    "could not find expected ':'": "a key ends with a colon and a space",
}


def _where_and_why(error: yaml.YAMLError) -> str:
    """Return line and column as an editor counts them, the problem, and advice, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return str(error)
    advice = next((f"; {text}" for part, text in ADVICE.items() if part in problem), "")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{advice}"


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, problem, mark)


ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | ({".heic", ".heif"} if find_spec("pillow_heif") else set())  # an optional package
)
CHOOSE = "CHOOSE"  # placeholder that `inspect` writes into a recipe for what the model's file does not tell
TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def is_null_word(value: Any) -> bool:
    """Return whether a text was meant as no value, such as ``None`` or a quoted null."""
    return isinstance(value, str) and value.strip().lower() in ("none", "null", "nil")


def wrong_type(where: str, expected: type, value: Any) -> RecipeError:
    """Build the error for a value of another type.

    Args:
        where: Dotted key.
        expected: int, float, str or bool.
        value: Value as YAML reads it.
    """
    advice = ""
    if expected is str and isinstance(value, (int, float, datetime.date)):
        quoted = f'"{_inline(value)}"'
        advice = f" Put it in quotes: {quoted}; on a command line --set '{where}={quoted}'."
    return RecipeError(f"{where}: expected {TYPES[expected]}. Received: {_received(value)}.{advice}")


def choice_error(where: str, choices: Sequence[Any], value: Any, besides: str = "") -> RecipeError:
    """Build the error for a value that is not one of the choices, with the closest choice.

    Args:
        where: Dotted key.
        choices: Values that the key accepts.
        value: Value as YAML reads it.
        besides: Description of other values that it accepts. Defaults to "": none.
    """
    if value == CHOOSE and "auto" in choices:
        known = ", ".join(str(choice) for choice in choices if choice != "auto")
        return RecipeError(f"{where}: expected one of {known}. Received: {CHOOSE}, as `inspect` wrote it. Fill it in.")
    received = f"Received: {_received(value)}.{suggest_closest(value, choices)}"
    if where == "model.backbone":  # the closest one comes before the long list
        families = by_family(near=closest(value, choices))
        return RecipeError(f"{where}: expected a backbone. {received} There are {families}.")
    known = ", ".join(_inline(choice) for choice in choices)
    if besides or len(choices) > 1:
        known = f"{besides} or {known}" if besides else f"one of {known}"
    return RecipeError(f"{where}: expected {known}. {received}")


def list_error(where: str, item: Any, value: Any) -> RecipeError:
    """Build the error for a value that should be a list.

    Args:
        where: Dotted key.
        item: Type of the list's items.
        value: Value as YAML reads it.
    """
    message = f"{where}: expected a list. Received: {_received(value)}."
    if isinstance(value, dict):
        return RecipeError(message)
    items = [] if value is None else [_inline(value)]
    if isinstance(value, str):  # spaces separate numbers, but may occur in a text such as a layer's name
        parts = [part.strip() for part in re.split("," if item is str else r"[,\s]+", value)]
        items = [_inline(part) if item is str else part for part in parts if part]
    line = f"[{', '.join(items)}]"
    return RecipeError(f"{message} Write {line}; on a command line --set '{where}={line}'.")


def missing_space(where: str, text: Any, keys: Collection[str]) -> RecipeError | None:
    """Build the error for a key without a space after its colon, such as ``{train:0.8}``; None for anything else.

    Args:
        where: Section; "" for the recipe.
        text: What was found in place of a key, or of keys and values.
        keys: Keys of the section.
    """
    name, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not rest or name not in keys:
        return None
    return RecipeError(
        f"{where or 'recipe'}: expected a space after each colon. Received: {text[:200]}. Write {name}: {rest[:200]}."
    )


def other_split(key: Any, keys: Collection[str]) -> str:
    """Suggest the split for another common name of it, such as val, testing or calib; empty for other keys."""
    name = SPLIT_NAMES.get(str(key).lower())
    return f" Did you mean {name!r}?" if name in keys else ""


def file_name(path: Path) -> RecipeError:
    """Build the error for a recipe without ``name`` whose file's name is not a valid folder name."""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:100] or "mine"
    return RecipeError(
        "Expected a recipe's file with a name of up to 100 letters (a to z), digits, '.', '_' and '-', because it "
        f"names a folder as well. Received: {path}. Rename the file, such as to {fitting}.yaml, or add this line to "
        f"it: name: {fitting}"
    )


def _received(value: Any) -> str:
    """Return a value as a recipe shows it, with its type where that is not obvious."""
    if value is None or isinstance(value, bool):
        return "nothing (null)" if value is None else _inline(value)
    if isinstance(value, datetime.date):
        return f"{value}, a date"
    return f"{format_value(value)}, a number" if isinstance(value, (int, float)) else format_value(value)


def _inline(value: Any) -> str:
    """Return a value as YAML in one line, without the end marker that follows plain numbers, dates and words."""
    return inline_yaml(value).removesuffix("\n...")


def describe_path(path: Path) -> str:
    """Describe what is at a path where a folder of images was expected, and what to do about it."""
    suffix = path.suffix.lower()
    kinds = {
        "which does not exist. The quotes are part of the name there; leave them out.": (
            not path.exists() and any(quote in str(path) for quote in "\"'")
        ),
        "which does not exist. Backslashes are part of a name here; write / between folders.": (
            not path.exists() and os.sep == "/" and "\\" in str(path)
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
