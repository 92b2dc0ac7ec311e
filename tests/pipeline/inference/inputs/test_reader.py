"""The content of items: paths as they are, members of tars; an archive that is not the listed one is refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export.errors import ImageError
from pipeline.inference.inputs.plan import Plan
from pipeline.inference.inputs.reader import MOST_OPEN, open_reader
from pipeline.inference.items import Item
from tests.pipeline.inference.inputs.parts import only, plan, touch
from tests.pipeline.inference.inputs.tars import write_tar


def refusal(made: Plan, item: Item, largest: int = 100) -> tuple[str, str]:
    with open_reader(made) as reader, pytest.raises(ImageError) as told:
        reader.content(item, largest)
    return told.value.status, str(told.value)


def test_a_file_is_its_path_whatever_is_there() -> None:
    touch("a\udce9.jpg")
    os.mkfifo("b.jpg")
    made = plan("a\udce9.jpg", "b.jpg")
    with open_reader(made) as reader:
        assert [reader.content(item, 0) for item in made.items()] == [Path("a\udce9.jpg"), Path("b.jpg")]


def test_a_problem_has_its_reason_and_status() -> None:
    touch("a.jpg")
    made = plan("no.jpg", "a.jpg")
    assert refusal(made, next(made.items())) == ("missing", "does not exist; did you mean 'a.jpg'?")


def test_a_member_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar("s.tar", {"a.jpg": b"x" * 101})
    made = plan("s.tar")
    monkeypatch.setattr(os, "pread", None)
    assert refusal(made, only(made)) == ("too_large", "101 bytes, more than the 100 allowed")


@pytest.mark.parametrize("has_pread", [True, False])
def test_threads_read_one_tar_at_once(monkeypatch: pytest.MonkeyPatch, has_pread: bool) -> None:
    if not has_pread:  # as on Windows
        monkeypatch.delattr(os, "pread")
    members = {f"{number}.jpg": b"%d" % number * number for number in range(1500)}
    write_tar("s.tar", members)
    made = plan("s.tar")
    with open_reader(made) as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda item: reader.content(item, 2**20), made.items())) == list(members.values())


def test_few_archives_are_open_at_once_and_none_afterwards() -> None:
    for number in range(3 * MOST_OPEN):
        write_tar(f"{number:02}.tar", {"a.jpg": b"%d" % number})
    made = plan("*.tar")
    before = len(os.listdir("/proc/self/fd"))
    with open_reader(made) as reader:
        for item in [*made.items(), *made.items(0, 3)]:
            assert reader.content(item, 100) == b"%d" % int(item.path[:2])
            assert len(os.listdir("/proc/self/fd")) <= before + MOST_OPEN + 2  # the plan's own among them
        assert len(os.listdir("/proc/self/fd")) == before + MOST_OPEN
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("change", ["time", "size", "cut", "replaced", "within"])
def test_an_archive_that_was_changed_since_is_refused(change: str) -> None:
    write_tar("s.tar", {"a.jpg": b"abc"})
    os.utime("s.tar", ns=(10**18, 10**18))
    made = plan("s.tar")
    item = only(made)
    if change == "time":
        os.utime("s.tar", ns=(10**18 + 1, 10**18 + 1))
    elif change == "size":
        os.truncate("s.tar", 5000)
        os.utime("s.tar", ns=(10**18, 10**18))
    elif change == "cut":  # within the member, which is not what is damaged
        os.truncate("s.tar", 513)
        os.utime("s.tar", ns=(10**18, 10**18))
    elif change == "replaced":
        write_tar("t.tar", {"a.jpg": b"xyz"})
        os.replace("t.tar", "s.tar")
    with open_reader(made) as reader:
        if change == "within":
            assert reader.content(item, 100) == b"abc"
            with open("s.tar", "r+b") as file:
                file.write(b"x")
        with pytest.raises(ImageError, match=r"^s\.tar was changed after it was listed$") as told:
            reader.content(item, 100)
        assert told.value.status == "unreadable"


def test_an_archive_that_is_gone() -> None:
    write_tar("s.tar", {"a.jpg": b"abc"})
    made = plan("s.tar")
    os.remove("s.tar")
    assert refusal(made, only(made)) == ("missing", "s.tar: No such file or directory")


def test_a_member_that_is_not_there_in_full_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar("s.tar", {"a.jpg": b"abcdef"})
    made = plan("s.tar")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, min(size, 2), start))
    with open_reader(made) as reader:
        assert reader.content(only(made), 100) == b"abcdef"
    monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, size - 1, start) if size > 5 else b"")
    assert refusal(made, only(made)) == ("damaged", "the tar ends after 5 bytes of 6")


def test_an_archive_that_changes_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar("s.tar", {"a.jpg": b"abc"})
    made = plan("s.tar")
    pread = os.pread

    def changing(file: int, size: int, start: int) -> bytes:
        os.utime("s.tar", ns=(1, 1))
        return pread(file, size, start)

    monkeypatch.setattr(os, "pread", changing)
    assert refusal(made, only(made)) == ("unreadable", "s.tar was changed after it was listed")
