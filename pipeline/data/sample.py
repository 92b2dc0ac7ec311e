"""One labelled image, and which images can be read.

One labelled image, as every source of images gives it.

Which images can be read: all of them are tried before the first stage, so that all bad ones are named at once.
"""

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
from pipeline.terminal.console import AT_ONCE, in_threads


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


log = logging.getLogger(__name__)

MOST_NAMED = 20  # bad images that a message lists; the rest is counted
LONG = 10.0  # seconds from which on it is said how long it takes


def find_damaged(samples: Sequence[Sample], decode: DecodeSpec) -> dict[str, str]:
    """Decode every file once, as training does, and forget its pixels.

    The header of a file does not show the most common damage, that its end is missing.

    Args:
        samples: of which copies are decoded once, and arrays not at all.
        decode: of the model.

    Returns:
        The reason for each file that cannot be decoded, by its sha256.
    """
    once = list({s.sha256: s for s in samples if s.path is not None}.values())

    def why_not(sample: Sample) -> str | None:
        try:
            decode.pixels(sample.read())
        except ImageError as error:
            return str(error)
        return None

    damaged: dict[str, str] = {}
    start = time.perf_counter()
    for done, (sample, why) in enumerate(zip(once, in_threads(why_not, once, "checking images")), 1):
        if why is not None:
            damaged[sample.sha256] = why
        if done == AT_ONCE:
            seconds = (time.perf_counter() - start) / done * (len(once) - done)
            if seconds > LONG:
                left = count(math.ceil(seconds / 60), "minute") if seconds > 90 else f"{seconds:.0f} s"
                log.info("decoding all %s once to find damaged ones: about %s", count(len(once), "image"), left)
    return damaged


def recorded_damage(manifest: Manifest | None) -> dict[str, str]:
    """What `find_damaged` gave when the train stage ran, from that stage's record; nothing where it cannot be read.

    Then the images are others than the model was trained on, if any was left out, so that the stage runs again.
    """
    try:
        found = read_result(manifest, Trained).unreadable_images if manifest else ()
    except ProjectError:
        return {}
    return {one.sha256: one.why for one in found if one.sha256}


def too_many_unreadable(found: Sequence[Unreadable], most: int, total: int) -> DataError:
    """The error that lists the images that cannot be read."""
    return DataError(
        f"Expected at most {count(most, 'unreadable image')} (data.max_bad_images). Received: {len(found):,} of "
        f"{total:,}:\n{listing(found)}\nRemove or replace them, or leave them out: "
        f"--set data.max_bad_images={len(found)}"
    )


def listing(found: Sequence[Unreadable]) -> str:
    """A line an image, with the reason."""
    lines = [f"  {image.name}: {image.why}" for image in found[:MOST_NAMED]]
    more = len(found) - MOST_NAMED
    return "\n".join([*lines, *([f"  and {more:,} more"] if more > 0 else [])])
