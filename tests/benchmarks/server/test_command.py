"""The command that measures the server: what it refuses at once, and short runs of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server import command
from benchmarks.server.command import OPEN, SCENARIOS, main
from benchmarks.server.load import Plan
from benchmarks.server.record import ServerReport
from benchmarks.server.routes import CLASSIFY, V2_FILES
from export.records import read_record
from pipeline.workflow.context import Context
from tests.benchmarks.server import stub
from tests.conftest import Chain


def words(chain: Chain, *more: str) -> list[str]:
    return ["-c", str(chain.recipe), "--artifacts", str(chain.artifacts), "--photos", str(chain.images), *more]


def serve_stub(monkeypatch: pytest.MonkeyPatch, **faults: Any) -> list[Sequence[str]]:
    """Start the stub instead of the server, and note the options that it was given."""
    given: list[Sequence[str]] = []

    def stub_words(context: Context, options: Sequence[str]) -> list[str]:
        given.append(options)
        return stub.command(classes=context.card().classes, seconds=0.01, **faults)

    monkeypatch.setattr(command, "serve_words", stub_words)
    return given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "fast"], r"--only: expected classify, v2-files, .* Received: 'fast'"),
        (["--only", OPEN], r"Expected --rate for open-loop without classify"),
        (["--output", "x.txt"], r"ends in .json after --output"),
        (["--requests", "0"], "whole number from 1 on"),
        (["--show", "nowhere.json"], "nowhere.json"),
        (["--artifacts", "nowhere"], "train/model.json"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(options) == 2
    assert re.search(message, capsys.readouterr().err)


def test_one_picture_alone_proves_nothing(
    made_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next(made_chain.images.rglob("*.png"))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    assert main([*words(made_chain), "--photos", str(tmp_path)]) == 2
    assert "Expected two different images or more" in capsys.readouterr().err
    assert main(words(made_chain, "--serve", "--x 'y")) == 2
    assert "--serve: expected words as a shell takes them" in capsys.readouterr().err


def test_a_run_is_a_record_and_a_verdict(
    made_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, output = serve_stub(monkeypatch), tmp_path / "server.json"
    only = ["--only", f"{OPEN},{CLASSIFY},{V2_FILES}", "--requests", "300", "--concurrency", "8", "--pictures", "9"]
    status = main(words(made_chain, *only, "--serve=--max-batch 4", "-o", str(output), "--json"))
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert status == 0, said.err
    assert given == [["--max-batch", "4"]] * 3
    report = read_record(ServerReport, output, remedy="")
    assert [run.name for run in report.runs] == list(result["scenarios"]) == [CLASSIFY, V2_FILES, OPEN]
    closed, _, opened = report.runs
    assert (closed.loop, closed.offered, opened.loop) == ("closed", None, "open")
    assert opened.offered == pytest.approx(closed.requests_per_second / 2, abs=0.01)
    assert all(run.answered == 300 and not run.wrong and not run.lost for run in report.runs)
    assert report.answered_by == stub.BY
    assert str(tmp_path) not in output.read_text()
    assert main(["--show", str(output)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() in said.err
    assert f"{closed.latency.p99_ms:,.4g}" in shown


def test_a_wrong_answer_is_the_exit_status(
    made_chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_stub(monkeypatch, wrong_every=450)
    assert main(words(made_chain, "--quick", "--only", CLASSIFY, "--pictures", "3", "--json")) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["verdict"], result["scenarios"][CLASSIFY]["wrong"]) == ("failed", 1)


def test_an_open_loop_ends_in_its_time(caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan(1000, 4, most_seconds=60)
    assert command._open_loop(plan, 100.0) == replace(plan, rate=100.0)
    assert not caplog.records
    with caplog.at_level("WARNING", "benchmarks"):
        assert command._open_loop(plan, 10.0) == replace(plan, rate=10.0, requests=540)
    assert "open-loop: 540 requests of 1,000 arrive in the time" in caplog.text


@pytest.mark.slow
def test_the_server_itself_passes(finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "server.json"
    assert main(words(finished_chain, "--requests", "2000", "--output", str(output))) == 0, capsys.readouterr().err
    report = read_record(ServerReport, output, remedy="")
    assert [run.name for run in report.runs] == list(SCENARIOS)
    for run in report.runs:
        assert (run.answered, run.wrong, run.lost) == (2000, 0, {})
        assert run.mean_batch is not None, "the server counts its batches"
        assert run.mean_batch >= 1
        assert run.latency.p99_ms is not None
    assert report.answered_by["verdict"] == "pass"
