"""Standard input is an image, a tar or a list; what it is shows in its first bytes."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from export.errors import DataError
from pipeline.inference.inputs.plan import read_plan
from pipeline.inference.inputs.reader import open_reader
from tests.pipeline.inference.inputs.parts import only, plan, touch
from tests.pipeline.inference.inputs.tars import write_tar

FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"]


@contextmanager
def pipe(content: bytes) -> Iterator[BinaryIO]:
    """A real pipe, into which a thread writes."""
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reading, "rb") as file:
        yield file
    thread.join()


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image(kind: str) -> None:
    content = encoded(kind)
    with pipe(content) as stdin:
        made = plan("-", stdin=stdin)
    item = only(made)
    assert (item.path, item.kind, item.size) == ("-", "file", len(content))
    assert Path(item.place).parent == Path(".run")
    with open_reader(made) as reader:
        path = reader.content(item, 2**20)
    assert isinstance(path, Path)
    assert path.read_bytes() == content
    assert list(read_plan(made.file).items()) == [item]


def test_the_same_image_is_the_same_input_and_another_is_not() -> None:
    digests = set()
    for content in (encoded("PNG"), encoded("PNG"), encoded("BMP")):
        with pipe(content) as stdin:
            digests.add(plan("-", stdin=stdin).digest)
    assert len(digests) == 2


def test_an_image_without_end_is_too_large() -> None:
    content = encoded("PNG") + bytes(10**6)
    with pipe(content) as stdin:
        assert only(plan("-", stdin=stdin)).size == len(content)

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return b"\xff\xd8\xff".ljust(size or 0, b"x")

    touch("a.jpg")
    item, _ = plan("-", "a.jpg", stdin=Endless(), largest_file=2**18).items()
    assert (item.path, item.kind, item.status) == ("-", "problem", "too_large")
    assert item.place == "more than the 262,144 bytes allowed"
    assert max(path.stat().st_size for path in Path(".run").iterdir()) < 2**21


def test_a_tar() -> None:
    content = write_tar("s.tar", {"a.jpg": b"1", "a.cls": b"2", "b/c.png": b"3" * 10**5}).read_bytes()
    with pipe(content) as stdin:
        made = plan("-", stdin=stdin)
    with open_reader(made) as reader:
        assert {item.path: reader.content(item, 2**20) for item in made.items()} == {
            "-/a.jpg": b"1",
            "-/b/c.png": b"3" * 10**5,
        }
    assert made.lines() == ["left out of -: 1 .cls"]
    first = made.digest
    with pipe(content) as stdin:
        assert plan("-", stdin=stdin).digest == first
    with open_reader(made) as reader:  # the copy was written again
        assert reader.content(next(made.items()), 10) == b"1"


@pytest.mark.parametrize(
    "content", [b"a.jpg\nb.jpg\n", b"a.jpg\0b.jpg\0", b"BMW/x.jpg\nII*.jpg", b"P5 a.jpg\nRIFF.jpg"]
)
@pytest.mark.parametrize("as_list", [True, False])
def test_a_list(content: bytes, as_list: bool) -> None:
    with pipe(content) as stdin:
        made = plan(*() if as_list else "-", lists="-" if as_list else (), stdin=stdin)
    end = "\0" if b"\0" in content else "\n"
    assert [item.path for item in made.items()] == content.decode().strip(end).split(end)


def test_find_and_its_names_of_any_bytes() -> None:
    touch("p/a\n\udce9.jpg", "p/b c.jpg")
    with subprocess.Popen(["find", "p", "-name", "*.jpg", "-print0"], stdout=subprocess.PIPE) as find:
        made = plan("-", stdin=find.stdout)
    assert {item.path for item in made.items()} == {"p/a\n\udce9.jpg", "p/b c.jpg"}
    assert {item.size for item in made.items()} == {0}


def test_a_long_list_that_comes_in_pieces() -> None:
    names = [f"{number:06}.jpg" for number in range(20_000)]
    with pipe("\n".join(names).encode()) as stdin:
        assert [item.path for item in plan("-", stdin=stdin).items()] == names


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"", "nothing, it is empty."),
        (b"PAR1....", "a Parquet file. Name the file instead."),
        (b"\x1f\x8b\x08", "what gzip compressed. Uncompress it: gunzip -c FILE | ...."),
        (b"PK\x03\x04", "a zip archive. Unpack it, and name the folder."),
    ],
)
def test_what_is_no_input(content: bytes, received: str) -> None:
    with pipe(content) as stdin, pytest.raises(DataError) as told:
        plan("-", stdin=stdin)
    assert str(told.value) == f"Expected an image, a tar or a list of paths on standard input. Received: {received}"


def test_an_empty_list_and_one_of_an_image() -> None:
    with pipe(b"\n\n") as stdin, pytest.raises(DataError, match="Received: standard input, which has none"):
        plan(lists=["-"], stdin=stdin)
    with (
        pipe(b"GIF89a") as stdin,
        pytest.raises(DataError, match=r"Received: standard input, an image\. Name it without"),
    ):
        plan(lists=["-"], stdin=stdin)


def test_a_terminal_is_refused_at_once() -> None:
    controlling, terminal = pty.openpty()
    told = pytest.raises(DataError, match=r"Received: a terminal\. Send them: find photos -name '\*\.jpg' -print0")
    with open(controlling, "rb", buffering=0), open(terminal, "rb", buffering=0) as stdin, told:
        plan("-", stdin=stdin)


def test_a_closed_one_and_one_that_is_named_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="Received: none, it is closed"):
        plan("-")
    with pytest.raises(DataError, match="Expected standard input once"):
        plan("-", lists=["-"])
    with pipe(b"a.jpg\n") as stdin:
        assert len(plan("-", "-", stdin=stdin)) == 1


def test_inputs_beside_it_keep_their_order() -> None:
    touch("x.jpg", "y.jpg")
    Path("list").write_text("z.jpg\n")
    with pipe(b"a.jpg\ny.jpg\n") as stdin:
        made = plan("x.jpg", "-", "y.jpg", lists=["list"], stdin=stdin)
    assert [item.path for item in made.items()] == ["x.jpg", "a.jpg", "y.jpg", "z.jpg"]


def test_tars_of_equal_sizes_are_other_inputs() -> None:
    digests = set()
    for content in (b"1", b"2"):
        with pipe(write_tar("s.tar", {"a.jpg": content}).read_bytes()) as stdin:
            digests.add(plan("-", stdin=stdin).digest)
    assert len(digests) == 2


def test_few_bytes_at_a_time() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 7))

    content = write_tar("s.tar", {"a.jpg": b"1"}).read_bytes()
    assert only(plan("-", stdin=Slow(content))).path == "-/a.jpg"
