"""What the train and quantize stages say of their work, for the report: epochs, calibration, placement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.bounded_json import read_json_file
from export.int8.report import CalibrationReport, Distances
from export.placement_row import Placement
from export.records import from_json, read_record
from pipeline.errors import PipelineError

__all__ = ["CalibrationReport", "Distances", "Epoch", "read_calibration", "read_history", "read_placement"]


@dataclass(frozen=True)
class Epoch:
    """An epoch of a training; validation is None where there were no such images."""

    phase: str
    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float | None = None


def read_history(path: Path) -> tuple[Epoch, ...]:
    """The epochs of ``train/history.json``.

    Raises:
        PipelineError: missing or damaged; with the file and the key.
    """
    return tuple(_rows(Epoch, path, "training history", "Run the train stage again."))


def read_calibration(path: Path) -> CalibrationReport:
    """``quantize/calibration.json``.

    Raises:
        PipelineError: missing or damaged; with the file and the key.
    """
    remedy = "Run the quantize stage again."
    return read_record(CalibrationReport, path, remedy=remedy, what="calibration report")


def read_placement(path: Path) -> tuple[Placement, ...]:
    """What each node of the INT8 graph computes in, from ``quantize/placement.json``.

    Raises:
        PipelineError: missing or damaged; with the file and the key.
    """
    return tuple(_rows(Placement, path, "placement", "Run the quantize stage again."))


def _rows(kind: Any, path: Path, what: str, remedy: str) -> list[Any]:
    try:
        rows = read_json_file(path)
    except OSError as error:
        raise PipelineError(f"Expected the {what} {path}. Received: {error.strerror or error}. {remedy}") from error
    except ValueError as error:
        raise PipelineError(f"Expected JSON in {path}. Received: {error}. {remedy}") from error
    if not isinstance(rows, list):
        raise PipelineError(f"Expected a list in {path}. Received: {type(rows).__name__}. {remedy}")
    return [
        from_json(kind, row, f"{path}, entry {number}", remedy=remedy, what=what) for number, row in enumerate(rows)
    ]
