"""A path to write to is looked at before any work is done for it, in each command that takes one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import accuracy, backbones
from benchmarks.gpu import command
from export.errors import ProjectError
from pipeline.artifacts import output
from pipeline.artifacts.output import check_folder, check_output
from pipeline.cli.commands import main
from tests.conftest import Chain


def refusal(path: Path) -> str:
    with pytest.raises(ProjectError) as caught:
        check_output(path, "-o", "predictions.csv", (".csv", ".jsonl"))
    return str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    example = tmp_path / "predictions.csv"
    assert refusal(tmp_path) == f"Expected a file after -o, such as {example}. Received: {tmp_path}, which is a folder."
    assert refusal(Path("-")).endswith("Received: -; nothing of this goes to standard output.")
    assert f"ends in .csv or .jsonl after -o, such as {tmp_path / 'x.csv'}" in refusal(tmp_path / "x.xlsx")
    assert f"where {tmp_path / 'text'} is no folder" in refusal(tmp_path / "text" / "x.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]


@pytest.mark.parametrize(("name", "such_as"), [("my.zip", "my.tar"), ("my.tar.gz", "my.tar"), ("my", "my.tar")])
def test_a_bundle_is_a_tar_and_is_called_so(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, such_as: str
) -> None:
    assert finished_chain.run("bundle", "-o", str(tmp_path / name)) == 2
    said = f"ends in .tar after -o, such as {tmp_path / such_as}. Received: {tmp_path / name}."
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and /proc")
def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    assert "a device or a pipe" in refusal(tmp_path / "x.csv")
    if Path("/proc/self").is_dir():
        assert "Expected a place that can be written after -o. Received: /proc/x.csv: " in refusal(Path("/proc/x.csv"))


def test_a_folder_that_is_not_there_is_no_fault_and_is_not_made_yet(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "x.CSV", "-o", "predictions.csv", (".csv",))
    check_folder(tmp_path / "plans", "--plans")
    assert list(tmp_path.iterdir()) == []


def test_infer_makes_the_folder_of_its_output(finished_chain: Chain, tmp_path: Path) -> None:
    photo = next((finished_chain.images / "red").iterdir())
    assert finished_chain.run("infer", str(photo), "-o", str(tmp_path / "new" / "deep" / "x.csv")) == 0
    assert (tmp_path / "new" / "deep" / "x.csv").is_file()


def test_every_command_refuses_a_folder_before_it_works(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*_: object, **__: object) -> None:
        raise AssertionError("it worked")

    for name in (
        "pipeline.workflow.context.Context.card", "pipeline.artifacts.files.sha256_file",
        "pipeline.serving.select_model.select_model",
        "benchmarks.accuracy.measure_accuracy", "benchmarks.gpu.command.read_reference",
        "benchmarks.backbones.load_image_set",
    ):  # fmt: skip
        monkeypatch.setattr(name, works)
    chain, folder = finished_chain, str(tmp_path)
    gpu = ["artifacts/digits", "-o", folder]
    for run in (
        lambda: chain.run("infer", str(chain.images), "-o", folder),
        lambda: chain.run("bundle", "-o", folder),
        lambda: accuracy.main(chain.arguments("", "--output", folder)[1:]),
        lambda: command.main(gpu),
        lambda: backbones.main(["--data", str(chain.images), "--output", folder]),
    ):
        capsys.readouterr()
        assert run() == 2
        said = capsys.readouterr().err
        assert f", such as {folder}" in said or "artifacts/digits" in said
        assert f"Received: {folder}, which is a folder." in said
        assert "answered" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_no_hidden_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system", "/x/tmpabc")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", read_only)
    said = refusal(tmp_path / "x.csv")
    assert said.startswith(f"Expected a place that can be written after -o. Received: {tmp_path / 'x.csv'}: Read-only")
    assert "tmpabc" not in said
    assert main(["bundle", "-o", str(tmp_path / "x.tar")]) == 2
