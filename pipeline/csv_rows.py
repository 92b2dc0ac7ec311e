"""Reads a CSV file that a stage wrote, strictly and within bounds: damage is one error that names file, row, column."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from export.errors import ProjectError
from pipeline.words import count

LONGEST_LINE = 2**16  # characters


@dataclass(frozen=True)
class Row:
    """A row of a file; its cells are read by name.

    Attributes:
        cells: by column.
        where: file and row, for messages.
        remedy: the last sentence of messages.
    """

    cells: dict[str, str]
    where: str
    remedy: str

    def number(self, name: str, *, finite: bool = True, low: float = -math.inf, high: float = math.inf) -> float:
        """A cell as a number.

        Raises:
            ProjectError: it is none, or out of bounds.
        """
        try:
            value = float(self.cells[name])
        except ValueError:
            value = math.nan
        if math.isnan(value) or not low <= value <= high or (finite and math.isinf(value)):
            bounds = f" from {low:g} to {high:g}" if math.isfinite(high) else ""
            raise self.error(name, f"a number{bounds}")
        return value

    def choice(self, name: str, choices: Sequence[str], what: str) -> str:
        """A cell that is one of some texts.

        Raises:
            ProjectError: it is none of them.
        """
        if self.cells[name] not in choices:
            raise self.error(name, what)
        return self.cells[name]

    def error(self, name: str, expected: str) -> ProjectError:
        """What is wrong with a cell."""
        return ProjectError(
            f"Expected {expected} as '{name}' in {self.where}. Received: {self.cells[name]!a:.80}. {self.remedy}"
        )


def read_rows(path: Path, columns: Sequence[str], remedy: str, most: int = 100_000) -> list[Row]:
    """The first rows of a CSV file with a header.

    Args:
        path: the file, UTF-8.
        columns: that must be there; others may be.
        remedy: the last sentence of messages: what to do.
        most: rows to read.

    Raises:
        ProjectError: missing, not CSV, without a column, or with a row of another length.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(iter(lambda: file.readline(LONGEST_LINE), ""), strict=True)
            lines = list(islice(reader, most + 1))
    except OSError as problem:
        raise ProjectError(f"Expected {path}. Received: {problem.strerror or problem}. {remedy}") from problem
    except (csv.Error, UnicodeDecodeError) as problem:
        raise ProjectError(f"Expected CSV in {path}. Received: {problem}. {remedy}") from problem
    head = lines[0] if lines else []
    if missing := [name for name in columns if head.count(name) != 1]:
        raise ProjectError(
            f"Expected the column '{missing[0]}' once in {path}. Received: {','.join(head)!a:.120}. {remedy}"
        )
    rows = []
    for index, cells in enumerate(lines[1:], 1):
        where = f"row {index} of {path}"
        if len(cells) != len(head):
            raise ProjectError(f"Expected {count(len(head), 'cell')} in {where}. Received: {len(cells)}. {remedy}")
        rows.append(Row(dict(zip(head, cells)), where, remedy))
    return rows
