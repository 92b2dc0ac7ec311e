from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import ProjectError, add_note, notes
from export.files import ROOT, digest_of, recover_folder, replacing_folder, write_atomic
from pipeline.artifacts.files import LOCK_HELD, read_json, recipe_lock, sha256_file, sha256_json, write_json
from pipeline.artifacts.manifest import Key, read_manifest, why_stale, write_manifest
from pipeline.data.dataset import load_image_set
from pipeline.recipe.schema import Data


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in another process; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != LOCK_HELD} | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text(text)
    return folder


# --- write_atomic, JSON ---


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "a.bin"
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    write_atomic(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("former", ["old", None])
def test_full_disk_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, former: str | None
) -> None:
    path = tmp_path / "a.json"
    if former is not None:
        path.write_text(former)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":
        real = Path.open

        def opened(self: Path, *args: object, **kwargs: object) -> object:
            file = real(self, *args, **kwargs)
            return _FullFile(file) if ".tmp-" in self.name else file

        monkeypatch.setattr(Path, "open", opened)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left") as info:
        write_atomic(path, "new" * 1000)
    assert info.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert content(tmp_path) == ({"a.json": former} if former is not None else {})


class _FullFile:
    """A file on a disk that takes ten more bytes."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self) -> _FullFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    full = tmp_path / f".a.json.tmp-{os.getpid()}-0-0"
    full.symlink_to("/dev/full")
    monkeypatch.setattr("export.files.temporary_path", lambda path: full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert content(tmp_path) == {"a.json": "old"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"a": float("-inf")}]])
def test_write_json_refuses_what_is_no_json(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": "ü"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, value)
    assert read_json(path) == {"a": "ü"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b'{"a": 1', b"", b"\xff\xfe\x00", b"{'a': 1}"])
def test_read_json_damaged(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(damage)
    with pytest.raises(ProjectError, match=r"Expected JSON in .*a\.json.*Delete it and run its stage again"):
        read_json(path)


def test_read_json_missing(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"a\.json, which does not exist"):
        read_json(tmp_path / "a.json")


# --- hashes ---


def test_sha256_of_files_follows_content_not_names_or_times(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert sha256_file(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert sha256_file(path) == hashlib.sha256(b"other").hexdigest()
    os.utime(path, ns=(1, 1))
    assert sha256_file(path) == hashlib.sha256(b"other").hexdigest()


def test_sha256_of_a_file_replaced_within_one_tick_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for text in ("one", "two"):
        write_atomic(path, text)
        os.utime(path, ns=(10**18, 10**18))
        assert sha256_file(path) == hashlib.sha256(text.encode()).hexdigest()


def test_sha256_json_ignores_the_order_of_keys_only() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": [1, 2]}) != sha256_json({"a": [2, 1]})


# --- replacing_folder ---


@pytest.mark.parametrize("former", [True, False])
def test_replacing_folder(tmp_path: Path, former: bool) -> None:
    final = tmp_path / "deep" / "stage"
    if former:
        fill(final, "old")
        (final / "gone.txt").write_text("gone")
    with replacing_folder(final) as temporary:
        assert temporary.is_dir()
        assert not list(temporary.iterdir())
        fill(temporary, "new")
        assert final.exists() == former
    assert content(final.parent) == {"stage/a.txt": "new"}
    assert [p.name for p in final.parent.iterdir()] == ["stage"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("former", [True, False])
def test_replacing_folder_keeps_the_former_on_any_error(tmp_path: Path, error: type[BaseException], former) -> None:
    final = tmp_path / "stage"
    if former:
        fill(final, "old")

    def work() -> None:
        with replacing_folder(final) as temporary:
            fill(temporary, "new")
            raise error

    with pytest.raises(error):
        work()
    assert content(tmp_path) == ({"stage/a.txt": "old"} if former else {})
    assert [p.name for p in tmp_path.iterdir()] == (["stage"] if former else [])


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_rename_that_fails_keeps_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: type[BaseException]
) -> None:
    final = fill(tmp_path / "stage", "old")
    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise error("no")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(error), replacing_folder(final) as temporary:
        fill(temporary, "new")
    assert len(calls) >= failing
    assert content(tmp_path) == {"stage/a.txt": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({".stage.tmp-4194997": "half"}, None),
        ({"stage": "old", ".stage.tmp-4194997": "half", ".stage.tmp-4194998": "half"}, "old"),
        ({".stage.former": "old", ".stage.tmp-4194997": "new"}, "old"),  # killed between the two renames
        ({".stage.former": "old", "stage": "new"}, "new"),  # killed before the former was removed
        ({"stage": "old", "stage2": "other", ".stage2.tmp-4194997": "other"}, "old"),
    ],
)
def test_recovery_from_every_state_a_kill_can_leave(tmp_path: Path, found: dict[str, str], expected) -> None:
    for name, text in found.items():
        fill(tmp_path / name, text)
    recover_folder(tmp_path / "stage")
    others = {f"{name}/a.txt": text for name, text in found.items() if "stage2" in name}
    assert content(tmp_path) == ({"stage/a.txt": expected} if expected else {}) | others
    recover_folder(tmp_path / "stage")
    assert content(tmp_path) == ({"stage/a.txt": expected} if expected else {}) | others


def test_recovery_where_nothing_is(tmp_path: Path) -> None:
    recover_folder(tmp_path / "no" / "stage")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from export import files
final, point = Path(sys.argv[1]), sys.argv[2]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
rename, calls = os.rename, []
def counted(source, target):
    calls.append(1)
    rename(source, target)
    if point == f"rename {len(calls)}":
        die()
os.rename = counted
with files.replacing_folder(final) as temporary:
    (temporary / "a.txt").write_text("new")
    if point == "inside":
        die()
if point == "after":
    die()
"""


@pytest.mark.parametrize(
    ("point", "expected"), [("inside", "old"), ("rename 1", "old"), ("rename 2", "new"), ("after", "new")]
)
def test_recovery_after_a_real_kill(tmp_path: Path, start, point: str, expected: str) -> None:
    final = fill(tmp_path / "stage", "old")
    process = start(KILLED, final, point)
    assert process.wait(30) == -signal.SIGKILL
    if point == "rename 1":
        assert not final.exists()
    recover_folder(final)
    assert content(tmp_path) == {"stage/a.txt": expected}
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


# --- recipe_lock ---

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.artifacts.files import recipe_lock
with recipe_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline() if len(sys.argv) > 2 else time.sleep(60)
"""
WAITER = """
import logging, sys
from pathlib import Path
from export.errors import ProjectError
from pipeline.artifacts.files import recipe_lock
logging.basicConfig(format="%(message)s")
try:
    with recipe_lock(Path(sys.argv[1]), wait=sys.argv[2] == "wait"):
        print("held", flush=True)
except ProjectError as error:
    print("refused", error, flush=True)
"""


def test_no_wait_names_the_holder_and_a_killed_holder_frees_the_lock(tmp_path: Path, start) -> None:
    holder = start(HOLDER, tmp_path)
    assert holder.stdout.readline() == "held\n"
    refusal = pytest.raises(ProjectError, match=rf"in use by process {holder.pid} since 20")
    with refusal as info, recipe_lock(tmp_path, wait=False):
        pytest.fail("two hold one lock")
    assert "--no-wait" in str(info.value)
    assert LOCK_HELD not in os.environ
    holder.kill()
    holder.wait(10)
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == holder.pid, "it left its name behind"
    with recipe_lock(tmp_path, wait=False):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()


def test_a_second_process_waits_and_goes_on(tmp_path: Path, start) -> None:
    with recipe_lock(tmp_path):
        waiter = start(WAITER, tmp_path, "wait")
        assert f"in use by process {os.getpid()}" in waiter.stderr.readline()
        time.sleep(0.2)
        assert waiter.poll() is None, "it did not wait"
        refused = start(WAITER, tmp_path, "no")
        assert refused.communicate(timeout=30)[0].startswith("refused")
    assert waiter.communicate(timeout=30)[0] == "held\n"
    assert waiter.returncode == 0


def test_a_waiting_process_goes_on_when_the_holder_is_killed(tmp_path: Path, start) -> None:
    holder = start(HOLDER, tmp_path)
    assert holder.stdout.readline() == "held\n"
    waiter = start(WAITER, tmp_path, "wait")
    assert f"process {holder.pid}" in waiter.stderr.readline()
    holder.kill()
    assert waiter.communicate(timeout=30)[0] == "held\n"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_note_of_the_holder_is_no_crash(tmp_path: Path, start, damage: bytes) -> None:
    holder = start(HOLDER, tmp_path)
    assert holder.stdout.readline() == "held\n"
    (tmp_path / ".lock.json").write_bytes(damage)
    with pytest.raises(ProjectError, match="in use by another process"), recipe_lock(tmp_path, wait=False):
        pass


def test_the_lock_is_freed_by_an_error_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), recipe_lock(tmp_path / "r", wait=False):
            raise KeyboardInterrupt
    assert LOCK_HELD not in os.environ
    with recipe_lock(tmp_path / "r", wait=False):
        pass


def test_commands_started_under_the_lock_pass_through_and_leave_it_held(tmp_path: Path, start) -> None:
    with recipe_lock(tmp_path):
        held = os.environ[LOCK_HELD]
        with recipe_lock(tmp_path, wait=False):  # as a child that inherits the environment
            pass
        assert os.environ[LOCK_HELD] == held
        assert (tmp_path / ".lock.json").exists()
        assert start(WAITER, tmp_path, "no").communicate(timeout=30)[0].startswith("refused")
    assert LOCK_HELD not in os.environ


def test_a_folder_made_for_the_lock_alone_goes(tmp_path: Path, start) -> None:
    with pytest.raises(ProjectError), recipe_lock(tmp_path / "a" / "toy"):
        raise ProjectError("nothing to do")
    assert list(tmp_path.iterdir()) == []
    with recipe_lock(tmp_path / "a" / "toy"):
        (tmp_path / "a" / "toy" / "result").write_text("")
        (tmp_path / "a" / "other").mkdir()
    assert (tmp_path / "a" / "toy" / "result").exists()
    (tmp_path / "b").mkdir()
    with recipe_lock(tmp_path / "b"):
        pass
    assert (tmp_path / "b").exists(), "it was there before"


def test_who_waits_gets_the_lock_though_the_folder_goes(tmp_path: Path, start) -> None:
    with recipe_lock(tmp_path / "toy"):
        waiter = start(WAITER, tmp_path / "toy", "wait")
        assert "in use by process" in waiter.stderr.readline()
    assert waiter.communicate(timeout=30)[0] == "held\n"


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, left = os.mkdir, [1]

    def goes(path: object, *more: object, **named: object) -> None:
        if Path(os.fsdecode(path)).name == "toy" and left.pop():  # type: ignore[arg-type]
            left.append(0)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(path))  # type: ignore[arg-type]
        left.append(0)
        make(path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "mkdir", goes)
    with recipe_lock(tmp_path / "toy"):
        assert (tmp_path / "toy" / ".lock").is_file()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ProjectError, match="File exists"), recipe_lock(tmp_path / name):
            pass


def read_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse to write below a folder, as a disk mounted to be read does; permissions do not stop an administrator."""
    make, open_, mkdir = os.open, Path.open, Path.mkdir

    def refuse(path: object) -> None:
        if Path(os.fsdecode(path)).is_relative_to(folder):  # type: ignore[arg-type]
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))  # type: ignore[arg-type]

    def opened(path: object, flags: int, *more: object, **named: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return make(path, flags, *more, **named)  # type: ignore[arg-type]

    def written(self: Path, mode: str = "r", *more: object, **named: object) -> object:
        if mode[0] != "r":
            refuse(self)
        return open_(self, mode, *more, **named)  # type: ignore[call-overload]

    def made(self: Path, *more: object, **named: object) -> None:
        if not self.exists():
            refuse(self)
        mkdir(self, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "open", written)
    monkeypatch.setattr(Path, "mkdir", made)


def test_a_folder_that_cannot_be_written_is_read_and_said_where_something_is_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "artifacts" / "toy"
    folder.mkdir(parents=True)
    read_only(monkeypatch, tmp_path / "artifacts")
    caplog.set_level("INFO")
    with recipe_lock(folder):
        assert LOCK_HELD in os.environ, "the benchmark that `run` starts asks for nothing"
    assert f"{folder} cannot be written (Read-only file system): what is up to date there is used" in caplog.text
    assert LOCK_HELD not in os.environ
    said = rf"Received: {folder}: Read-only file system\. Name another with --artifacts\."
    with pytest.raises(ProjectError, match=said) as caught, recipe_lock(folder), replacing_folder(folder / "train"):
        pass
    with pytest.raises(ProjectError, match=r"Received: .*new: Read-only"), recipe_lock(tmp_path / "artifacts" / "new"):
        pass
    assert "for the results of this recipe" in str(caught.value)


@pytest.mark.parametrize("place", ["file", "file/toy"])
def test_artifacts_that_are_a_file(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match="Expected a folder that can be written"), recipe_lock(tmp_path / place):
        pass


def test_errors_of_other_places_are_not_the_locks(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), recipe_lock(tmp_path / "toy"):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/photo.jpg")


def test_locks_of_two_recipes_are_independent(tmp_path: Path, start) -> None:
    with recipe_lock(tmp_path / "a"):
        assert start(WAITER, tmp_path / "b", "no").communicate(timeout=30)[0] == "held\n"


# --- names that are no text ---

NO_TEXT = os.fsdecode(b"ph\xfcto\xff.png") if os.name != "nt" else "ph\udcfcto\udcff.png"


def test_json_of_a_name_that_is_no_text_is_json_and_reads_the_same(tmp_path: Path) -> None:
    value = {NO_TEXT: ["ä", NO_TEXT, "\\udcff"]}
    write_json(tmp_path / "a.json", value)
    assert r"ph\udcfcto\udcff.png" in (tmp_path / "a.json").read_bytes().decode()
    assert read_json(tmp_path / "a.json") == value


def test_hashes_of_names(tmp_path: Path) -> None:
    text = {"b": "ä😀", "a": [1.5, None]}
    assert sha256_json(text) == "b0f8db4eb386745439929e9524719a8931db6211a74fe99874b07e7cacf473b6"
    assert sha256_json(NO_TEXT) != sha256_json(NO_TEXT.replace("\udcff", "\udcfe"))


def test_images_in_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    try:
        for name in (NO_TEXT, "b"):
            (tmp_path / "data" / name).mkdir(parents=True)
            for index in range(12):
                pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}{NO_TEXT}")
    except OSError:
        pytest.skip("this file system takes text only")
    images = load_image_set(Data(source="folder", path=str(tmp_path / "data")))
    assert set(images.classes) == {r"ph\udcfcto\udcff.png", "b"}, "libraries take the names of classes"
    assert images.splits["train"][0].read() is not None
    write_json(tmp_path / "out" / "images.json", images.table("train"))
    key = Key({"data/train": images.fingerprint("train"), f"train/{NO_TEXT}": "0"}, {"path": NO_TEXT}, "c")
    write_atomic(tmp_path / "out" / NO_TEXT, "page")
    write_manifest(
        tmp_path / "out", stage="train", recipe="toy", key=key, seconds=1, result={"skipped": {NO_TEXT: "x"}}
    )
    manifest = read_manifest(tmp_path / "out")
    assert manifest.result == {"skipped": {NO_TEXT: "x"}}
    assert why_stale(tmp_path / "out", manifest, key) == []


# --- what Python 3.11 brought ---


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_digest_in_pieces_is_that_of_the_whole(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(data)
    for algorithm in ("sha256", "md5"):
        with (tmp_path / "x").open("rb") as file:
            assert digest_of(file, algorithm) == hashlib.new(algorithm, data).hexdigest()


def test_notes_are_those_that_python_prints() -> None:
    error = OSError(errno.ENOSPC, "full")
    assert notes(error) == ()
    add_note(error, "one")
    error.add_note("two")
    add_note(error, "three")
    assert notes(error) == ("one", "two", "three")
    assert error.__notes__ == ["one", "two", "three"]
