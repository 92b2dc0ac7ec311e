"""Tables and records that stages wrote, read strictly and within bounds.

Reads a CSV file that a stage wrote, strictly and within bounds: damage is one error that names file, row, column.

What the infer stage wrote, as rows; read by the report, and by what decides whether the report is up to date.

What stages say of their work where others read it: results in manifests, calibration, placement.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

from export.errors import ProjectError
from export.int8.report import CalibrationReport, Placement
from export.records import read_record, read_records
from export.words import count
from pipeline.artifacts.paths import CARD, PREDICTIONS, Artifacts

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


THUMBNAILS = 24
COLUMNS = ("path", "status", "class", "probability", "error")
REMEDY = "Run the infer stage again."


@dataclass(frozen=True)
class Prediction:
    """A row of ``predictions.csv``.

    Attributes:
        path: of the image; relative to the stage's folder where infer wrote it.
        name: of its class; "" where it could not be read.
        probability: of that class.
        error: why it could not be read.
    """

    path: str
    name: str
    probability: float
    error: str


def read_predictions(path: Path, classes: tuple[str, ...]) -> list[Prediction]:
    """The rows that a page shows.

    Raises:
        ProjectError: damaged, or of other classes; with file, row and column.
    """
    found = []
    for row in read_rows(path, COLUMNS, REMEDY, THUMBNAILS):
        if row.choice("status", ("ok", "error"), "ok or error") == "error":
            found.append(Prediction(row.cells["path"], "", 0.0, row.cells["error"]))
            continue
        name = row.choice("class", classes, f"a class of {CARD}")
        found.append(Prediction(row.cells["path"], name, row.number("probability", low=0.0, high=1.0), ""))
    return found


def shown_images(artifacts: Artifacts) -> list[Path | None]:
    """The images that a page would read, as `image_file` gives them; none where ``predictions.csv`` cannot be read."""
    try:
        rows = read_rows(artifacts.path(PREDICTIONS), COLUMNS, REMEDY, THUMBNAILS)
    except ProjectError:
        return []
    return [image_file(artifacts, row.cells["path"]) for row in rows if row.cells["status"] == "ok"]


def image_file(artifacts: Artifacts, path: str) -> Path | None:
    """Where the image of a row is, or was; None for a path that the infer stage does not write.

    Args:
        artifacts: of the recipe.
        path: as the row has it: absolute, or ``images/NAME`` where infer wrote the image.
    """
    if PurePath(path).is_absolute():
        return Path(path)
    *folders, name = PurePath(path).parts or ("",)
    return artifacts.path(f"infer/images/{name}") if folders == ["images"] else None


def read_calibration(path: Path) -> CalibrationReport:
    """``quantize/calibration.json``.

    Raises:
        ProjectError: missing or damaged; with the file and the key.
    """
    remedy = "Run the quantize stage again."
    return read_record(CalibrationReport, path, remedy=remedy, what="calibration report")


def read_placement(path: Path) -> tuple[Placement, ...]:
    """What each node of the INT8 graph computes in, from ``quantize/placement.json``.

    Raises:
        ProjectError: missing or damaged; with the file and the key.
    """
    return read_records(Placement, path, remedy="Run the quantize stage again.", what="placement")
