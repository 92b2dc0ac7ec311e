"""A full disk is found before the work where that can be known, and said with the place and what is free there."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from export.errors import ProjectError
from export.files import add_path
from pipeline.artifacts import output as output_files
from pipeline.artifacts.output import describe_os_error, explain_full_disk, require_space
from pipeline.artifacts.paths import CARD
from pipeline.models.model_card import read_card
from pipeline.stages import BY_NAME
from tests.conftest import Chain

Usage = namedtuple("Usage", "total used free")
FULL = OSError(errno.ENOSPC, "No space left on device")


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(output_files.shutil, "disk_usage", lambda _: Usage(10**12, 0, free))


def test_a_stage_does_not_start_where_its_weights_do_not_fit(
    finished_chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = read_card(finished_chain.root / CARD).parameters
    monkeypatch.setattr("pipeline.keras_files.load.load_classifier", lambda *_: pytest.fail("it started"))
    monkeypatch.setattr("pipeline.training.loop._run_phase", lambda *_: pytest.fail("it started"))
    for stage, width in (("train", 4), ("export", 4), ("quantize", 2 + 1)):  # FP16, and INT8's codes
        leave(monkeypatch, width * parameters + BY_NAME[stage].fixed_bytes - 1)
        before = {p: p.stat().st_mtime_ns for p in (finished_chain.root / stage).iterdir()}
        assert finished_chain.run(stage, "--force") == 2
        said = capsys.readouterr().err
        what = "model.keras with its" if stage == "train" else f"the files of {stage}, which hold"
        assert f" for {what} {parameters:,} weights. Received: " in said
        assert "name another place with --artifacts." in said
        assert {p: p.stat().st_mtime_ns for p in (finished_chain.root / stage).iterdir()} == before


def test_enough_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 1000)
    require_space(tmp_path / "not" / "there", 1000, "x")
    leave(monkeypatch, 999)
    with pytest.raises(ProjectError, match=r"at least 1\.0 kB free in .* for x\. Received: 999 bytes"):
        require_space(tmp_path / "not" / "there", 1000, "x")

    def unknown(_: object) -> None:
        raise OSError

    monkeypatch.setattr(output_files.shutil, "disk_usage", unknown)
    require_space(tmp_path, 10**18, "x")


@pytest.mark.parametrize(
    "error",
    [OSError("15092 requested and 0 written"), RuntimeError("file write failed"), OSError(errno.ENOSPC, "No space")],
)
def test_whatever_a_library_says_of_a_full_disk_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    leave(monkeypatch, 4096)
    error.add_note("12 rows are there.")
    with pytest.raises(OSError, match="No space") as caught, explain_full_disk(tmp_path):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert caught.value.__notes__ == ["12 rows are there."]
    assert "(4.1 kB free in " in describe_os_error(caught.value)


@pytest.mark.parametrize("error", [ProjectError("x"), FileNotFoundError(2, "No such file", "y")])
def test_other_errors_pass_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    leave(monkeypatch, 0)
    with pytest.raises(type(error)) as caught, explain_full_disk(tmp_path):
        raise error
    assert caught.value is error


def test_with_space_left_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), explain_full_disk(tmp_path):
        raise RuntimeError("x")


def test_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    add_path(full, tmp_path / "new" / "x.csv")
    said = describe_os_error(full)
    assert said.startswith(f"Expected space to write {tmp_path / 'new' / 'x.csv'}. Received: No space left on device (")
    assert f" free in {tmp_path}" in said
    assert "(--artifacts, -o, TMPDIR)" in said
    monkeypatch.setattr(output_files, "_device", lambda path: hash(path))
    assert said.count(" free in ") + 1 == describe_os_error(full).count(" free in "), (
        "libraries may have filled that one"
    )
    other = FileNotFoundError(2, "No such file or directory", "x")
    add_path(other, tmp_path)
    assert describe_os_error(other) == "No such file or directory: x."


@pytest.mark.parametrize("verb", ["bundle", "infer"])
def test_a_disk_that_fills_up_names_the_output(
    finished_chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tarfile.TarFile.add" if verb == "bundle" else "os.fsync", full)
    output = tmp_path / ("x.tar" if verb == "bundle" else "x.csv")
    photo = next((finished_chain.images / "red").iterdir())
    assert finished_chain.run(verb, *([str(photo)] if verb == "infer" else []), "-o", str(output)) == 2
    assert f"Expected space to write {output}. Received: No space left on device (" in capsys.readouterr().err


def test_a_full_disk_during_a_stage_names_its_folder(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(*_: object, **__: object) -> None:
        leave(monkeypatch, 0)
        raise OSError("15092 requested and 0 written")

    monkeypatch.setattr(np, "savez", cut)
    shutil.rmtree(chain.root / "verify")
    assert chain.run("verify") == 2
    said = capsys.readouterr().err
    assert f"Expected space to write {chain.root / 'verify'}. Received: No space left on device (0 bytes" in said
    assert "Finished stages stay; verify has no result yet." in said
