"""Rows of answers on their way to a file that may not take them all."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.files import ROOT
from pipeline.serving import classify
from pipeline.serving.classify import row_columns, write_rows

COLUMNS = row_columns(1)
TOTAL = 3000


def rows(count: int = TOTAL, error: BaseException | None = None) -> Iterator[dict[str, Any]]:
    """Rows of several lengths, some of several lines."""
    for i in range(count):
        path = f"photo\n{'x' * (i % 7)}{i}.png"
        yield {"path": path, "status": "ok", "class": "ä", "probability": i / TOTAL, "error": ""}
    if error is not None:
        raise error


def read(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(text.splitlines(keepends=True)))


FULL_DISK = """
import resource, sys
from pathlib import Path
from pipeline.cli import options as cli
from pipeline.terminal.command_line import Parser
from tests.pipeline.serving.test_write_rows import COLUMNS, TOTAL, rows, write_rows
output = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # no file grows beyond, and write() says so
parser = Parser(parents=[cli.output_options()])
sys.exit(cli.run_command(parser, [], lambda args: write_rows(rows(), TOTAL, COLUMNS, output)))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs limits of the system")
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("limit", [60_000, 60_017])
def test_on_a_full_disk_the_rows_that_are_said_to_be_there_are_there(tmp_path: Path, name: str, limit: int) -> None:
    output = tmp_path / name
    command = [sys.executable, "-c", FULL_DISK, str(output), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    said = re.fullmatch(
        rf"error: File too large\. ([\d,]+) of 3,000 rows are in {re.escape(str(output))}\.partial\.\n", done.stderr
    )
    assert said, done.stderr
    kept = read(tmp_path / f"{name}.partial")
    assert len(kept) == int(said[1].replace(",", "")) > 500
    assert [row["path"] for row in kept] == [row["path"] for row in rows(len(kept))]
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.partial"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(5, "of an input")])
def test_whatever_ends_it_early_leaves_whole_rows_and_says_how_many(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        write_rows(rows(679, error), TOTAL, COLUMNS, tmp_path / "out.csv")
    assert caught.value.__notes__ == [f"679 of 3,000 rows are in {tmp_path / 'out.csv.partial'}."]
    assert len(read(tmp_path / "out.csv.partial")) == 679


def test_without_a_row_nothing_is_kept_or_said(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        write_rows(rows(0, KeyboardInterrupt()), TOTAL, COLUMNS, tmp_path / "out.csv")
    assert not hasattr(caught.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_in_a_folder_that_goes_nothing_is_kept_or_said(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        write_rows(rows(9, KeyboardInterrupt()), TOTAL, COLUMNS, tmp_path / "out.csv", keep=False)
    assert not hasattr(caught.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_the_disk_did_not_confirm_are_not_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(classify.os, "fsync", full)
    for count in (TOTAL, 700):
        with pytest.raises(OSError, match=r"No space|of an input") as caught:
            write_rows(
                rows(count, OSError(5, "of an input") if count < TOTAL else None), TOTAL, COLUMNS, tmp_path / "o.csv"
            )
        partial = tmp_path / "o.csv.partial"
        assert caught.value.__notes__ == [
            f"The disk did not confirm the {count:,} of 3,000 rows in {partial}: check them."
        ]


def test_all_rows_are_one_file(tmp_path: Path) -> None:
    assert write_rows(rows(), TOTAL, COLUMNS, tmp_path / "out.csv") == {"images": TOTAL, "failed": 0}
    assert len(read(tmp_path / "out.csv")) == TOTAL
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
