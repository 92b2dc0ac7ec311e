"""What has the name of an image and is none: pipes, devices, files of gigabytes. They are named and never read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from export.errors import DataError, ImageError
from pipeline.data import image_files
from pipeline.data.dataset import load_image_set
from pipeline.data.decode import DecodeSpec, load_image
from pipeline.data.image_files import LARGEST_FILE, Budget, hash_image_file, image_file, open_image_file
from pipeline.recipe.schema import Data
from tests.bounded import attempts

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def sound(path: Path, grey: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)
    return path


@needs_pipes
@pytest.mark.timeout(30)
def test_what_is_no_image_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "pipe.png")
    large = sparse(tmp_path / "large.png", 6 * 2**30)
    named = [tmp_path / "pipe.png", link, Path("/dev/zero"), large, sound(tmp_path / "sound.png", 2)]
    decode = DecodeSpec((4, 4), "stretch")

    def reason(path: Path) -> str:
        try:
            decode.pixels(path)
        except ImageError as error:
            return str(error)
        return ""

    assert [reason(path) for path in named] == [
        "a pipe, not a regular file", "a pipe, not a regular file", "a device, not a regular file",
        f"6,442,450,944 bytes, more than the {LARGEST_FILE:,} allowed", "",
    ]  # fmt: skip


def test_files_of_gigabytes_fill_no_memory(tmp_path: Path) -> None:
    large = sparse(tmp_path / "large.png", 6 * 2**30)
    held = sparse(tmp_path / "held.png", LARGEST_FILE // 4)
    calls = [
        ("pipeline.data.decode:load_image", large, [[4, 4]]),
        ("pipeline.data.sources:_hash_file", large, []),
        ("pipeline.data.sources:_hash_file", held, []),
        ("pipeline.data.image_files:hash_image_file", held, []),
        ("pipeline.data.decode:load_image", held, [[4, 4]]),
    ]
    imports = ["pipeline.data.sources", "pipeline.data.decode"]
    refused, unhashed, no_image, hashed, filling = attempts(calls, imports, memory=32 * 2**20)
    assert (refused.error, filling.error) == ("ImageError", "ImageError")
    assert "6,442,450,944 bytes, more than" in refused.message
    assert "6,442,450,944 bytes, more than" in unhashed.message
    assert max(refused.bytes_read, unhashed.bytes_read, no_image.bytes_read) < 2**20
    assert "not an image that Pillow can read" in no_image.message
    assert (hashed.error, hashed.bytes_read > LARGEST_FILE // 4) == ("", True)
    assert filling.message == "more than fits into the memory that is left"


@needs_pipes
@pytest.mark.timeout(30)
def test_data_that_lists_what_is_no_image_file(tmp_path: Path) -> None:
    for index in range(3):
        sound(tmp_path / "data" / "a" / f"{index}.png", index)
        sound(tmp_path / "data" / "b" / f"{index}.png", 10 + index)
    sparse(tmp_path / "data" / "b" / "large.png", LARGEST_FILE + 1)
    with pytest.raises(DataError, match=r"b/large\.png: 536,870,913 bytes, more than the 536,870,912 allowed\nRemove"):
        load_image_set(Data(path=str(tmp_path / "data")))
    table = tmp_path / "labels.csv"
    table.write_text("image,label\n" + "".join(f"data/{c}/{n}.png,{c}\n" for c in "ab" for n in range(3)))
    config = Data(source="csv", path=str(table))
    columns = type(config.columns)(image="image", label="label")
    assert len(load_image_set(Data(source="csv", path=str(table), columns=columns)).classes) == 2
    with table.open("a") as file:
        file.write("data/b/large.png,b\n")
    with pytest.raises(DataError, match=r"large\.png: 536,870,913 bytes"):
        load_image_set(Data(source="csv", path=str(table), columns=columns))


def test_content_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"0123456789" * 100_000)
    with image_file(path) as data:
        assert data == path.read_bytes()
    assert hash_image_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ImageError, match="a folder, not a regular file"), image_file(tmp_path):
        pass


def test_what_fails_while_a_file_is_open_is_not_said_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the caller"), image_file(sound(tmp_path / "x.png")):
        raise OSError("of the caller")


def test_the_largest_file_is_taken(tmp_path: Path) -> None:
    path = sound(tmp_path / "x.png")
    size = path.stat().st_size
    assert load_image(path, (4, 4), largest_file=size).pixels.shape == (4, 4, 3)
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match=f"{size} bytes, more than the {size - 1} allowed") as caught:
            load_image(source, (4, 4), largest_file=size - 1)
        assert caught.value.status == "too_large"


@pytest.mark.parametrize("opens", [image_file, open_image_file])
def test_a_file_that_is_open_has_its_part_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: Callable[[Path], AbstractContextManager[object]]
) -> None:
    class Recorded(Budget):
        held: ClassVar[list[int]] = []

        @contextmanager
        def hold(self, amount: int) -> Iterator[None]:
            self.held.append(amount)
            yield
            self.held.clear()

    monkeypatch.setattr(image_files, "FILE_BYTES", Recorded(1000))
    path = sound(tmp_path / "a.png")
    with opens(path):
        assert Recorded.held == [path.stat().st_size]
    assert Recorded.held == []
