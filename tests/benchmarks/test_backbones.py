"""What `benchmarks.backbones` refuses, before TensorFlow is started and the first of many backbones is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import backbones
from benchmarks.backbones import Row, main, read_table
from export.errors import ProjectError
from export.files import ROOT
from tests.conftest import make_colour_images
from tests.pipeline.report_artifacts import Artifacts

PUBLISHED = ROOT / "benchmarks/results/backbones.json"


@pytest.fixture(autouse=True)
def _not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "start_tensorflow", lambda: pytest.fail("it went on"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "/nope"], "--data: expected a folder with a subfolder for each class. Received: /nope, which does"),
        (["--data", ".", "--only", "resnet51"], "Received: 'resnet51'. Did you mean 'resnet50'?"),
        (["--data", ".", "--only", ""], "--only: expected names of backbones. Received: ''"),
        (["--data", ".", "--size", "0"], "Expected --size of at least 1"),
        (["--data", ".", "--images", "2"], "--images of at least 8. Received: 96 and 2."),
        (["--data", ".", "--output", "x.csv"], "ends in .json after --output, such as x.json"),
        (["--only", "resnet50"], "Expected --data after the verb"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_too_few_photographs_are_found_before_the_first_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_colour_images(tmp_path / "images", 3)
    assert main(["--data", str(folder), "--json"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert f"Received: {folder} with 12 in all, which leaves " in said
    assert "at least 8 photographs for calibration" in said


def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *failing: str, output: Path | None = None) -> int:
    def row(name: str, *_: Any) -> Row:
        stopped = {"stopped_in": "train", "status": 2} if name in failing else {}
        return Row(backbone=name, input_size=96, parameters=1, **stopped)

    monkeypatch.setattr(backbones, "start_tensorflow", lambda: None)
    monkeypatch.setattr(backbones, "measure", row)
    folder = tmp_path / "images"
    if not folder.exists():
        make_colour_images(folder, 24)
    more = [] if output is None else ["--output", str(output)]
    return main(["--data", str(folder), "--only", "resnet50, vgg16", *more])


def test_the_exit_status_says_what_came_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert measured(monkeypatch, tmp_path) == 0
    assert measured(monkeypatch, tmp_path, "vgg16") == 3
    assert measured(monkeypatch, tmp_path, "vgg16", "resnet50") == 2


@pytest.mark.parametrize("status", [130, 143])
def test_a_stage_that_is_stopped_stops_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int) -> None:
    monkeypatch.setattr(backbones, "start_tensorflow", lambda: None)
    monkeypatch.setattr(backbones, "_make", lambda *_: 1)
    monkeypatch.setattr(backbones, "pipeline", lambda _: status)
    folder = make_colour_images(tmp_path / "images", 24)
    assert main(["--data", str(folder), "--only", "resnet50,vgg16"]) == status


def test_rows_of_an_older_file_are_kept_and_those_of_other_backbones_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "backbones.json"
    shutil.copy2(PUBLISHED, output)
    assert measured(monkeypatch, tmp_path, "vgg16", output=output) == 3
    before, after = (json.loads(path.read_text())["rows"] for path in (PUBLISHED, output))
    rows = {row["backbone"]: row for row in after}
    assert list(rows) == [row["backbone"] for row in before]
    assert rows["mobilenetv2"] == before[1]
    assert rows["vgg16"] == {
        **{"backbone": "vgg16", "input_size": 96, "parameters": 1, "stopped_in": "train", "status": 2},
    }


def test_an_older_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "backbones.json"
    path.write_text(PUBLISHED.read_text().replace("parameters", "weights"))
    with pytest.raises(ProjectError, match="Name another file with --output"):
        read_table(path)


def test_a_row_says_what_the_verdict_and_the_calibration_say(tmp_path: Path) -> None:
    made = Artifacts(tmp_path).write()
    row = backbones._judged(Row(backbone="resnet20", input_size=32, parameters=1), made.root)
    hops = [hop for hop in made.hops if (hop.kind, hop.backend) == ("from_keras", "onnxruntime")]
    for hop in hops:
        told = getattr(row, hop.precision)
        assert (told.verdict, told.sqnr_db, told.why) == (hop.verdict, hop.sqnr_db, hop.why)
    assert {hop.precision for hop in hops} == {"fp32", "fp16", "int8"}
    assert row.convolutions is not None
    assert row.kept is not None
