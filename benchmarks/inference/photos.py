"""The images that are classified: photographs, the same in a camera's size, and many small pictures.

All of them are made of the caller's photographs, or drawn, alike in every run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from export.errors import DataError
from pipeline.recipe.messages import EXTENSIONS

CAMERA = (4000, 3000)  # width and height: 12 megapixels
QUALITY = 90
NOISE = 10.0  # standard deviation in grey levels, as of a small sensor indoors: files of 3 to 5 MB
_SPARE = 256  # pixels by which the noise is larger than the picture, so that each gets another part of it
PICTURES = 1000  # small pictures in a folder


def find_photos(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not photos:
        what = "no image below it" if folder.is_dir() else "no such folder"
        raise DataError(
            f"--photos: expected a folder of photographs, which are no part of this project. Received: {folder}, "
            f"{what}. Name one with some hundred."
        )
    return photos


def copy_photos(photos: Sequence[Path], folder: Path, number: int) -> None:
    """Copy photographs, over and over, until there are ``number`` of them; each row has a file of its own."""
    folder.mkdir()
    for at in range(number):
        source = photos[at % len(photos)]
        shutil.copyfile(source, folder / f"{at:06d}{source.suffix.lower()}")


def make_camera_photos(photos: Sequence[Path], folder: Path, number: int, size: tuple[int, int] = CAMERA) -> None:
    """Write photographs as a camera would: 12 megapixels with a sensor's noise, JPEG of quality 90, 4:2:0.

    Args:
        photos: that are enlarged; each is used as often as needed, with other noise.
        folder: that is made.
        number: of files.
        size: width and height in pixels. Defaults to 4000x3000.
    """
    folder.mkdir()
    width, height = size
    drawn = np.random.default_rng(0)
    noise = drawn.standard_normal((height + _SPARE, width + _SPARE, 3), np.float32)
    grains = np.rint(NOISE * noise).astype(np.int16)
    places = drawn.integers(0, _SPARE, (number, 2))

    def write(at: int) -> None:
        with Image.open(photos[at % len(photos)]) as image:
            enlarged = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        top, left = places[at]
        pixels = np.asarray(enlarged).astype(np.int16)
        pixels += grains[top : top + height, left : left + width]
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{at:06d}.jpg", quality=QUALITY, subsampling="4:2:0")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, range(number)):
            pass


def make_small_pictures(folder: Path, rows: int, side: int = 32) -> list[Path]:
    """Make folders of small PNG pictures whose paths are ``rows`` different ones, at the cost of a thousand files.

    The folders are links to one. A path through another link is another path, so it is a row of its own, read and
    decoded like any other.

    Args:
        folder: that is made.
        rows: number of paths.
        side: of the pictures in pixels. Defaults to 32.

    Returns:
        list[Path]: the folders; together they have ``rows`` paths, or a few more to fill the last one.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    number = min(PICTURES, rows)
    for at in range(number):
        Image.fromarray(drawn.integers(0, 256, (side, side, 3), np.uint8)).save(pictures / f"{at:03d}.png")
    links = [folder / f"{at:05d}" for at in range(-(-rows // number))]
    for link in links:
        link.symlink_to(pictures, target_is_directory=True)
    return links


def write_list(folders: Sequence[Path], file: Path) -> int:
    """Write the paths of the small pictures as a list, one a line, and return their number."""
    names = sorted(path.name for path in folders[0].iterdir())
    with file.open("w", encoding="utf-8") as lines:
        for folder in folders:
            lines.writelines(map(partial("{}/{}\n".format, folder), names))
    return len(folders) * len(names)
