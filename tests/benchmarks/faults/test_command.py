"""The command: faults of one recipe planted in turn, a record, an exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.faults.command import main
from benchmarks.faults.record import CONTROL, read_table
from tests.conftest import Chain


def arguments(chain: Chain, *more: str) -> list[str]:
    return ["-c", str(chain.recipe), "--artifacts", str(chain.artifacts), "--json", *more]


def test_faults_are_planted_into_copies_and_recorded(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("keras")
    files = {path: path.read_bytes() for path in finished_chain.root.rglob("*") if path.is_file()}
    output = tmp_path / "faults.json"
    capsys.readouterr()
    assert main(arguments(finished_chain, "--only", "softmax,stale", "--images", "48", "-o", str(output))) == 0
    shown = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (shown["faults"], shown["caught"], shown["hops"], shown["causes"], shown["exit"]) == (2, 2, 2, 2, 0)
    table = read_table(output)
    assert [row.fault for row in table.rows] == [CONTROL, "softmax", "stale"]
    assert {row.model for row in table.rows} == {"tiny"}
    assert str(tmp_path.parent) not in output.read_text(), "no folder of this machine"
    assert "2 of 2 faults caught" in output.with_suffix(".md").read_text()
    assert {path: path.read_bytes() for path in finished_chain.root.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--only", "men"), "--only: expected names of channels, mean, resize"),
        (("--images", "2"), "Expected --images of at least 16. Received: 2."),
        (("-o", "faults.txt"), "faults.txt"),
    ],
)
def test_bad_options(
    finished_chain: Chain, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(arguments(finished_chain, *more)) == 2
    assert said in capsys.readouterr().err


def test_without_artifacts_the_command_that_makes_them_is_named(
    made_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", str(made_chain.recipe), "--artifacts", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "Expected finished artifacts. Received: no train/model.keras" in said
    assert "pipeline run" in said
