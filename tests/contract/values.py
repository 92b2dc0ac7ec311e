"""What an expression of our source may be, as far as TensorRT is concerned, and what is known of all files together.

A value is a tuple: ("object", C) and ("class", C) for a class C of TensorRT, ("module",) for the library itself,
("own", C) for an instance of our class C, ("own class", C), ("function", F), ("property", F), ("source", M) for a
module of ours, ("text", literal, place), and two containers: ("many", value) and ("tuple", what the first may be, the
second, …).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Value = tuple[Any, ...]
Values = frozenset[Value]
Guard = tuple[str, str, bool]  # ("capability" or "name", which one, whether it holds)
NOTHING: Values = frozenset()
WRAPPER = "TensorRT"  # our class that holds the library
DEPTH = 4  # containers within containers that are followed


@dataclass(frozen=True)
class Site:
    """A place in the source."""

    path: str
    line: int
    column: int
    function: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Use:
    """A name of TensorRT that the code asks of it, such as "Builder.create_network", and what holds there.

    "*.name" stands for an attribute of an object that could not be followed, by its name one of TensorRT's.
    """

    name: str
    site: Site
    guards: frozenset[Guard]


@dataclass
class Result:
    """What the source wants of TensorRT: what it uses, what it asks for with `hasattr` and `has`, and where it takes
    the answers: attributes of our object that holds the library.
    """

    uses: set[Use] = field(default_factory=set)
    asked: dict[str, set[Site]] = field(default_factory=dict)
    consulted: dict[str, set[Site]] = field(default_factory=dict)


class Known:
    """What is known of all files together: it only grows, until nothing changes."""

    def __init__(self, returns: Mapping[str, Sequence[str]]) -> None:
        self.returns = returns
        self.classes = {name.rpartition(".")[0] for name in returns}
        last = {name.rpartition(".")[2] for name in returns}
        self.telling = {name for name in last if "_" in name and name.islower()} - set(dir(builtins))
        self.values: dict[tuple[str, str], Values] = {}  # by scope and name; a class is the scope of its attributes
        self.scopes: set[str] = set()
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.bases: dict[str, Values] = {}
        self.fields: dict[str, list[str]] = {}  # of our classes, in the order of a dataclass' arguments
        self.callers: dict[str, list[Site]] = {}
        self.guards: dict[Site, frozenset[Guard]] = {}
        self.result = Result()
        self.changed = True

    def add(self, scope: str, name: str, values: Values) -> None:
        """Note what a name may be."""
        old = self.values.get((scope, name), NOTHING)
        new = old | frozenset(one for one in values if _depth(one) <= DEPTH)
        if new != old:
            self.values[scope, name] = new
            self.changed = True

    def get(self, scope: str, name: str) -> Values:
        """Look a name up in a scope and those around it."""
        while scope:
            found = self.values.get((scope, name))
            if found is not None:
                return self._resolved(found)
            scope = scope.rpartition(".")[0]
        return NOTHING

    def exactly(self, scope: str, name: str) -> Values:
        """Look a name up in one scope; what a function gives is its "return"."""
        return self._resolved(self.values.get((scope, name), NOTHING))

    def member(self, owner: str, name: str) -> Values:
        """Look up an attribute or method of our class, in its bases too."""
        found = self.exactly(owner, name)
        for base in self._resolved(self.bases.get(owner, NOTHING)):
            if base[0] == "own class" and base[1] != owner:
                found |= self.member(base[1], name)
        return found

    def _resolved(self, values: Values) -> Values:
        for _ in range(DEPTH):  # a module may pass on what it imports
            values = frozenset(found for one in values for found in self._import(one))
        return frozenset(one for one in values if one[0] != "import")

    def _import(self, value: Value) -> Values:
        if value[0] != "import":
            return frozenset({value})
        module = f"{value[1]}.{value[2]}"
        if module in self.scopes:
            return frozenset({("source", module)})
        return self.values.get((value[1], value[2]), NOTHING)

    def uses(self) -> set[Use]:
        """The uses, each with what holds in its function because it holds wherever that is called."""
        holds: dict[str, frozenset[Guard]] = {}
        for _ in range(8):  # calls under a condition are not nested deeper
            for function, sites in self.callers.items():
                each = [self.guards[site] | holds.get(site.function, frozenset()) for site in sites]
                holds[function] = frozenset.intersection(*each)
        return {
            Use(use.name, use.site, use.guards | holds.get(use.site.function, frozenset())) for use in self.result.uses
        }


def _depth(value: Value) -> int:
    if value[0] == "many":
        return 1 + _depth(value[1])
    if value[0] == "tuple":
        return 1 + max((_depth(one) for part in value[1:] for one in part), default=0)
    return 0


def joined(parts: Any) -> Values:
    """The values of several."""
    return frozenset().union(*parts)


def many(values: Values) -> Values:
    """A container of these."""
    return frozenset(("many", one) for one in values)


def each(values: Values) -> Values:
    """What iterating over these gives."""
    return joined(
        [{one[1]} for one in values if one[0] == "many"]
        + [part for one in values if one[0] == "tuple" for part in one[1:]]
    )


def named(base: Value, name: str) -> list[str]:
    """The full name of an attribute of a TensorRT value."""
    if name.startswith("__"):
        return []
    if base[0] == "module":
        return [name]
    return [f"{base[1]}.{name}"] if base[0] in ("object", "class") else []
