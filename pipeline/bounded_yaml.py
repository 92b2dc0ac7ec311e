"""Parses YAML that somebody else wrote: never deeper, longer or larger than a recipe is, aliases counted in full."""

from __future__ import annotations

import re
import shlex
from collections.abc import Hashable
from typing import Any

import yaml

from pipeline.words import count

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
