"""Refuse test images that the quantize stage saw: its scales, and what it kept in float, were chosen on them."""

from collections.abc import Iterable
from pathlib import Path

from export.errors import DataError, ProjectError
from export.records import read_json_file
from export.words import count, listed
from pipeline.artifacts.paths import CALIBRATION_IMAGES, Artifacts
from pipeline.data.sample import Sample

REMEDY = "Run the recipe's quantize stage again."


def refuse_calibration_images(samples: Iterable[Sample], artifacts: Artifacts) -> None:
    """Refuse images that made the INT8 file, those held out to judge its scales included.

    A verdict on them says how well the file knows its own images. The splits keep a picture on one side, but files that
    were quantized with other splits, or with other data, may still be there.

    Args:
        samples: Test images.
        artifacts: The recipe's; ``quantize/images.json`` has the calibration images, if there is one.

    Raises:
        DataError: Some are calibration images; with their names.
        ProjectError: ``quantize/images.json`` is damaged.
    """
    if not artifacts.has(CALIBRATION_IMAGES):
        return
    calibrated = _names_by_sha256(artifacts.path(CALIBRATION_IMAGES))
    if common := [sample for sample in samples if sample.sha256 in calibrated]:
        pairs = [
            name if name == (other := calibrated[sample.sha256]) else f"{name} (calibrated as {other})"
            for sample in common
            for name in [sample.name]
        ]
        raise DataError(
            "Expected test images that did not calibrate the INT8 file. Received: "
            f"{count(len(common), 'test image')} of {CALIBRATION_IMAGES}: {listed(pairs)}. {REMEDY} Its images and "
            "the test images then have nothing in common."
        )


def _names_by_sha256(path: Path) -> dict[str, str]:
    try:
        tables = read_json_file(path)
        rows = [row for table in ("calibration", "held_out") for row in tables[table]]
        return {str(row["sha256"]): str(row["name"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProjectError(f"Expected the calibration images in {path}. Received: {error!r:.200}. {REMEDY}") from error
