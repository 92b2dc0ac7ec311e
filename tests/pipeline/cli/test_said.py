"""What commands say besides their results: warnings once, stale inputs by their stage, why nothing was built."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import command as benchmark
from export.errors import ProjectError
from pipeline.cli import commands, options, status
from pipeline.recipe.load import load_recipe
from pipeline.stages import BY_NAME
from pipeline.terminal.command_line import Parser
from pipeline.workflow.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    path = tmp_path / "r.yaml"
    path.write_text("data: {source: digits}\n")
    return Context(load_recipe(path), path, tmp_path / "artifacts")


def parser() -> Parser:
    return Parser(prog="python -m trial", parents=[options.output_options()])


def test_a_stale_input_is_named_with_its_own_reason(
    context: Context, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "read_manifest", lambda folder: None if folder.name == "quantize" else object())
    monkeypatch.setattr(status, "warn_of_damage", lambda *_: False)
    monkeypatch.setattr(status, "reasons_to_run", lambda stage, _: [] if stage.name == "train" else [stage.name + "!"])
    status.warn_of_stale_inputs(BY_NAME["build"], context)
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "the result of export is not up to date (export!)"
    ]


@pytest.mark.parametrize(
    ("ran", "stage", "said"), [(False, "build", True), (True, "build", False), (False, "x", False)]
)
def test_why_nothing_is_built_is_said_again_where_the_stage_did_not_run(
    context: Context, caplog: pytest.LogCaptureFixture, ran: bool, stage: str, said: bool
) -> None:
    result = {"built": {}, "kept": [], "why_not": "no wheel"}
    outcome: Any = SimpleNamespace(stage=stage, ran=ran, manifest=SimpleNamespace(stage=stage, result=result))
    commands._log_missing_engines(context, outcome)
    assert caplog.messages == (["no engine is built here. no wheel"] if said else [])


def test_a_warning_is_given_once_and_an_error_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    def talk(_: argparse.Namespace) -> dict[str, Any]:
        for _ in range(2):
            options.log.warning("odd")
            options.log.error("bad")
            options.log.info("news")
        return {}

    assert options.run_command(parser(), [], talk) == options.DONE
    assert capsys.readouterr().err.splitlines() == ["warning: odd", "error: bad", "news", "error: bad", "news"]


def test_who_interrupts_reads_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: argparse.Namespace) -> dict[str, Any]:
        error = KeyboardInterrupt()
        error.add_note("3 rows are in x.run.")
        raise error

    assert options.run_command(parser(), [], stop) == 130
    assert capsys.readouterr().err == "error: Interrupted. 3 rows are in x.run.\n"


@pytest.mark.parametrize(("ran", "rows", "fails"), [(True, 0, True), (True, 4, False), (False, 4, False)])
def test_a_benchmark_of_nothing_is_no_success(
    context: Context, monkeypatch: pytest.MonkeyPatch, ran: bool, rows: int, fails: bool
) -> None:
    outcome = SimpleNamespace(ran=ran, manifest=SimpleNamespace(stage="benchmark", result={"rows": rows}))
    monkeypatch.setattr(benchmark, "execute", lambda *_: outcome)
    line = ["-c", str(context.recipe_path), "--artifacts", str(context.artifacts)]
    args = benchmark.build_parser().read(line)
    if fails:
        with pytest.raises(ProjectError, match=r"Expected something to time below .*Received: nothing\."):
            benchmark._benchmark(args)
    else:
        assert benchmark._benchmark(args)["rows"] == rows
