"""Which TensorRT has which name: the table that is kept in the repository.

Standard library only: `tests/orin` asks it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

Answers = Mapping[str, "bool | None"]  # by name, such as "BuilderFlag.FP16"; None: was not read

TABLE = Path(__file__).with_name("names.txt")
HEAD = """\
# The names of TensorRT that the fakes in tests/ have, and which version has them, read off the real bindings:
# Y has it, . lacks it, ? was not read. Written by `make contract`.
"""
_CELLS = {True: "Y", False: ".", None: "?"}


@functools.cache
def read_table() -> Mapping[str, Answers]:
    """Read the table of the repository: version to name to whether it has it."""
    head, *lines = [line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    rows = {name: cells for name, *cells in lines}
    answers = {cell: answer for answer, cell in _CELLS.items()}
    return {version: {name: answers[cells[at]] for name, cells in rows.items()} for at, version in enumerate(head)}


def write_table(apis: Mapping[str, set[str]], names: Iterable[str]) -> None:
    """Write the rows of some names; a version of the table that was not read now keeps its answers.

    Args:
        apis: version to all names that its bindings have.
        names: those to write.
    """
    rows, old = sorted(set(names)), read_table()
    table = {version: {name: kept.get(name) for name in rows} for version, kept in old.items()}
    table |= {version: {name: name in api for name in rows} for version, api in apis.items()}
    versions = sorted(table, key=_order)
    width = max(map(len, rows)) + 1
    lines = [" " * width + " ".join(versions)]
    for name in rows:
        cells = [_CELLS[table[version][name]].ljust(len(version)) for version in versions]
        lines.append(f"{name:{width}}{' '.join(cells)}".rstrip())
    TABLE.write_text(HEAD + "\n".join(lines) + "\n")
    read_table.cache_clear()


def _order(version: str) -> tuple[bool, list[int]]:
    return version.startswith("rtx"), [int(part) for part in version.removeprefix("rtx").split(".")]
