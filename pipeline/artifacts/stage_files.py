"""Read tables and records that stages wrote: CSV files, predictions, calibration and placement.

Files are read strictly and within bounds; damage raises one error with the file and the row and column, or the key.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

from export.errors import ProjectError
from export.int8.report import CalibrationReport, Placement, PlacementReport
from export.records import read_record
from export.words import count
from pipeline.artifacts.paths import CARD, PREDICTIONS, Artifacts

LONGEST_LINE = 2**16  # characters


@dataclass(frozen=True)
class Row:
    """A row of a CSV file.

    Attributes:
        cells: Cells by column name.
        where: File and row, for messages.
        remedy: Last sentence of messages: what to do.
    """

    cells: dict[str, str]
    where: str
    remedy: str

    def number(self, name: str, *, finite: bool = True, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a cell as a number.

        Args:
            name: Column.
            finite: Whether to refuse infinities. Defaults to True.
            low: Smallest value. Defaults to no bound.
            high: Largest value. Defaults to no bound.

        Raises:
            ProjectError: The cell is not a number, or out of bounds.
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
        """Return a cell that must be one of ``choices``; ``what`` describes them in the message.

        Raises:
            ProjectError: The cell is none of them.
        """
        if self.cells[name] not in choices:
            raise self.error(name, what)
        return self.cells[name]

    def error(self, name: str, expected: str) -> ProjectError:
        """Build the error for a cell that is not as expected."""
        return ProjectError(
            f"Expected {expected} as '{name}' in {self.where}. Received: {self.cells[name]!a:.80}. {self.remedy}"
        )


def read_rows(path: Path, columns: Sequence[str], remedy: str, most: int = 100_000) -> list[Row]:
    """Read the first rows of a CSV file with a header.

    Args:
        path: The file, in UTF-8.
        columns: Columns that it must have, besides any others.
        remedy: Last sentence of messages: what to do.
        most: Most rows to read. Defaults to 100,000.

    Raises:
        ProjectError: The file is missing, is not CSV, lacks a column, or has a row of another length.
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
    if ragged := next((index for index, cells in enumerate(lines) if len(cells) != len(head)), 0):
        raise ProjectError(
            f"Expected {count(len(head), 'cell')} in row {ragged} of {path}. Received: {len(lines[ragged])}. {remedy}"
        )
    return [Row(dict(zip(head, cells)), f"row {n} of {path}", remedy) for n, cells in enumerate(lines[1:], 1)]


THUMBNAILS = 24
COLUMNS = ("path", "status", "class", "probability", "error")
REMEDY = "Run the infer stage again."


@dataclass(frozen=True)
class Prediction:
    """A row of ``predictions.csv``.

    Attributes:
        path: Path of the image; relative to the stage's folder if the infer stage wrote it.
        name: Name of its class; "" if the image could not be read.
        probability: Probability of that class.
        error: Why the image could not be read; "" if it could.
    """

    path: str
    name: str
    probability: float
    error: str


def read_predictions(path: Path, classes: tuple[str, ...]) -> list[Prediction]:
    """Read the predictions that a page shows, the first `THUMBNAILS`.

    Raises:
        ProjectError: The file is damaged, or names other classes; with file, row and column.
    """
    return [_prediction(row, classes) for row in read_rows(path, COLUMNS, REMEDY, THUMBNAILS)]


def _prediction(row: Row, classes: tuple[str, ...]) -> Prediction:
    if row.choice("status", ("ok", "error"), "ok or error") == "error":
        return Prediction(row.cells["path"], "", 0.0, row.cells["error"])
    name = row.choice("class", classes, f"a class of {CARD}")
    return Prediction(row.cells["path"], name, row.number("probability", low=0.0, high=1.0), "")


def shown_images(artifacts: Artifacts) -> list[Path | None]:
    """List the images that a page shows, see `image_file`; empty if ``predictions.csv`` cannot be read."""
    try:
        rows = read_rows(artifacts.path(PREDICTIONS), COLUMNS, REMEDY, THUMBNAILS)
    except ProjectError:
        return []
    return [image_file(artifacts, row.cells["path"]) for row in rows if row.cells["status"] == "ok"]


def image_file(artifacts: Artifacts, path: str) -> Path | None:
    """Return the path of a row's image, which may not exist; None for a path that the infer stage does not write.

    Args:
        artifacts: Artifacts of the recipe.
        path: Path in the row: absolute, or ``images/NAME`` if the infer stage wrote the image.
    """
    if PurePath(path).is_absolute():
        return Path(path)
    *folders, name = PurePath(path).parts or ("",)
    return artifacts.path(f"infer/images/{name}") if folders == ["images"] else None


def read_calibration(path: Path) -> CalibrationReport:
    """Read ``quantize/calibration.json``.

    Raises:
        ProjectError: It is missing or damaged; with the file and the key.
    """
    return read_record(CalibrationReport, path, remedy="Run the quantize stage again.", what="calibration report")


def read_placement(path: Path) -> tuple[Placement, ...]:
    """Read the precision of each node of the INT8 graph from ``quantize/placement.json``.

    Raises:
        ProjectError: It is missing, damaged or of another schema; with the file and the key.
    """
    return read_record(PlacementReport, path, remedy="Run the quantize stage again.", what="placement").nodes
