"""What commands that failed or were killed leave behind: nothing, or nothing after the next one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest

from export.errors import ModelError
from export.files import ROOT, remove_leftovers, replacing_folder, temporaries_of, temporary_path, write_atomic
from pipeline.artifacts.files import recipe_lock, redirect_temporary_files, write_json


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# --- temporary files of killed processes ---

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.artifacts import files
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
command, root = sys.argv[1], Path(sys.argv[2])
if command == "lock":
    with files.recipe_lock(root):
        pass
elif command == "write":
    files.write_json(root / "a.json", {})
elif command == "plan":
    from export.tensorrt.sidecar import write_plan
    write_plan(root / "a.plan", b"plan", {})
else:
    import onnx
    from export.onnx_passes.file import save_model
    save_model(onnx.ModelProto(), root / "a.onnx")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
@pytest.mark.parametrize("command", ["lock", "write", "plan", "onnx"])
def test_a_killed_write_leaves_what_the_next_lock_removes(tmp_path: Path, command: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, command, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in names(tmp_path) if ".tmp" in name]
    with recipe_lock(tmp_path):
        pass
    assert [name for name in names(tmp_path) if name != ".lock"] == []


def test_the_next_write_of_a_file_removes_what_a_killed_one_left(tmp_path: Path, gone: int) -> None:
    (tmp_path / f".a.json.tmp-{gone}").write_text("half")
    (tmp_path / f".b.json.tmp-{gone}").write_text("of another file")
    (tmp_path / f".a.json.tmp-{os.getppid()}").write_text("of a process that is alive")
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == sorted([f".a.json.tmp-{os.getppid()}", f".b.json.tmp-{gone}", "a.json"])


def test_the_lock_removes_files_and_folders_at_any_depth_of_processes_that_are_gone(tmp_path: Path, gone: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "recipe"
    for name in ("train", ".checkpoint", "build/rtx"):
        (root / name).mkdir(parents=True)
        (root / name / "kept").write_text("kept")
    for name in ("..lock.json", "train/.model.json", ".checkpoint/.k.npz", "build/rtx/.int8.plan", ".a\nb"):
        (root / f"{name}.tmp-{gone}-0123abcd-7").write_text("half")
    (root / f".verify.tmp-{gone}" / "deep").mkdir(parents=True)
    (root / f"..unpacked.tmp-{gone}-0123abcd-0.tmp-{gone}-0123abcd-1").mkdir()
    for run in ("", "-00000000-0"):
        (root / f".own.tmp-{os.getpid()}{run}").write_text("of an earlier process with our number")
    (root / f".link.tmp-{gone}").symlink_to(outside)
    kept = [root / f".alive.tmp-{os.getppid()}", root / f"mine.tmp-{gone}", root / f".notes.tmp-{gone}x"]
    for path in kept:
        path.write_text("not to be touched")
    with recipe_lock(root):
        pass
    assert outside.is_dir()
    assert {p for p in root.rglob("*") if "tmp" in p.name} == set(kept)
    assert len(list(root.rglob("kept"))) == 3


def test_the_folder_of_a_process_that_is_alive_is_left_to_it(tmp_path: Path, gone: int) -> None:
    for process in (os.getppid(), gone):
        (tmp_path / f".data.tmp-{process}").mkdir()
    with replacing_folder(tmp_path / "data"):
        pass
    assert names(tmp_path) == [f".data.tmp-{os.getppid()}", "data"]


def test_names(tmp_path: Path, gone: int) -> None:
    for final in ("a", ".lock.json", "a.tmp-7", "a\nb"):
        temporary = temporary_path(tmp_path / final)
        assert temporary.name.startswith(f".{final}.tmp-{os.getpid()}-")
        temporary.write_text("")
        assert temporaries_of(tmp_path / final) == [temporary]
        assert temporary_path(tmp_path / final) != temporary, "each write has its own"
        remove_leftovers([temporary])
        assert temporary.exists(), "whoever writes it in this process may not be done"
        temporary.unlink()
    assert temporaries_of(tmp_path / "no" / "folder") == []
    assert names(tmp_path) == []


def test_writes_of_one_file_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path, errors, start = tmp_path / "a.json", [], threading.Barrier(8)

    def write(index: int) -> None:
        start.wait()
        try:
            for turn in range(20):
                write_json(path, [index, turn] * 1000)
        except OSError as error:  # another one replaced or removed what this one was writing
            errors.append(error)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(json.loads(path.read_text())[1::2])) == 1
    assert names(tmp_path) == ["a.json"]


# --- temporary files of libraries ---


@pytest.fixture
def everyones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_own_temporary_files_go_however_the_block_ends(everyones: Path, gone: int) -> None:
    (everyones / f".pipeline.tmp-{gone}-0123abcd-0" / "archive").mkdir(parents=True)
    alive = everyones / f".pipeline.tmp-{os.getppid()}-0123abcd-0"
    alive.mkdir()
    (everyones / "others").mkdir()

    def work() -> None:
        with redirect_temporary_files() as folder:
            assert Path(tempfile.mkdtemp()).parent == folder
            assert folder.stat().st_mode & 0o777 == 0o700
            with redirect_temporary_files():
                tempfile.mkdtemp()
            tempfile.mkdtemp()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert names(everyones) == [alive.name, "others"]
    assert tempfile.gettempdir() == str(everyones)


def damage(archive: Path, weights: Path) -> None:
    """Give an archive weights of another model, and a file that it would unpack, which is damaged."""
    with zipfile.ZipFile(archive) as packed, zipfile.ZipFile(weights) as other:
        members = {name: packed.read(name) for name in packed.namelist()}
        members["model.weights.h5"] = other.read("model.weights.h5")
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
        packed.writestr("assets/words.txt", b"one two three")
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"one two three", b"one two four!", 1))


@pytest.mark.parametrize("version", [2, 3])
def test_an_archive_that_is_refused_leaves_no_copy(tmp_path: Path, everyones: Path, version: int) -> None:
    from pipeline.keras_files.load import load_model
    from pipeline.terminal.console import start_tensorflow

    start_tensorflow()
    if version == 3:
        import keras as library
    else:
        import tf_keras as library

    for units, name in ((2, "two.keras"), (3, "three.keras")):
        layers = [library.Input((8, 8, 3)), library.layers.Flatten(), library.layers.Dense(units, "softmax")]
        model = library.Sequential(layers)
        model.save(tmp_path / name)
    damage(tmp_path / "two.keras", tmp_path / "three.keras")
    before = names(everyones)
    with pytest.raises(ModelError):
        load_model(tmp_path / "two.keras")
    load_model(tmp_path / "three.keras")
    assert names(everyones) == before


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"]
