"""Labelled images as every source gives them, and a check that all of them can be decoded.

The check decodes every image before the first stage, so that one error names all unreadable ones.
"""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.errors import DataError, ImageError, ProjectError
from export.words import count
from pipeline.artifacts.manifest import Manifest, read_result
from pipeline.artifacts.results import Trained, Unreadable
from pipeline.data.decode import DecodeSpec
from pipeline.terminal.console import AT_ONCE, map_in_threads

log = logging.getLogger(__name__)

MOST_NAMED = 20  # unreadable images that a message lists; the others are counted
ANNOUNCED_SECONDS = 10.0  # seconds: a longer check is announced


class DataMissingError(DataError):
    """The data of a recipe is not on this machine."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        name: path below the data folder, or "<source>/<index>".
        label: index of the class.
        sha256: of the file's bytes, or of the array's.
        read: gives the argument of `DecodeSpec.pixels`.
        path: of the file; None for an array.
        ready: the ready-made split that it came in; None: in none.
    """

    name: str
    label: int
    sha256: str
    read: Callable[[], Path | np.ndarray] = field(repr=False, compare=False)
    path: Path | None = None
    ready: str | None = None


@dataclass(frozen=True)
class SourceImages:
    """The images of a source, before they are divided into splits.

    Attributes:
        samples: the images.
        classes: names in the order of the labels.
        unreadable: files whose header is not that of an image.
        others: how many files of a folder are not taken, by kind.
    """

    samples: list[Sample]
    classes: Sequence[str]
    unreadable: tuple[Unreadable, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names with numbers by value: 2 before 10. Python refuses to convert thousands of digits: these stay text."""
    return sorted(names, key=lambda name: [_natural(part) for part in re.split(r"(\d+)", name) if part])


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() and len(part) < 1000 else (1, 0, part)


def find_damaged(samples: Sequence[Sample], decode: DecodeSpec) -> dict[str, str]:
    """Decode every file once, as training does, and discard its pixels.

    The header of a file does not show the most common damage: a missing end.

    Args:
        samples: the images; of copies one is decoded, and arrays are not.
        decode: of the model.

    Returns:
        The reason for each file that cannot be decoded, by its sha256.
    """
    files = list({s.sha256: s for s in samples if s.path is not None}.values())

    def why_not(sample: Sample) -> str | None:
        try:
            decode.pixels(sample.read())
        except ImageError as error:
            return str(error)
        return None

    damaged: dict[str, str] = {}
    start = time.perf_counter()
    for done, (sample, why) in enumerate(zip(files, map_in_threads(why_not, files, "checking images")), 1):
        if why is not None:
            damaged[sample.sha256] = why
        if (
            done == AT_ONCE
            and (seconds := (time.perf_counter() - start) / done * (len(files) - done)) > ANNOUNCED_SECONDS
        ):
            log.info(
                "decoding all %s once to find damaged ones: about %s",
                count(len(files), "image"),
                count(math.ceil(seconds / 60), "minute") if seconds > 90 else f"{seconds:.0f} s",
            )
    return damaged


def recorded_damage(manifest: Manifest | None) -> dict[str, str]:
    """Return what `find_damaged` returned when the train stage ran, from that stage's record.

    Empty where the record cannot be read. If images had been left out, the stage then runs again, as it has others.
    """
    with contextlib.suppress(ProjectError):
        unreadable = read_result(manifest, Trained).unreadable_images if manifest else ()
        return {image.sha256: image.why for image in unreadable if image.sha256}
    return {}


def too_many_unreadable(unreadable: Sequence[Unreadable], most: int, total: int) -> DataError:
    """Make the error that lists the images that cannot be read.

    Args:
        unreadable: those images.
        most: how many the recipe allows.
        total: of how many images.
    """
    return DataError(
        f"Expected at most {count(most, 'unreadable image')} (data.max_bad_images). Received: {len(unreadable):,} of "
        f"{total:,}:\n{listing(unreadable)}\nRemove or replace them, or leave them out: "
        f"--set data.max_bad_images={len(unreadable)}"
    )


def listing(unreadable: Sequence[Unreadable]) -> str:
    """Return one line for each image, with the reason; images beyond `MOST_NAMED` are counted."""
    lines = [f"  {image.name}: {image.why}" for image in unreadable[:MOST_NAMED]]
    rest = len(unreadable) - len(lines)
    return "\n".join([*lines, f"  and {rest:,} more"] if rest else lines)
