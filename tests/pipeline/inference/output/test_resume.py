"""A run that was stopped anywhere goes on with the same command to the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import ProjectError
from tests.pipeline.inference.output.made_runs import batch, finals, names, spec_of, work

SIZE = 2
OUTPUTS = [("out.csv", False), ("out.jsonl", True), ("out.parquet", True)]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is not waited for, where a test is about what is on it and not about when."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def whole(folder: Path, name: str, embeddings: bool, **sizes: int) -> dict[str, bytes]:
    folder.mkdir()
    assert work(folder / name, embeddings=embeddings, **sizes) == 0
    return finals(folder / name)


def stopped(output: Path, most: int, embeddings: bool, **sizes: int) -> Path:
    """Stop a run after so many batches; give its folder."""
    output.parent.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        work(output, most=most, embeddings=embeddings, **sizes)
    return output.with_name(output.name + ".run")


@pytest.mark.parametrize(("name", "embeddings"), OUTPUTS)
def test_after_each_batch_it_goes_on_where_it_was(memory_path: Path, name: str, embeddings: bool, fast: None) -> None:
    expected = whole(memory_path / "whole", name, embeddings)
    assert len(expected) == 1 + embeddings
    for most in range(1, 13):
        output = memory_path / f"{most}" / name
        stopped(output, most, embeddings)
        there = min(2 * most, 23)
        assert work(output, embeddings=embeddings) == there
        assert finals(output) == expected
        assert names(output.parent) == sorted(expected)


def cut(data: bytes, size: int) -> bytes:
    return data[:size]


def zeros(data: bytes, size: int) -> bytes:
    return data[:size].ljust(len(data) + 100, b"\0")


def junk(data: bytes, size: int) -> bytes:
    return data[:size] + bytes(byte ^ 255 for byte in data[size:]) + b"\n{}\n" * 50


@pytest.mark.parametrize("harm", [cut, zeros, junk])
@pytest.mark.parametrize(("name", "embeddings"), [("out.csv", True), ("out.jsonl", False)])
def test_an_open_shard_is_cut_to_its_last_whole_batch(
    memory_path: Path, name: str, embeddings: bool, harm: Callable[[bytes, int], bytes], fast: None
) -> None:
    """At every length of each file, as after a power loss: rows behind it are done anew, those before it are not.

    Zeros and other bytes behind it begin at every seventh.
    """
    sizes = {"total": 14, "shard_rows": 8}
    expected = whole(memory_path / "whole", name, embeddings, **sizes)
    former = stopped(memory_path / "former" / name, 6, embeddings, **sizes)  # one shard is sealed, two batches are open
    ends = [len(data) for data in (sealed_lines(name, 8, 2), sealed_lines(name, 8, 4))]
    tried = 0
    for file in ("000001.part", "000001.index", *["000001.f32"] * embeddings):
        content = (former / file).read_bytes()
        for size in range(0, len(content) + 1, 1 if harm is cut else 7):
            output = memory_path / "again" / name
            shutil.copytree(former, output.with_name(f"{name}.run"))
            harmed = harm(content, size)
            (output.with_name(f"{name}.run") / file).write_bytes(harmed)
            steps = ends if file.endswith("part") else [len(content) // 2, len(content)]
            kept = sum(harmed[:end] == content[:end] for end in steps)
            assert work(output, embeddings=embeddings, **sizes) == 8 + 2 * kept, (file, size)
            assert finals(output) == expected, (file, size)
            shutil.rmtree(output.parent)
            tried += 1
    assert tried > (300 if harm is cut else 40)


def sealed_lines(name: str, first: int, count: int) -> bytes:
    from pipeline.inference.output.lines import encode

    return encode(batch(first, count).rows, spec_of(Path(name)))


class Failing:
    """Calls of the system of which one fails, before or after it did its work."""

    CALLS = ("write", "fsync", "replace", "ftruncate", "unlink", "rmdir", "mkdir", "open")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException | None, after: bool) -> None:
        self.left = at
        self.failed = ""
        for call in self.CALLS:
            monkeypatch.setattr(os, call, self.wrapped(call, getattr(os, call), error, after))

    def wrapped(self, name: str, call: Callable[..., Any], error: BaseException | None, after: bool) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            fails = self.left == -1 and error is not None
            if fails and not after:
                self.failed = name
                raise error
            result = call(*args, **kwargs)
            if fails:
                self.failed = name
                if name == "open":
                    os.close(result)
                raise error
            return result

        return run


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["full disk", "Ctrl-C"])
@pytest.mark.parametrize(("name", "embeddings"), [("out.jsonl", True), ("out.csv", False)])
def test_whichever_call_fails_the_next_run_gives_the_same_bytes(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, embeddings: bool, kind: str, after: bool
) -> None:
    sizes = {"total": 9, "shard_rows": 4}
    expected = whole(memory_path / "whole", name, embeddings, **sizes)
    failures = set()
    for at in range(1000):
        folder = memory_path / f"{at}"
        folder.mkdir()
        output = folder / name
        output.write_text("former")
        error = KeyboardInterrupt() if kind == "Ctrl-C" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with monkeypatch.context() as patch:
            failing = Failing(patch, at, error, after)
            raised: BaseException | None = None
            try:
                work(output, embeddings=embeddings, **sizes)
            except (OSError, KeyboardInterrupt) as caught:
                raised = caught
            is_done = failing.left >= 0
        failures.add(failing.failed)
        assert raised in (None, error)
        assert output.read_bytes() in (b"former", expected[name])
        work(output, embeddings=embeddings, **sizes)
        assert finals(output) == expected, (at, failing.failed)
        assert names(folder) == sorted(expected)
        shutil.rmtree(folder)
        if is_done:
            break
    assert failures >= {"write", "fsync", "replace", "mkdir", "unlink"}
    assert at > 40


@pytest.mark.parametrize(("name", "embeddings"), OUTPUTS)
def test_a_bit_that_flips_in_a_sealed_shard_is_never_joined(
    memory_path: Path, name: str, embeddings: bool, fast: None
) -> None:
    expected = whole(memory_path / "whole", name, embeddings)
    sealed = "000000.csv" if name.endswith("csv") else "000000.jsonl"
    for file in (sealed, *["000000.f32"] * embeddings):
        output = memory_path / file / name
        folder = stopped(output, 9, embeddings)
        data = bytearray((folder / file).read_bytes())
        data[len(data) // 2] ^= 16
        (folder / file).write_bytes(data)
        with pytest.raises(ProjectError, match=r"Expected the rows 0 to 9 in .*\.run as they were written\.") as caught:
            work(output, embeddings=embeddings)
        assert caught.value.__notes__ == [f"13 of 23 rows are kept in {folder}: the same command continues."]
        assert finals(output) == {}
        assert work(output, embeddings=embeddings) == 13
        assert finals(output) == expected


def test_a_sealed_shard_that_is_shorter_or_has_no_index_is_done_anew(
    memory_path: Path, fast: None, caplog: pytest.LogCaptureFixture
) -> None:
    expected = whole(memory_path / "whole", "out.csv", True)
    harms: dict[str, Callable[[bytes], bytes]] = {
        "000000.csv": lambda data: data[:-1],
        "000000.index": lambda data: data[:70],
        "000000.f32": lambda data: b"",
    }
    for file, harm in harms.items():
        output = memory_path / file / "out.csv"
        folder = stopped(output, 9, True)
        (folder / file).write_bytes(harm((folder / file).read_bytes()))
        caplog.clear()
        assert work(output, embeddings=True) == 8
        assert f"rows 0 to 9 in {folder} are damaged: they are done anew" in caplog.text
        assert finals(output) == expected


def test_what_a_run_of_another_name_left_in_a_shard_does_not_hold(memory_path: Path, fast: None) -> None:
    """Shards that lie under another number, or come from another run's folder, have other checksums."""
    one = stopped(memory_path / "one" / "out.csv", 9, False)
    two = stopped(memory_path / "two" / "out.csv", 9, False)
    for file in ("000000.csv", "000000.index"):
        shutil.copy(one / file, two / file)
    assert work(memory_path / "two" / "out.csv") == 8
    for file in ("part", "index"):
        shutil.copy(one / f"000001.{file}", one / f"000002.{file}")
    assert work(memory_path / "one" / "out.csv") == 18
