"""What the train and quantize stages say of their work, for the report: epochs, calibration, placement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.int8.report import CalibrationReport
from export.placement_row import Placement
from export.records import read_record, read_records


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
        ProjectError: missing or damaged; with the file and the key.
    """
    return read_records(Epoch, path, remedy="Run the train stage again.", what="training history")


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
