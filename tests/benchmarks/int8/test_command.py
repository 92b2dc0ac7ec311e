"""The command of the bench: what it refuses, what it keeps of an older file, and what its exit status says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.int8 import command
from benchmarks.int8.command import main
from benchmarks.int8.record import Gain, Row, read_table
from export.errors import ProjectError
from tests.benchmarks.int8 import small_network
from tests.conftest import make_colour_images


@pytest.fixture(autouse=True)
def _not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "start_tensorflow", lambda: pytest.fail("it went on"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "/nope"], "--data: expected a folder with a subfolder for each class. Received: /nope, which does"),
        (["--only", "mobilenet2:drawn"], "Received: 'mobilenet2:drawn'. Did you mean 'mobilenetv2'?"),
        (["--only", "mobilenetv2"], "--only: expected names such as mobilenetv2:trained"),
        (["--steps", "shfit"], "Received: 'shfit'. Did you mean 'shift'?"),
        (["--steps", "earlier"], "--steps earlier: expected --earlier with the folder of that code"),
        (["--earlier", "/nope"], "--earlier: expected a checkout of this project. Received: /nope, without"),
        (["--size", "0"], "--size and --epochs of at least 1"),
        (["--images", "31"], "--images of at least 32. Received: 64, 4 and 31."),
        (["--output", "x.csv"], "ends in .json after --output, such as x.json"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path), "--networks", str(tmp_path / "networks"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_too_few_photographs_are_found_before_a_network_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "start_tensorflow", lambda: None)
    data = make_colour_images(tmp_path / "images", 3)
    assert main(["--data", str(data), "--networks", str(tmp_path / "networks")]) == 2
    assert f"at least 8 photographs each for train, calibration and test. Received: {data}" in capsys.readouterr().err
    assert not (tmp_path / "networks").exists()


def row(step: str, lost: int, over: str) -> Row:
    change = Gain(-0.5 * lost, (-1.0 * lost, 0.5 - lost), 0.0, (-0.01, 0.01))
    return Row(
        step=step, top1_agreement=0.99, agreement_interval=(0.97, 1.0), lost=lost, gained=0, method="mse",
        int8_convolutions=2, convolutions=2, kept=(), skipped={}, gains={over: change}, seconds=1.0,
    )  # fmt: skip


class _Run:
    """The command, with rows in place of searches."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.output = tmp_path, tmp_path / "out.json"
        self.failing: set[str] = set()
        self.lost = 0
        for weights in ("trained", "drawn"):
            small_network.write(tmp_path / "networks" / f"resnet20-{weights}", weights=weights)
        monkeypatch.setattr(command, "measure", self.measure)

    def measure(self, network: Path, steps: list[str], *_: Any) -> list[Row]:
        if network.name in self.failing:
            raise ProjectError("no scale")
        return [row(step, self.lost, "earlier") for step in steps]

    def __call__(self, *only: str) -> int:
        words = ["--data", str(self.folder), "--networks", str(self.folder / "networks"), "--steps", "shift,before"]
        return main([*words, "--only", ",".join(only), "--output", str(self.output), "--json"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Run:
    return _Run(tmp_path, monkeypatch)


def test_networks_of_an_older_file_are_kept_and_measured_ones_replaced(run: _Run) -> None:
    assert run("resnet20:trained", "resnet20:drawn") == 0
    run.lost = 2
    assert run("resnet20:drawn") == 0
    table = read_table(run.output)
    assert [(entry.network.weights, entry.rows[0].lost) for entry in table.networks] == [("trained", 0), ("drawn", 2)]
    assert [entry.step for entry in table.networks[0].rows] == ["before", "shift"]  # in the order of the search


def test_the_exit_status_says_what_came_of_it(run: _Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.failing = {"resnet20-drawn"}
    assert run("resnet20:trained", "resnet20:drawn") == 3
    assert json.loads(capsys.readouterr().out)["failed"] == ["resnet20:drawn"]
    assert len(read_table(run.output).networks) == 1
    assert run("resnet20:drawn") == 2


def test_what_is_worse_than_the_earlier_code_is_named(run: _Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("resnet20:trained") == 0
    assert json.loads(capsys.readouterr().out)["worse"] == []
    run.lost = 1
    assert run("resnet20:trained") == 0
    expected = ["resnet20:trained before against earlier", "resnet20:trained shift against earlier"]
    assert json.loads(capsys.readouterr().out)["worse"] == expected
