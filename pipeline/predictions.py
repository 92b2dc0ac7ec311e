"""What the infer stage wrote, as rows; read by the report, and by what decides whether the report is up to date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from export.errors import ProjectError
from pipeline.artifacts import Artifacts
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
