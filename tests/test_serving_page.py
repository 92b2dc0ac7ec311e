"""``docs/serving.md``: its commands and snippets run as printed, its numbers are those of the code."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image

from export.files import ROOT
from pipeline.cli.commands import build_parser
from pipeline.server.connections import _MOST_WAITING
from pipeline.server.errors import OF_IMAGES
from pipeline.server.page import MOST_ANSWERS, MOST_CLASSES
from pipeline.server.service import Limits
from pipeline.triton.batching import USUAL_BATCH, USUAL_DELAY
from tests.conftest import Chain
from tests.pipeline.server.servers import Running, running

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SENTENCES = " ".join(PAGE.split())
PIPELINE = ".venv/bin/python -m pipeline "
SPARK = "PYSPARK_PYTHON=$PWD/.venv/bin/python .venv/bin/python spark_photos.py"


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line.partition("#")[0].strip() for block in fenced("sh") for line in block.splitlines()]


def default(verb: str, option: str) -> object:
    """The default of an option."""
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return vars(verbs.choices[verb].parse_args([]))[option]


def test_every_command_is_one_that_the_project_takes() -> None:
    for line in COMMANDS:
        if line.startswith(PIPELINE):
            build_parser().parse_args(shlex.split(line.removeprefix(PIPELINE)))
        else:
            known = ("make install-serve", "make install-distributed", SPARK)
            assert line in known or line.startswith("curl "), line
    assert SPARK in COMMANDS
    assert f"Save this as `{SPARK.split()[-1]}`" in PAGE
    assert sum(line.startswith(PIPELINE) for line in COMMANDS) == 4


def test_the_repository_is_written_as_printed(finished_chain: Chain, tmp_path: Path) -> None:
    (line,) = (line for line in COMMANDS if "triton-repo" in line)
    words = shlex.split(line.removeprefix(PIPELINE).replace("-c digits", ""))
    with chdir(tmp_path):
        assert finished_chain.run(*words) == 0
    assert (tmp_path / "digits-triton" / "client.py").is_file()


def test_numbers_are_those_of_the_code() -> None:
    limits = Limits()
    assert f"{limits.connections} connections at once, {_MOST_WAITING} requests that wait for others" in SENTENCES
    assert f"{limits.header_seconds:g} s and {limits.header_bytes >> 10} KiB for headers" in SENTENCES
    assert f"takes longer than {limits.body_seconds:g} s" in SENTENCES
    assert f"answered within {limits.stop_seconds:g} s" in SENTENCES
    assert f"more than `--max-upload-mib` ({default('serve', 'max_upload_mib')})" in SENTENCES
    assert f"more than `--queue` ({default('serve', 'queue')}) images wait" in SENTENCES
    assert f"waits at most `--max-delay-ms` ({default('serve', 'max_delay_ms'):g})" in SENTENCES
    assert f"It binds to {default('serve', 'host')}" in SENTENCES
    assert f"http://127.0.0.1:{default('serve', 'port')}/" in PAGE
    assert (MOST_CLASSES, "shows the five best classes" in SENTENCES) == (5, True)
    assert f"the last {MOST_ANSWERS} answers stay" in SENTENCES
    assert f"({USUAL_BATCH} images and {USUAL_DELAY} µs where nothing was measured)" in SENTENCES


def test_every_status_of_an_image_has_a_row() -> None:
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for code in row.split(", ")}
    assert set(OF_IMAGES.values()) <= codes
    assert codes == {400, 403, 404, 405, 408, 413, 415, 421, 422, 500, 503}


def test_snippets_are_python_and_import_what_is_there() -> None:
    assert len(fenced("python")) == 2
    for snippet in fenced("python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
                module = __import__(node.module, fromlist=["*"])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_example_has_the_keys_of_an_answer() -> None:
    (example,) = (json.loads(block) for block in fenced("json"))
    assert list(example) == ["model", "classes", "width", "height", "answered_by", "batch", "milliseconds"]
    assert list(example["milliseconds"]) == ["decode", "queue", "compute", "total"]


def test_links_lead_to_sections_and_files() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, section = target.partition("#")
        assert not file or (ROOT / "docs" / file).exists(), target
        assert not section or file or section in headings, target


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    for name, colour in (("photo.jpg", (200, 40, 30)), ("other.jpg", (20, 60, 200))):
        Image.new("RGB", (80, 60), colour).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server"), settings={"name": "digits"}, body_seconds=30.0) as server:
        yield server


def test_the_curl_command_is_answered_with_the_keys_of_the_example(server: Running, photos: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (line,) = (line for line in COMMANDS if line.startswith("curl "))
    words = shlex.split(line.replace(":8000", f":{server.port}"))
    done = subprocess.run([*words, "--silent"], cwd=photos, capture_output=True, check=True)
    answer, (example,) = json.loads(done.stdout), (json.loads(block) for block in fenced("json"))
    for key, value in example.items():
        assert type(answer[key]) is type(value), key
        if isinstance(value, dict):
            assert answer[key].keys() == value.keys()
    assert [list(best) for best in answer["classes"]] == [list(best) for best in example["classes"]]


def test_the_snippet_of_the_protocol_runs_as_printed(
    server: Running, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = (block for block in fenced("python") if "tritonclient" in block)
    with chdir(photos):
        exec(snippet.replace(":8000", f":{server.port}"), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r"b'0\.\d+:\d:(?:cat|dog|owl|emu)'", printed)) == 6
    assert "b'0.9" in printed.splitlines()[0], "red is a cat, surely"
    assert ":0:cat'" in printed.splitlines()[0]
    assert ":2:owl'" in printed.splitlines()[1]
