"""Files and folders that take their places whole, and that nothing else in the project does it another way."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.errors import ProjectError
from export.files import (
    ROOT,
    commit_file,
    commit_folder,
    replacing_file,
    replacing_files,
    replacing_folder,
    temporary_folder,
    write_atomic,
)

THE_PLACE = ROOT / "export" / "files.py"
CALLS = {"os": {"replace", "rename", "renames", "link", "fsync", "fdatasync"}, "shutil": {"move"}}
CALLS["tempfile"] = {"mkstemp", "mktemp", "NamedTemporaryFile"}
IN_A_FOLDER = ("TemporaryDirectory", "mkdtemp")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def renamed(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether an import gives one of the modules, or one of their functions, another name."""
    if isinstance(node, ast.Import):
        return alias.name in CALLS and alias.asname is not None
    functions = CALLS.get(node.module or "", set()) | (set(IN_A_FOLDER) if node.module == "tempfile" else set())
    return alias.name in functions


def other_ways(source: str) -> Iterator[str]:
    """Calls that put a file in the place of another, or make a temporary one by a name of its own.

    So that each is seen by its name, the modules and the functions are imported under no other.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and any(renamed(node, alias) for alias in node.names):
            yield f"{node.lineno}: {ast.unparse(node)}"
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        module, name = ast.unparse(node.func.value), node.func.attr
        keywords = {keyword.arg for keyword in node.keywords}
        renames = name in ("rename", "hardlink_to") or (name == "replace" and len(node.args) == 1)
        renames = (renames and not keywords) or (name in ("rename", "replace") and keywords == {"target"})
        in_a_folder = module == "tempfile" and name in IN_A_FOLDER and node.keywords + node.args
        if name in CALLS.get(module, ()) or renames or in_a_folder:
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "call",
    [
        *("os.replace(a, b)", "os.fsync(f.fileno())", "path.rename(b)", "path.replace(b)", "shutil.move(a, b)"),
        *("tempfile.mkstemp()", "tempfile.NamedTemporaryFile(delete=False)", "tempfile.TemporaryDirectory(dir=out)"),
        *("path.replace(target=b)", "from os import replace as put", "import os as system", "import os, shutil as s"),
        *("from shutil import move", "from tempfile import mkdtemp"),
    ],
)
def test_other_ways_are_seen(call: str) -> None:
    assert list(other_ways(f"def f():\n    {call}\n")) == [f"2: {call}"]


def test_nothing_else_puts_a_file_in_its_place() -> None:
    files = [path for folder in ("export", "pipeline", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = [f"{path}:{call}" for path in files if path != THE_PLACE for call in other_ways(path.read_text("utf-8"))]
    assert found == []


def test_files_that_belong_together_take_their_places_when_all_are_written(tmp_path: Path) -> None:
    first, second = tmp_path / "deep" / "a.plan", tmp_path / "deep" / "a.json"
    for text in ("old", "new"):
        with replacing_files(first, second) as (one, two):
            one.write_text(text)
            assert not first.exists() or first.read_text() == "old"
            two.write_text(text)
    assert (first.read_text(), second.read_text()) == ("new", "new")
    assert names(tmp_path) == ["deep", "deep/a.json", "deep/a.plan"]


def test_of_files_that_belong_together_none_stays_with_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("old")
    replace = os.replace
    for failing, left in (("a", ["a", "b"]), ("b", [])):

        def refuse(source: Path, target: Path, failing: str = failing) -> None:
            if target.name == failing:
                raise OSError(5, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="Input/output"), replacing_files(*paths) as (one, two):
            assert one.write_text("new") == two.write_text("new")
        assert names(tmp_path) == left


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_ends_a_write_early_leaves_the_former_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(error), replacing_file(path) as temporary:
        half(temporary)
    assert names(tmp_path) == ["a"]
    assert path.read_text() == "old"


def test_a_full_disk_is_told_with_the_file_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, replacing_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")


def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is brought to the disk from now on, and of what then is renamed, in their order."""
    seen: list[str] = []
    replace, rename = os.replace, os.rename

    def renamed(source: Path, target: Path) -> None:
        seen.append(f"-> {Path(target).name}")
        (rename if Path(source).is_dir() else replace)(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "rename", renamed)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_disk_has_a_file_before_its_name_and_the_name_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = synced(monkeypatch)
    write_atomic(tmp_path / "a", "text")
    assert seen[0].startswith(".a.tmp-")
    assert seen[1:] == ["-> a", tmp_path.name]
    (tmp_path / "a.partial").write_text("rows")
    commit_file(tmp_path / "a.partial", tmp_path / "a")
    assert seen[3:] == ["a.partial", "-> a", tmp_path.name]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_disk_has_the_files_of_a_folder_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = synced(monkeypatch)
    with temporary_folder(tmp_path / "stage") as folder:
        (folder / "deep").mkdir()
        for name in ("a", "deep/b"):
            (folder / name).write_text("text")
            (folder / name).chmod(0o444)  # as archives bring them
        (folder / "deep" / "nowhere").symlink_to("x")
        commit_folder(folder, tmp_path / "stage")
    assert sorted(seen[:4]) == sorted(["a", "b", "deep", folder.name])
    assert seen[4:] == ["-> stage", tmp_path.name]
    assert names(tmp_path) == ["stage", "stage/a", "stage/deep", "stage/deep/b", "stage/deep/nowhere"]


def test_a_folder_that_is_a_link_to_another_disk_is_replaced_each_time(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("mine")
    (tmp_path / "stage").symlink_to("elsewhere")
    for text in ("one", "two"):
        with replacing_folder(tmp_path / "stage") as folder:
            (folder / "a").write_text(text)
        assert (tmp_path / "stage" / "a").read_text() == text
    assert names(tmp_path) == ["elsewhere", "elsewhere/a", "stage", "stage/a"]
    assert (tmp_path / "elsewhere" / "a").read_text() == "mine"


def test_a_folder_that_cannot_take_its_place_leaves_the_former_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new", "stage"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        commit_folder(tmp_path / "new", tmp_path / "stage")
    assert (tmp_path / "stage" / "a").read_text() == "stage"
    assert names(tmp_path) == ["new", "new/a", "stage", "stage/a"]


def test_a_folder_takes_no_files_place(tmp_path: Path) -> None:
    (tmp_path / "stage").write_text("mine")
    (tmp_path / "new").mkdir()
    with pytest.raises(ProjectError, match=r"Received: a file\. Move it away"):
        commit_folder(tmp_path / "new", tmp_path / "stage")
    assert names(tmp_path) == ["new", "stage"]


def test_a_place_that_syncs_no_folders_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if path == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    write_atomic(tmp_path / "a", b"text")
    assert names(tmp_path) == ["a"]
