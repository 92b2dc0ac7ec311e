"""What the quantize stage says of its work, for the report: calibration, placement."""

from __future__ import annotations

from pathlib import Path

from export.int8.report import CalibrationReport
from export.placement_row import Placement
from export.records import read_record, read_records


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
