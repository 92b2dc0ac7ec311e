"""What the infer stage wrote, as rows; read by the report, and by what decides whether the report is up to date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.errors import ProjectError
from pipeline.csv_rows import read_rows
from pipeline.layout import CARD, PREDICTIONS

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


def shown_images(root: Path) -> list[Path]:
    """The images that a page would read; none where ``predictions.csv`` cannot be read."""
    try:
        rows = read_rows(root / PREDICTIONS, COLUMNS, REMEDY, THUMBNAILS)
    except ProjectError:
        return []
    return [root / "infer" / row.cells["path"] for row in rows if row.cells["status"] == "ok"]
