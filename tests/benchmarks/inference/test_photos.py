"""The images of the inference benchmark: alike in every run, as a camera writes them, a path for each row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.inference.photos import (
    copy_photos,
    find_photos,
    make_camera_photos,
    make_small_pictures,
    write_list,
)
from export.errors import DataError
from pipeline.data.decode import DecodeSpec


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "given"
    folder.mkdir()
    for name, tint in (("a.jpg", (200, 60, 50)), ("b.png", (60, 80, 200))):
        Image.new("RGB", (40, 30), tint).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return find_photos(folder)


def test_photos_are_found_and_their_absence_is_named(photos: list[Path], tmp_path: Path) -> None:
    assert [path.name for path in photos] == ["a.jpg", "b.png"]
    (tmp_path / "empty").mkdir()
    for folder, why in (("empty", "no image below it"), ("absent", "no such folder")):
        with pytest.raises(DataError, match=f"--photos: expected .*no part of this project.*{why}"):
            find_photos(tmp_path / folder)


def test_every_row_has_a_file_of_its_own(photos: list[Path], tmp_path: Path) -> None:
    copy_photos(photos, tmp_path / "copies", 5)
    copies = sorted((tmp_path / "copies").iterdir())
    assert [path.suffix for path in copies] == [".jpg", ".png", ".jpg", ".png", ".jpg"]
    assert copies[4].read_bytes() == photos[0].read_bytes()
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in copies)


def test_camera_photos_are_as_a_camera_writes_them_and_alike_in_every_run(photos: list[Path], tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_camera_photos(photos, tmp_path / name, 3, (320, 240))
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with Image.open(first[0]) as image:
        assert (image.format, image.size) == ("JPEG", (320, 240))
        assert [component[1:3] for component in image.layer] == [(2, 2), (1, 1), (1, 1)], "4:2:0"  # type: ignore[attr-defined]
        pixels = np.asarray(image).astype(float)
    assert np.abs(pixels.mean((0, 1)) - (200, 60, 50)).max() < 3, "the photograph is still there"
    assert 4 < pixels[..., 1].std() < 15, "and a sensor's noise"
    with Image.open(first[2]) as image:
        assert np.asarray(image).tobytes() != pixels.astype(np.uint8).tobytes(), "the same photograph, other noise"


def test_each_small_picture_has_as_many_paths_as_rows_are_wanted(tmp_path: Path) -> None:
    folders = make_small_pictures(tmp_path / "small", 2500, side=2)
    assert write_list(folders, tmp_path / "list.txt") == 3000
    lines = (tmp_path / "list.txt").read_text().splitlines()
    assert len(set(lines)) == 3000
    assert DecodeSpec((2, 2), "stretch").pixels(lines[-1]).shape == (2, 2, 3)
    assert len(list((tmp_path / "small").rglob("*.png"))) == 1000, "files are made once"
