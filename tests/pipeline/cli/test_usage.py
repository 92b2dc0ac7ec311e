"""Careless command lines: each gets one sentence with what to write, exit status 2, and its line of JSON."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks import command as benchmarks_main
from export.files import ROOT
from pipeline.cli import commands
from pipeline.cli.commands import main
from pipeline.cli.verbs import build_parser
from pipeline.terminal import starting
from pipeline.terminal.command_line import ARTIFACTS, COMMAND, CommandNeededError, Parser, UsageError
from tests.conftest import Chain

VERBS = build_parser()._verbs()


def refused(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        build_parser().read(words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),  # ... stands for any words
    [
        ("trian", "Expected a verb of run, train, ... Received: trian. Did you mean 'train'?"),
        ("Run", "Received: Run. Did you mean 'run'?"),
        ("", "Expected a verb: run, ... Received: none. To do all there is: python -m pipeline run"),
        ("-c digits run --force", "Expected the verb before ... Write: python -m pipeline run -c digits --force"),
        ("--set train.seed=2 -c train run", "Write: python -m pipeline run --set train.seed=2 -c train"),
        ("config --set train.seed 5", "without spaces around the =. Received: --set train.seed."),
        ("config --set data.path =x", "Received: --set data.path."),
        ("config --set data.path= x", "Received: data.path= x. Write: data.path=x"),
        ("config --set =5", "Expected --set section.key=value"),
        ("config --set", "Expected a value after --set. Received: none."),
        ("train --explian", "Expected an option that this verb has. Received: --explian. Did you mean '--explain'?"),
        ("train --train.head.epochs=5", "A key of the recipe is given by --set train.head.epochs=5"),
        ("train --train.head.epochs 5", "A key of the recipe is given by --set train.head.epochs=VALUE"),
        ("train --epochs 5", "Received: --epochs. A key of the recipe is given by --set section.key=value."),
        ("train photos", "Received: photos, which belongs to none of them. If it is a recipe, write: -c photos"),
        ("run mine", "If it is a recipe, write: -c mine"),
        ("export configs/mine.yaml", "If it is a recipe, write: -c configs/mine.yaml"),
        ("run train.head.epochs=3", "A key of the recipe is given by --set train.head.epochs=3"),
        ("run --set train.seed=2 data.path='/a b'", "given by --set 'data.path=/a b'"),
        ("run --recipe mine", "Expected the recipe after -c. Received: --recipe mine. Write: -c mine"),
        ("run --recipe=mine", "Received: --recipe=mine. Write: -c mine"),
        ("run RECIPE=mine", "Received: RECIPE=mine. Write: -c mine"),
        ("run --recipe", "Received: --recipe. Write: -c RECIPE"),
        ("train -c colleague /photos", "To classify images, write: ... -m pipeline infer -c colleague /photos"),
        ("train tests", "To classify images, write: ... -m pipeline infer tests"),
        ("export -c ''", "Expected a recipe's file or name after -c. Received: an empty word."),
        ("doctor photos", "Received: photos, which belongs to none of them. Leave it out."),
        ("-c digits", "Expected a verb (run, ... Received: -c first. Write: python -m pipeline run -c digits"),
        ("-q infer report", "Write: python -m pipeline infer -q report"),
        ("--force", "Received: --force first. Write: python -m pipeline run --force"),
        ("infer --top-k many", "Expected a whole number after --top-k. Received: 'many'."),
        ("infer --precision INT4", "of auto, fp32, fp16, int8. Received: int4. Did you mean 'int8'?"),
        ("inspect", "Expected model after the verb. Received: nothing."),
        ("engine", "Expected inspect|check after the verb. Received: nothing."),
        ("engine chekc x.plan", "Expected a verb of inspect, check. Received: chekc. Did you mean 'check'?"),
    ],
)  # fmt: skip
def test_a_mistyped_line_is_told_what_to_write(line: str, said: str) -> None:
    start, _, end = said.partition(" ... ")
    message = refused(*shlex.split(line))
    assert start in message
    assert end in message
    assert "\n" not in message


def test_what_is_bundled_here_is_unpacked_among_the_artifacts() -> None:
    assert build_parser().read(["unpack", "digits.bundle.tar"]).artifacts == ARTIFACTS


def test_precisions_may_be_in_capitals() -> None:
    assert build_parser().read(["infer", "a.png", "--precision", "INT8"]).precision == "int8"


@pytest.mark.parametrize("words", [["trian", "--json"], ["config", "--sett", "a=b", "--json"], ["--json", "config"]])
def test_a_line_that_cannot_be_read_ends_in_json_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (said["status"], said["exit"]) == ("bad input", 2)
    assert said["command"] == next(word for word in words if not word.startswith("-"))
    assert captured.err.startswith("usage: python -m pipeline")
    assert captured.err.endswith(f"error: {said['error']}\n")


def test_a_key_given_twice_is_said_and_the_last_counts(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [part for seed in (2, 3) for part in ("--set", f"train.seed={seed}")]
    assert main(["config", *overrides, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "warning: --set train.seed is given twice, 2 and 3: the last one counts\n"
    assert json.loads(captured.out.splitlines()[-1])["config"]["train"]["seed"] == 3


# --- help ---


def texts() -> dict[str, Parser]:
    found = {"": build_parser(), "benchmarks": benchmarks_main.build_parser(), "accuracy": accuracy.build_parser()}
    for name, parser in VERBS.items():
        found[name] = parser
        found |= {f"{name} {action}": inner for action, inner in parser._verbs().items()}
    return found


@pytest.mark.parametrize("name", list(texts()))
def test_every_example_in_a_help_text_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = texts()[name].format_help().replace("\\\n", " ")
    examples = [line.strip() for line in text.splitlines() if line.startswith("  python -m ")]
    assert examples
    for example in examples:
        _, _, module, *words = shlex.split(example.partition("   ")[0])
        modules = {"pipeline": commands, "benchmarks": benchmarks_main, "benchmarks.accuracy": accuracy}
        args = modules[module].build_parser().read(words)
        recipe = getattr(args, "config", None)
        assert recipe is None or (ROOT / "configs" / f"{Path(recipe).stem}.yaml").is_file()


# --- a reader that leaves ---


@pytest.mark.parametrize("name", list(texts()))
def test_every_option_says_what_it_is_for(name: str) -> None:
    actions = [action for action in texts()[name]._actions if not isinstance(action, argparse._SubParsersAction)]
    assert [action.dest for action in actions if not action.help] == []


def closed(*words: str, which: str, cwd: Path = ROOT) -> tuple[int, str]:
    """Exit status and standard error of a command, one of whose streams nobody reads from the start."""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | {which: write}
    try:
        done = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=cwd, text=True, check=False, **streams)
    finally:
        os.close(write)
    return done.returncode, done.stderr or ""


@pytest.mark.skipif(os.name == "nt", reason="pipes there break otherwise")
@pytest.mark.parametrize("words", ["config -c digits", "config -c digits --json", "doctor", "trian --json"])
def test_a_reader_that_leaves_ends_a_command_in_silence(words: str) -> None:
    status, said = closed(*words.split(), which="stdout")
    assert status == 141
    assert said == "" or said.startswith("usage: ")
    assert "Broken pipe" not in said


@pytest.mark.skipif(os.name == "nt", reason="pipes there break otherwise")
def test_a_stage_stops_where_nobody_reads_what_it_says(finished_chain: Chain) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished_chain.root.rglob("*") if p.is_file()}
    assert closed(*finished_chain.arguments("report", "--force"), which="stderr")[0] == 141
    after = {p: p.stat().st_mtime_ns for p in finished_chain.root.rglob("*") if p.is_file()}
    assert {p for p in after if ".lock" not in p.name} == {p for p in before if ".lock" not in p.name}


@pytest.mark.skipif(os.name == "nt", reason="pipes there break otherwise")
def test_the_benchmark_is_a_process_whose_reader_may_leave_too(finished_chain: Chain) -> None:
    assert closed(*finished_chain.arguments("benchmark", "--explain", "-q"), which="stdout") == (141, "")
    assert closed(*finished_chain.arguments("benchmark"), which="stderr")[0] == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_output_that_is_not_taken_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "config"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, "error: No space left on device.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_standard_error_is_an_error_too() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pipeline", "config", "-c", "nothere"]
        assert subprocess.run(command, cwd=ROOT, stderr=full, check=False).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="needs a shell of POSIX")
def test_a_closed_stream_takes_nothing_of_the_others(finished_chain: Chain) -> None:
    photo = str(next(finished_chain.images.rglob("*.png")))
    command = [sys.executable, "-m", "pipeline", *finished_chain.arguments("infer", photo, "-o", "-")]
    for closing, status in (("2>&-", 0), (">&-", 2)):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closing}', "sh", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        if status:
            assert "Expected standard output for -o -. Received: none, it is closed." in done.stderr
        else:
            assert [line.partition(",")[0] for line in done.stdout.splitlines()] == ["path", photo]


# --- one line of JSON ---


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("{") for line in lines) == 1
    return json.loads(lines[-1])


def test_explain_says_it_as_json_too(finished_chain: Chain, capfd: pytest.CaptureFixture[str]) -> None:
    assert finished_chain.run("run", "--explain", "--json") == 0
    result = last_line(capfd)
    assert list(result["explain"]) == [
        "train", "export", "quantize", "build", "verify", "benchmark", "infer", "report",
    ]  # fmt: skip
    assert not any(result["explain"].values())
    assert finished_chain.run("run", "--explain", "--json", "--force") == 0
    explained = last_line(capfd)["explain"]
    assert explained["benchmark"] == ["depends on what train will write"]


def test_the_benchmark_is_a_verb(finished_chain: Chain, capfd: pytest.CaptureFixture[str]) -> None:
    assert finished_chain.run("benchmark", "--json") == 0
    result = last_line(capfd)
    assert (result["command"], result["recipe"], result["status"]) == ("benchmark", "tiny", "up to date")
    assert finished_chain.run("run", "--json") == 0
    assert last_line(capfd)["stages"]["benchmark"] == {"status": "up to date", "rows": result["rows"]}
    assert finished_chain.run("benchmark", "--set", "train.sed=1", "--json") == 2
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert (result["command"], result["exit"]) == ("benchmark", 2)
    assert captured.err.count("Unknown key 'train.sed'") == 1, "the child says it, and nobody else"


def test_a_warning_is_given_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(args: object) -> dict:
        for number in (1, 1, 2, 1):
            commands.log.warning("picture %d is dark", number)
            commands.log.info("again")
        return {}

    monkeypatch.setattr(commands, "_dispatch", warn)
    for _ in range(2):
        assert main(["doctor"]) == 0
        said = capsys.readouterr().err.splitlines()
        assert [line for line in said if "dark" in line] == [
            "warning: picture 1 is dark",
            "warning: picture 2 is dark",
        ]
        assert said.count("again") == 4


# --- another Python ---


@pytest.mark.parametrize("module", ["pipeline", "benchmarks"])
def test_a_python_without_the_packages_is_one_sentence(module: str) -> None:
    python = [sys.executable, "-S", "-E"]  # without site-packages
    done = subprocess.run([*python, "-m", module], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: Expected the packages of requirements.txt. Received: no \w+ in \S+. "
        r"Run `make install` and use .venv/bin/python.\n",
        done.stderr,
    )


@pytest.mark.parametrize("module", ["pipeline.cli.commands", "benchmarks.command"])
def test_a_python_that_is_too_old_is_one_sentence(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starting.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(starting.importlib, "import_module", lambda name: pytest.fail("it was imported"))
    assert starting.start(module) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Expected Python 3.11 to 3.13, or 3.10 to run a bundle. Received: Python 3.9, ")
    assert said.endswith("Run `make install` and use .venv/bin/python.\n")


def test_a_python_for_bundles_alone_names_its_own_requirements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    monkeypatch.setattr(starting.sys, "version_info", (3, 10, 12))
    monkeypatch.setattr(starting.importlib, "import_module", refuse)
    assert starting.start("pipeline.cli.commands") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Expected the packages of requirements-jetson.txt. Received: no yaml in ")
    assert said.endswith(" -m pip install -r requirements-jetson.txt\n")
    assert (ROOT / "requirements-jetson.txt").is_file()


@pytest.mark.parametrize("path", ["pipeline/__main__.py", "benchmarks/__main__.py", "pipeline/terminal/starting.py"])
def test_an_old_python_can_read_what_says_so(path: str) -> None:
    ast.parse((ROOT / path).read_text(), feature_version=(3, 7))
    for package in ("pipeline", "benchmarks"):
        ast.parse((ROOT / package / "__init__.py").read_text(), feature_version=(3, 7))


def test_the_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest, newest) = starting.OLDEST_FOR_A_BUNDLE, starting.NEWEST
    assert project["requires-python"] == f">=3.{oldest[1]},<3.{newest[1] + 1}"


def test_every_verb_ends_in_one_line_of_json(
    finished_chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next(finished_chain.images.rglob("*.png"))
    archive, plan = str(tmp_path / "tiny.tar"), tmp_path / "nothere.plan"
    lines = [
        (finished_chain.arguments("config"), 0),
        (finished_chain.arguments("config", "--set", "train.sed=1"), 2),
        (["doctor"], 0),
        (["inspect", str(finished_chain.root / "train" / "model.keras")], 0),
        (["inspect", str(tmp_path / "nothere.keras")], 2),
        (["engine", "inspect", str(plan)], 2),
        (["engine", "check", str(plan)], 2),
        (finished_chain.arguments("infer", str(photo), "-o", str(tmp_path / "out.csv")), 0),
        (finished_chain.arguments("infer", "nothere.png"), 2),
        (finished_chain.arguments("infer", "--explain"), 0),
        (finished_chain.arguments("report"), 0),
        (finished_chain.arguments("bundle", "-o", archive), 0),
        (["unpack", archive, "--artifacts", str(tmp_path / "there")], 0),
        (["unpack", archive, "--artifacts", str(tmp_path / "there")], 2),
    ]
    for words, status in lines:
        assert main([*words, "--json"]) == status, words
        result = last_line(capfd)
        assert (result["command"], result["exit"]) == (words[0], status)
        assert ("error" in result) is (status == 2)


def test_a_python_without_one_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dispatch(args: object) -> dict:
        raise ModuleNotFoundError("No module named 'keras'", name="keras")

    monkeypatch.setattr(commands, "_dispatch", dispatch)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert f"Expected the package keras. Received: {sys.executable}, which has none of that name." in said
    assert "Traceback" not in said


def test_an_error_that_advises_a_command_needs_no_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def removed() -> Path:
        raise FileNotFoundError("the working directory was removed")

    monkeypatch.setattr(Path, "cwd", removed)
    error = CommandNeededError(f"Write: {COMMAND}", "run", "data.path=two words")
    assert str(error) == "Write: python -m pipeline run --set 'data.path=two words'"
