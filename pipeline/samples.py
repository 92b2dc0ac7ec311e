"""One labelled image, as every source of images gives it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import DataError

# Where the same picture stands in several splits, the first of these keeps it. Hash ranges are dealt in this order too.
SPLITS = ("test", "validation", "calibration", "train")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "calib": "calibration",
    "calibration": "calibration",
}


class DataMissingError(DataError):
    """The data of a recipe is not on this machine."""


@dataclass(frozen=True)
class Sample:
    """One labelled image."""

    name: str  # path below the data folder, or "<source>/<index>"
    label: int
    sha256: str  # of the file's bytes, or of the array's
    read: Callable[[], Path | np.ndarray] = field(repr=False, compare=False)  # what `DecodeSpec.pixels` takes
    path: Path | None = None
    ready: str | None = None  # the ready-made split that it came in


@dataclass(frozen=True)
class Unreadable:
    """An image that is left out because it cannot be read."""

    name: str
    why: str
    sha256: str | None = None  # of a file that opens and shows only when it is decoded that it is damaged


@dataclass(frozen=True)
class Found:
    """What a source holds, before the splits."""

    samples: list[Sample]
    classes: Sequence[str]
    unreadable: tuple[Unreadable, ...] = ()  # files that do not even open as images
    others: Mapping[str, int] = field(default_factory=dict)  # files of a folder that are not taken, by what they are


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted, with numbers by value: 2 before 10. Thousands of digits are no number, and Python refuses them."""
    return sorted(names, key=lambda name: [_natural(part) for part in re.split(r"(\d+)", name) if part])


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() and len(part) < 1000 else (1, 0, part)
