"""Which TensorRT has which name: of all bindings, or of the table that is kept in the repository."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.capabilities import TensorRT

TABLE = Path(__file__).with_name("names.txt")
HEAD = """\
# The names of TensorRT that our code uses or asks for, and which version has them, read off the real bindings:
# Y has it, . lacks it, ? was not read. The last column is what it gives. Written by `make contract`.
"""


@dataclass(frozen=True)
class Library:
    """The names of one TensorRT."""

    version: str
    names: Mapping[str, bool | None]
    complete: bool = False  # all names of the bindings are known: another is none of theirs

    def has(self, name: str) -> bool | None:
        """Whether the version has a name; None where the table does not know."""
        return self.names.get(name, False if self.complete else None)

    def capability(self, name: str) -> Any:
        """What our code makes of a library with these names."""
        module = types.SimpleNamespace()
        for full in sorted(one for one, has in self.names.items() if has and not one.startswith("*")):
            owner: Any = module
            *path, last = full.split(".")
            for part in path:
                owner = vars(owner).setdefault(part, types.SimpleNamespace(__members__={}))
            vars(owner).setdefault(last, types.SimpleNamespace(__members__={}))
            if path:
                owner.__members__[last] = last
        return getattr(TensorRT(module, "rtx" if "rtx" in self.version else "tensorrt", self.version), name)


@dataclass(frozen=True)
class Table:
    """The names of several versions, and what each gives ("Class.attribute" to classes)."""

    libraries: Sequence[Library]
    returns: Mapping[str, Sequence[str]]


def table_of(apis: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]) -> Table:
    """Make a table of all names that were read: version to class to attribute to classes."""
    returns: dict[str, set[str]] = {}
    for api in apis.values():
        for owner, attributes in api.items():
            for attribute, types_ in attributes.items():
                returns.setdefault(f"{owner}.{attribute}", set()).update(types_)
    every = {*returns, *(owner for api in apis.values() for owner in api)}
    every |= {f"*.{name.rpartition('.')[2]}" for name in returns}
    libraries = [Library(version, {name: _in(api, name) for name in every}, True) for version, api in apis.items()]
    return Table(libraries, {name: sorted(found) for name, found in returns.items()})


def _in(api: Mapping[str, Mapping[str, Sequence[str]]], name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    if owner == "*":
        return any(attribute in attributes for attributes in api.values())
    return name in api or attribute in api.get(owner, ())


def read_table() -> Table:
    """Read the table of the repository."""
    head, *lines = [line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    answers: dict[str, dict[str, bool | None]] = {version: {} for version in head}
    returns: dict[str, Sequence[str]] = {}
    for name, *fields in lines:
        for version, answer in zip(head, fields):
            answers[version][name] = {"Y": True, ".": False}.get(answer)
        if "." in name:
            returns[name] = fields[len(head) :]
    return Table([Library(version, names) for version, names in answers.items()], returns)


def write_table(table: Table, names: Iterable[str], old: Table) -> None:
    """Write the rows of some names; a version of the old table that the new one lacks keeps its answers."""
    read_now = {one.version for one in table.libraries}
    kept = {one.version: one for one in old.libraries if one.version not in read_now}
    libraries = sorted((*table.libraries, *kept.values()), key=lambda one: _order(one.version))
    rows = sorted(set(names))
    width = max(map(len, rows)) + 1
    lines = [" " * width + " ".join(one.version for one in libraries)]
    for name in rows:
        cells = [{True: "Y", False: ".", None: "?"}[one.has(name)].ljust(len(one.version)) for one in libraries]
        gives = table.returns.get(name) or old.returns.get(name, ())
        lines.append(f"{name:{width}}{' '.join(cells)} {' '.join(gives)}".rstrip())
    TABLE.write_text(HEAD + "\n".join(lines) + "\n")


def _order(version: str) -> tuple[bool, list[int]]:
    return version.startswith("rtx"), [int(part) for part in version.removeprefix("rtx").split(".")]
