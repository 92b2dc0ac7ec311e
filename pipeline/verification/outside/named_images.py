"""Images that a person names for a comparison: a folder, decoded, and told apart from calibration images by content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import DataError, ImageError
from export.words import count, listed
from pipeline.artifacts.files import sha256_bytes
from pipeline.data.decode import DecodeSpec
from pipeline.data.folders import images_below
from pipeline.data.image_files import hash_image_file
from pipeline.terminal.console import map_in_threads


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Decoded images of a folder.

    Attributes:
        names: paths below the folder, sorted.
        pixels: uint8 (N, height, width, 3).
        sha256: of each file.
    """

    names: tuple[str, ...]
    pixels: np.ndarray
    sha256: tuple[str, ...]


def read_folder(folder: Path, decode: DecodeSpec) -> NamedImages:
    """Decode every image below a folder, in the order of the sorted paths.

    Raises:
        DataError: no such folder, no image in it, or one that cannot be decoded.
    """
    paths = _paths(folder)
    pixels = list(map_in_threads(lambda path: _decoded(path, decode), paths, f"decoding {folder}"))
    names = tuple(path.relative_to(folder).as_posix() for path in paths)
    return NamedImages(names, np.stack(pixels), tuple(map(hash_image_file, paths)))


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the paths of the images below a folder by the sha256 of their content.

    Raises:
        DataError: no such folder, or no image in it.
    """
    return {hash_image_file(path): str(path) for path in _paths(folder)}


def hash_pixels(images: np.ndarray) -> list[str]:
    """Return the sha256 of each image of an array, with its type and shape."""
    return [sha256_bytes(f"{image.dtype.str} {image.shape}".encode() + image.tobytes()) for image in images]


def refuse_shared_images(images: Mapping[str, str], calibration: Mapping[str, str]) -> None:
    """Refuse images that stand among the calibration images too: scales were chosen for them, so they prove little.

    Args:
        images: names by sha256.
        calibration: names by sha256.

    Raises:
        DataError: some are in both.
    """
    both = [f"{images[digest]} (there {calibration[digest]})" for digest in images if digest in calibration]
    if both:
        raise DataError(
            f"Expected images that did not calibrate. Received: {count(len(both), 'image')} of {len(images):,} that "
            f"did, by content: {listed(both)}. Leave them out, or take others."
        )


def _paths(folder: Path) -> list[Path]:
    paths = sorted(images_below(folder)) if folder.is_dir() else []
    if not paths:
        received = "a folder without an image" if folder.is_dir() else "no folder"
        raise DataError(f"Expected a folder of images. Received: {folder}, {received}. Name another one.")
    return paths


def _decoded(path: Path, decode: DecodeSpec) -> np.ndarray:
    try:
        return decode.pixels(path)
    except ImageError as error:
        raise DataError(f"Expected images that can be decoded. Received: {path}: {error}. Remove it.") from error
