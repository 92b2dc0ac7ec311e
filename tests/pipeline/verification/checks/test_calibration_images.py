from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.errors import DataError, ProjectError
from pipeline.artifacts.paths import CALIBRATION_IMAGES, Artifacts
from pipeline.data.sample import Sample
from pipeline.verification.checks.calibration_images import refuse_calibration_images


def sample(name: str, sha256: str) -> Sample:
    return Sample(name, 0, sha256, lambda: np.zeros((2, 2, 3), np.uint8))


SAMPLES = [sample("a.png", "1" * 64), sample("b.png", "2" * 64), sample("c.png", "3" * 64)]


def write(root: Path, tables: object) -> Artifacts:
    path = root / CALIBRATION_IMAGES
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tables))
    return Artifacts(root)


def row(name: str, sha256: str) -> dict[str, str]:
    return {"name": name, "class": "owl", "sha256": sha256}


def test_images_that_calibrated_nothing_are_taken(tmp_path: Path) -> None:
    refuse_calibration_images(SAMPLES, Artifacts(tmp_path))
    tables = {"calibration": [row("a.png", "4" * 64)], "held_out": [row("b.png", "5" * 64)]}
    refuse_calibration_images(SAMPLES, write(tmp_path, tables))


def test_calibration_images_are_refused_by_name_those_held_out_too(tmp_path: Path) -> None:
    tables = {"calibration": [row("copy.png", "1" * 64)], "held_out": [row("b.png", "2" * 64)]}
    with pytest.raises(DataError) as refused:
        refuse_calibration_images(SAMPLES, write(tmp_path, tables))
    assert "2 test images of quantize/images.json: a.png (calibrated as copy.png), b.png. " in str(refused.value)
    assert "Run the recipe's quantize stage again." in str(refused.value)


@pytest.mark.parametrize("tables", [{"calibration": []}, [], {"calibration": [{}], "held_out": []}, {"calibration": 3}])
def test_a_damaged_table_is_one_error(tmp_path: Path, tables: object) -> None:
    with pytest.raises(ProjectError, match=r"calibration images in .*images.json. Received: .*quantize stage again"):
        refuse_calibration_images(SAMPLES, write(tmp_path, tables))
