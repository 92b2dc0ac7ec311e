"""--log-file: every message with its time and level, whatever the terminal shows."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from export.errors import ProjectError
from pipeline.cli import options
from pipeline.terminal.command_line import Parser

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} (DEBUG|INFO|WARNING|ERROR) (.*)")


def talk(_: argparse.Namespace) -> dict[str, object]:
    options.log.debug("detail")
    options.log.info("step")
    options.log.warning("odd \udcff")
    logging.getLogger("export.words").info("from export")
    return {}


def fail(_: argparse.Namespace) -> dict[str, object]:
    raise ProjectError("Expected more.")


def run(*words: str, command: Callable[[argparse.Namespace], dict[str, object]] = talk) -> int:
    return options.run_command(Parser(prog="trial", parents=[options.output_options()]), words, command)


def logged(path: Path) -> list[tuple[str, str]]:
    return [found.groups() for line in path.read_text().splitlines() if (found := LINE.fullmatch(line))]  # type: ignore[misc]


ALL = [("DEBUG", "detail"), ("INFO", "step"), ("WARNING", "odd \\udcff"), ("INFO", "from export")]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--quiet",), ["warning: odd \\udcff"]),
        ((), ["step", "warning: odd \\udcff", "from export"]),
        (("--verbose",), ["detail", "step", "warning: odd \\udcff", "from export"]),
    ],
)
def test_the_file_has_every_message_and_the_terminal_those_of_its_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], shown: list[str]
) -> None:
    assert run("--log-file", str(tmp_path / "log"), *words) == 0
    assert logged(tmp_path / "log") == ALL
    error = capsys.readouterr().err.encode(errors="backslashreplace").decode()
    assert error.splitlines() == shown


def test_the_file_is_appended_to_and_has_errors_too(tmp_path: Path) -> None:
    run("--log-file", str(tmp_path / "log"))
    assert run("--log-file", str(tmp_path / "log"), command=fail) == 2
    assert logged(tmp_path / "log") == [*ALL, ("ERROR", "Expected more.")]


def test_a_later_command_does_not_write_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--log-file", str(tmp_path / "log"))
    size = (tmp_path / "log").stat().st_size
    capsys.readouterr()
    run()
    assert (tmp_path / "log").stat().st_size == size
    assert "detail" not in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_the_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--json", "--log-file", str(tmp_path), command=lambda _: pytest.fail("it ran")) == 2
    said = (
        f"Expected a file for --log-file that can be written. Received: {tmp_path}: Is a directory. Name another one."
    )
    assert json.loads(capsys.readouterr().out)["error"] == said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_the_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--log-file", "/dev/full") == 0
    error = capsys.readouterr().err
    assert error.count("/dev/full takes no more messages") == 1
    assert "Traceback" not in error
    assert "step" in error
