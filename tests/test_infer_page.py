"""``docs/infer.md``: its commands run as printed, and its tables, lists and numbers are those of the code."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from export.files import ROOT
from pipeline.cli import options
from pipeline.cli.commands import build_parser
from pipeline.cli.infer_options import DEFAULT_OUTPUT, add_infer_options
from pipeline.data.formats import MAX_PIXELS
from pipeline.inference import progress, row_log
from pipeline.inference.inputs import make_plan
from pipeline.inference.inputs.lists import COLUMNS
from pipeline.inference.output.folder import run_folder
from pipeline.inference.output.run import RunFolder
from pipeline.inference.output.spec import ENDINGS
from pipeline.inference.rows import STATUSES, columns
from pipeline.recipe.messages import EXTENSIONS
from pipeline.recipe.schema import Infer
from pipeline.terminal import processes
from pipeline.terminal.command_line import Parser
from tests.conftest import Chain

PAGE = (ROOT / "docs" / "infer.md").read_text(encoding="utf-8")
SENTENCES = " ".join(PAGE.split())
INFER = ".venv/bin/python -m pipeline infer -c digits "
# What decides the rows (keys of `RunRecord.decides`), and the page's words for it.
DECIDES = {
    "the inputs": "the inputs (their names, sizes or times)",
    "number of images": "the inputs (their names, sizes or times)",
    "the file that answers": "the file that answers",
    "its bytes": "the file that answers",
    "the model card": "the model card",
    "the batch size": "`--batch-size`",
    "the threshold": "`--threshold`",
    "--keep-damaged": "`--keep-damaged`",
    "infer.max_file_mib": "`infer.max_file_mib`",
    "versions": "the versions of this program and of what decodes and computes",
    "format": "the format",
    "classes of a row": "`--top-k`",
    "csv-safe": "`--csv-safe`",
    "embeddings": "whether there are `--embeddings`",
}
KEPT = "threads of ONNX Runtime"  # from the run that was stopped, so it never differs


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in fenced("sh") for line in block.splitlines()]


def part(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def first_cells(heading: str) -> list[str]:
    """Of the section's only table, without the header."""
    return [row.strip() for row in re.findall(r"^\| (.+?) \|", part(heading), re.MULTILINE)][1:]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --- commands ---


@pytest.fixture(scope="module")
def place(finished_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with every input that the page names."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos" / "below").mkdir(parents=True)
    (folder / "shards").mkdir()
    pictures = sorted(finished_chain.images.rglob("*.png"))[::40]
    names = [f"photos/{'below/' * (index % 2)}{index}.jpg" for index in range(len(pictures))]
    for picture, name in zip(pictures, names):
        Image.open(picture).convert("RGB").save(folder / name)
    shutil.copy(pictures[0], folder / "more.png")
    contents = [(folder / name).read_bytes() for name in names]
    (folder / "names.txt").write_text("\n".join(names))
    (folder / "table.csv").write_text("id,file,label\n" + "".join(f"{i},{name},x\n" for i, name in enumerate(names)))
    images = pa.array([{"bytes": content, "path": "a.jpg"} for content in contents])
    pq.write_table(pa.table({"image": images, "label": list(range(len(names)))}), folder / "data.parquet")
    for shard, content in enumerate(contents[:2]):
        with tarfile.open(folder / "shards" / f"{shard:06d}.tar", "w") as tar:
            for ending, data in (("jpg", content), ("cls", b"3"), ("json", b"{}")):
                member = tarfile.TarInfo(f"{shard:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "last").touch()
    os.utime(folder / "last", (1, 1))
    return folder


@pytest.fixture
def start(place: Path, finished_chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, bytes]]:
    """Runs a line as a shell would, ``infer`` in this process: its exit status, and what comes out at the end."""

    def run(line: str) -> tuple[int, bytes]:
        before, _, rest = line.partition(INFER)
        words, _, after = rest.partition(" | ")
        given = shell(before.strip().removesuffix("|"), b"")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        output = io.TextIOWrapper(io.BytesIO(), write_through=True)
        with chdir(place), redirect_stdout(output):
            status = finished_chain.run("infer", *shlex.split(words, comments=True))
        printed = output.buffer.getvalue()  # type: ignore[attr-defined]
        return status, shell(after, printed) if after else printed

    def shell(script: str, given: bytes) -> bytes:
        done = subprocess.run(["bash", "-euc", script], cwd=place, input=given, capture_output=True, check=False)
        assert done.returncode == 0, f"{script}\n{done.stderr.decode()}"
        return done.stdout

    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs_as_printed(line: str, place: Path, start: Callable[[str], tuple[int, bytes]]) -> None:
    if "| jq " in line and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    assert line.count(INFER) == 1
    words = shlex.split(line.partition(INFER)[2].partition(" | ")[0], comments=True)
    output = words[words.index("-o") + 1]
    (place / output).unlink(missing_ok=True)
    status, printed = start(line)
    assert status == 0
    if output == "-":
        assert printed.strip()
    else:
        rows = rows_of(place / output)
        assert rows
        assert {row["status"] for row in rows} == {"ok"}
        assert not run_folder(place / output).exists()


def test_the_first_commands_take_every_kind_of_input(place: Path, start: Callable[[str], tuple[int, bytes]]) -> None:
    first = fenced("sh")[0].splitlines()
    for line in first[:-1]:
        start(line)
    pictures = len(rows_of(place / "predictions.csv"))
    assert len(rows_of(place / "predictions.jsonl")) == pictures + 1
    assert len(rows_of(place / "predictions.parquet")) == len(rows_of(place / "listed.csv")) == pictures
    named = [row["path"] for row in rows_of(place / "archives.csv")]
    assert named[:3] == ["shards/000000.tar/000000.jpg", "shards/000001.tar/000001.jpg", "data.parquet/0"]
    assert len(named) == 2 + pictures


def test_the_python_snippet_runs_on_what_its_command_wrote(
    place: Path, start: Callable[[str], tuple[int, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = (line for line in COMMANDS if "--embeddings" in line)
    assert start(line)[0] == 0
    (snippet,) = fenced("python")
    names: dict[str, Any] = {}
    capsys.readouterr()
    with chdir(place):
        exec(compile(snippet, "docs/infer.md", "exec"), names)
    photos = [row["path"] for row in rows_of(place / "predictions.csv")]
    said = capsys.readouterr().out
    assert names["features"].shape == (len(photos), 64)
    assert [name for name in photos if repr(name) in said] != []
    assert repr(photos[0]) not in said
    assert np.isfinite(names["features"]).all()
    (row,) = (row for row in part("Where the rows go").splitlines() if row.startswith("| `--embeddings"))
    assert quoted(row)[1:5] == names["table"].column_names


def test_what_standard_input_is_called(place: Path, start: Callable[[str], tuple[int, bytes]]) -> None:
    for file, name in (("photos/0.jpg", "-"), ("shards/000000.tar", "-/000000.jpg")):
        line = f"cat {file} | {INFER}- -o - --format jsonl | cat"
        status, printed = start(line)
        assert (status, json.loads(printed)["path"]) == (0, name)


# --- tables and lists ---


def test_the_statuses_are_those_of_the_code() -> None:
    assert sorted(first_cells("What a row says")) == sorted(f"`{status}`" for status in STATUSES)


def test_the_shown_rows_have_the_columns_of_the_default_recipe() -> None:
    (block,) = fenced("csv")
    rows = list(csv.reader(io.StringIO(block)))
    assert rows[0] == columns(Infer().top_k)
    assert {len(row) for row in rows} == {len(rows[0])}
    assert {row[1] for row in rows[1:]} <= set(STATUSES)


def test_every_ending_of_an_image_is_named() -> None:
    (paragraph,) = (one for one in part("What it takes").split("\n\n") if one.startswith("An image's endings"))
    told = {word for word in quoted(paragraph) if word.startswith(".")}
    assert told == EXTENSIONS | {".heic", ".heif"}


def test_the_columns_of_a_list_are_named_in_their_order() -> None:
    (row,) = (row for row in part("What it takes").splitlines() if row.startswith("| `--list table.csv`"))
    assert tuple(quoted(row)[-len(COLUMNS) :]) == COLUMNS


def test_the_outputs_are_those_of_the_code() -> None:
    cells = [quoted(cell)[0] for cell in first_cells("Where the rows go")]
    assert cells[: len(ENDINGS)] == list(ENDINGS)
    assert [cell.split()[0] for cell in cells[len(ENDINGS) :]] == ["-o", "--embeddings", "--sort-into"]
    assert f"Without `-o` the rows go to `{DEFAULT_OUTPUT}`" in SENTENCES


def test_the_exit_statuses_are_those_of_the_code() -> None:
    told = [int(number) for cell in first_cells("What it tells") for number in cell.split(",")]
    assert told == [
        options.DONE,
        options.SOME_FAILED,
        options.BAD_INPUT,
        processes.INTERRUPTED,
        processes.TERMINATED,
        options.OUTPUT_CLOSED,
        options.INTERNAL_ERROR,
    ]


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def test_every_option_is_told_and_every_option_that_is_told_exists() -> None:
    (verbs,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    there = option_strings(verbs.choices["infer"])
    own = Parser(add_help=False)
    add_infer_options(own)
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert told <= there
    assert option_strings(own) - {"--output"} <= told  # that one is told as -o


def test_the_numbers_are_those_of_the_code() -> None:
    default = Infer()
    for sentence in (
        f"(`infer.top_k` of the recipe, {default.top_k})",
        f"more bytes than `infer.max_file_mib` ({default.max_file_mib} MiB), ",
        f"more than {MAX_PIXELS / 1e6:.0f} megapixels",
        f"A full shard (`--shard-rows`, {default.shard_rows:,}) is",
        f"At most `--batch-size` images (`infer.batch_size`, {default.batch_size}) are",
        f"a line every {progress.EVERY:.0f} seconds",
        f"The first {row_log.SHOWN} images without an answer are named; of a run of at most {row_log.SHOWN} images",
    ):
        assert sentence in SENTENCES, sentence
    assert default.decode_threads == 0  # one for each core
    assert all(f"`{key}`" in PAGE for key in ("infer.decode_threads", "infer.max_file_mib"))
    assert make_plan.STANDARD_INPUT == "-"


def test_all_that_decides_the_rows_is_told(
    place: Path, start: Callable[[str], tuple[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, object]] = []
    finish = RunFolder.finish

    def record(self: RunFolder, then: Callable[[], object] | None = None) -> dict[str, int]:
        seen.append(self._begun().decides())
        return finish(self, then)

    monkeypatch.setattr(RunFolder, "finish", record)
    assert start(f"{INFER}more.png -o decides.csv")[0] == 0
    assert set(seen[0]) == set(DECIDES) | {KEPT}
    (item,) = (one for one in PAGE.split("\n- ") if one.startswith("A new run begins"))
    words = " ".join(item.split())
    assert [told for told in DECIDES.values() if told not in words] == []
    assert "the number of threads is recorded, and kept" in SENTENCES


def test_a_left_out_file_is_said_as_shown(
    tmp_path: Path, finished_chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = re.findall(r'"(left out below photos: [^"]+)"', PAGE)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_chain.images / "red", "photos")
    for index in range(3):
        Path(f"photos/{index}.xcf").touch()
    Path("photos/README").touch()
    assert finished_chain.run("infer", "photos", "-o", "out.csv") == 0
    assert shown.replace(".heic", ".xcf") in capsys.readouterr().err


def test_the_links_lead_somewhere() -> None:
    for target, heading in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", PAGE):
        page = (ROOT / "docs" / target).read_text(encoding="utf-8")
        headings = {one.lower().replace(" ", "-") for one in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
        assert heading in headings or not heading
