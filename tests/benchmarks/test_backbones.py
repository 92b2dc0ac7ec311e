"""What `benchmarks.backbones` refuses, before TensorFlow is started and the first of many backbones is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import backbones
from benchmarks.backbones import main
from tests.conftest import make_colour_images


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
        (["--only", "resnet50"], "Expected --data behind the verb"),
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


def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *failing: str) -> int:
    def row(name: str, *_: Any) -> dict[str, Any]:
        return {"backbone": name} | ({"stopped_in": "train", "status": 2} if name in failing else {})

    monkeypatch.setattr(backbones, "start_tensorflow", lambda: None)
    monkeypatch.setattr(backbones, "measure", row)
    folder = tmp_path / "images"
    if not folder.exists():
        make_colour_images(folder, 24)
    return main(["--data", str(folder), "--only", "resnet50, vgg16"])


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
