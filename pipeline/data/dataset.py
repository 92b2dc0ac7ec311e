"""Labelled images: where they come from, and splits that keep the same picture on one side.

Each image's split follows from the sha256 of its own content, so adding, removing or changing one image never moves
another, and copies of one picture under several names cannot land on two sides.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from export.errors import DataError, ImageError
from export.words import count, listed
from pipeline.artifacts.files import as_text, sha256_json
from pipeline.artifacts.results import Unreadable
from pipeline.data.decode import DecodeSpec
from pipeline.data.folders import named, why_one_class
from pipeline.data.sample import DataMissingError, Found, Sample, find_damaged, listing, too_many_unreadable
from pipeline.data.sources import read_source
from pipeline.data.splits import DEPLOYED_WITH, Roles, roles_of
from pipeline.recipe.schema import SPLITS, Data
from pipeline.terminal.console import progress_bar

__all__ = [
    "SPLITS", "DataMissingError", "ImageSet", "Pixels", "Sample", "check_classes", "deal", "load_image_set",
]  # fmt: skip

log = logging.getLogger(__name__)

_ANY = DecodeSpec((32, 32), "stretch")  # whether a file can be decoded does not depend on the size that is asked for


@dataclass(frozen=True)
class ImageSet:
    """Classes and the four splits, each sorted by content hash (an order that names do not change)."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    duplicates: int  # copies of a picture that were left out
    crossed: Mapping[str, int] = field(default_factory=dict)  # by the split that lost them, as another keeps the same
    conflicts: tuple[str, ...] = ()  # pictures left out because they stand in two classes
    unreadable: tuple[Unreadable, ...] = ()  # left out as well
    unused: Mapping[str | None, int] = field(default_factory=dict)  # images of ready-made splits that no split takes
    came_in: Mapping[str | None, int] = field(default_factory=dict)  # images by the ready-made split they are kept from
    others: Mapping[str, int] = field(default_factory=dict)  # files of a folder that are no images, by their ending
    roles: Roles = field(default_factory=lambda: Roles({}))  # what put each image where it is

    @property
    def crossing(self) -> int:
        """Copies that stood in another split than the one that was kept."""
        return sum(self.crossed.values())

    def fingerprint(self, split: str) -> str:
        """sha256 over contents and labels of a split; names and times of files do not enter."""
        return sha256_json([[s.sha256, self.classes[s.label]] for s in self.splits[split]])

    def table(self, split: str) -> list[dict[str, str]]:
        """Name, class and content hash of each image of a split, for the record."""
        return [{"name": s.name, "class": self.classes[s.label], "sha256": s.sha256} for s in self.splits[split]]

    def told(self, finished: bool, known: Sequence[Unreadable] = ()) -> Iterator[tuple[int, str]]:
        """What a person is told of them, each line with its logging level.

        Args:
            finished: nothing is trained.
            known: unreadable images that were named before. Defaults to none.
        """
        sizes = {split: len(self.splits[split]) for split in reversed(SPLITS)}
        dealt = [f"{size:,} {split}" for split, size in sizes.items() if size or split in DEPLOYED_WITH]
        idle = [f"{number:,} of the ready-made {ready} not used" for ready, number in self.unused.items()]
        whole = sum(sizes.values()) + sum(self.unused.values())
        trained = "; nothing is trained" if finished else ""
        yield logging.INFO, f"{count(whole, 'image')}: {', '.join([*dealt, *idle])}{trained}"
        if not finished and (shares := self.roles.told()):
            yield logging.WARNING, shares
        if self.duplicates:
            yield logging.INFO, f"left out {self.copies('of pictures that are there under another name')}"
        if self.others:
            yield logging.WARNING, f"left out: {named(self.others)}"
        if new := [image for image in self.unreadable if image not in known]:
            more = "more " if known else ""
            number = count(len(new), f"{more}unreadable image")
            yield logging.WARNING, f"left out {number}:\n{listing(new)}"
        if self.conflicts:
            number = count(len(self.conflicts), "picture that stands", "pictures that stand")
            yield logging.WARNING, f"left out {number} in two classes: {listed(self.conflicts, separator='; ')}"

    def copies(self, which: str = "") -> str:
        """How many copies were left out, in words, and how many of them stood in another split.

        Args:
            which: what to say of all of them. Defaults to "".
        """
        said = " ".join(filter(None, [count(self.duplicates, "copy", "copies"), which]))
        return said + (f", {self.crossing:,} of them in another split" if self.crossing else "")


def load_image_set(config: Data, trains: bool = True) -> ImageSet:
    """Find the images of a recipe and deal them out; see `deal`.

    Args:
        config: the data section of the recipe.
        trains: whether a model is trained on them. Defaults to True; otherwise they calibrate and test.

    Raises:
        DataMissingError: the folder or file does not exist.
        DataError: no images, one class only, a picture in two classes, more unreadable files than are allowed.
    """
    return deal(read_source(config), config, trains)


def deal(found: Found, config: Data, trains: bool, damaged: Mapping[str, str] | None = None) -> ImageSet:
    """Deal the images of a source out; those that cannot be read are left out before anything is counted.

    Args:
        found: what the source holds.
        config: the data section of the recipe.
        trains: whether a model is trained on them.
        damaged: reasons why files cannot be decoded although they open, by sha256. Defaults to None: none is known.

    Raises:
        DataError: one class only, a picture in two classes, more unreadable files than the recipe allows.
    """
    classes = found.classes
    if len(classes) < 2:
        raise DataError(f"Expected at least two classes. Received: {list(classes)}. {why_one_class(config, classes)}")
    copies: dict[str, list[Sample]] = defaultdict(list)
    for sample in found.samples:
        copies[sample.sha256].append(sample)
    mixed = [group for group in copies.values() if any(sample.label != group[0].label for sample in group)]
    # Alike pictures in two classes may be nothing but alike damage.
    damaged = {**(damaged or {}), **find_damaged([group[0] for group in mixed], _ANY)}
    unreadable = _unreadable(found, damaged)
    if len(unreadable) > config.max_bad_images:
        rest = [sample for sample in found.samples if sample.sha256 not in damaged]
        unreadable = _unreadable(found, damaged | find_damaged(rest, _ANY))  # so that nobody is told twice
        raise too_many_unreadable(unreadable, config.max_bad_images, len(found.samples) + len(found.unreadable))
    roles = roles_of(config, {sample.ready for sample in found.samples}, trains)
    chosen: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    unused: Counter[str | None] = Counter()
    conflicts: list[str] = []
    duplicates, crossed = 0, Counter[str]()
    for digest in sorted(copies.keys() - damaged.keys()):
        group = copies[digest]
        if any(sample.label != group[0].label for sample in group):
            conflicts.append(" and ".join(f"{s.name} ({classes[s.label]})" for s in group))
            continue
        duplicates += len(group) - 1
        dealt = [(side, sample) for sample in group if (side := roles.split_of(sample)) is not None]
        if not dealt:
            unused[group[0].ready] += 1
            continue
        split, kept = min(dealt, key=lambda pair: SPLITS.index(pair[0]))
        chosen[split].append(kept)
        crossed.update(side for side, _ in dealt if side != split)
    if conflicts and config.duplicates_across_classes == "error":
        raise DataError(
            f"Expected each picture in one class. Received: {listed(conflicts, separator='; ')} are the same picture. "
            "Remove what is wrong, or leave these pictures out: --set data.duplicates_across_classes=drop"
        )
    return ImageSet(
        tuple(map(as_text, classes)),
        {split: tuple(samples) for split, samples in chosen.items()},
        duplicates=duplicates,
        crossed=crossed,
        conflicts=tuple(conflicts),
        unreadable=unreadable,
        unused=unused,
        came_in=Counter(sample.ready for samples in chosen.values() for sample in samples),
        others=found.others,
        roles=roles,
    )


def _unreadable(found: Found, damaged: Mapping[str, str]) -> tuple[Unreadable, ...]:
    late = [Unreadable(s.name, damaged[s.sha256], s.sha256) for s in found.samples if s.sha256 in damaged]
    return (*found.unreadable, *late)


def check_classes(images: ImageSet, classes: Sequence[str]) -> None:
    """Refuse data whose labels do not mean what the model's outputs do.

    Args:
        images: the image set, its labels as numbers of its own classes.
        classes: of the model.

    Raises:
        DataError: with both.
    """
    if tuple(images.classes) != tuple(classes):
        differ = sorted(set(images.classes) ^ set(classes))[:5] or ["another order"]
        raise DataError(
            f"Expected data of the model's {count(len(classes), 'class', 'classes')}. Received: "
            f"{len(images.classes)}; they differ in "
            f"{', '.join(differ)}. Train anew, or bring back the folders that the model was trained on."
        )


def check_readable(readable: int, minimum: int, split: str, pixels: Pixels) -> None:
    """Refuse a split of which unreadable images left too few.

    Raises:
        DataError: with the number that is left.
    """
    if readable < minimum:
        raise DataError(
            f"Expected at least {count(minimum, f'readable {split} image')}. Received: {readable:,}, and "
            f"{len(pixels.skipped):,} that could not be read. Replace those."
        )


@dataclass
class Pixels:
    """Decodes samples at one size, names what is unreadable, and gives up above the recipe's limit."""

    decode: DecodeSpec
    max_bad_images: int
    skipped: dict[str, str] = field(default_factory=dict)  # name to reason

    def one(self, sample: Sample) -> np.ndarray:
        """uint8 of shape (height, width, 3).

        Raises:
            ImageError: the image cannot be decoded.
        """
        return self.decode.pixels(sample.read())

    def batches(
        self, samples: Sequence[Sample], batch_size: int, description: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (uint8 NHWC pixels, int64 labels) with a progress bar; decoding runs ahead in threads.

        Raises:
            DataError: more unreadable images than the recipe allows; it lists all of these samples that are.
        """
        pixels: list[np.ndarray] = []
        labels: list[int] = []
        with ThreadPoolExecutor() as pool, progress_bar(total=len(samples), desc=description, unit="img") as bar:
            for start in range(0, len(samples), 4 * batch_size):
                chunk = samples[start : start + 4 * batch_size]
                for sample, decoded in zip(chunk, pool.map(self._try, chunk)):
                    bar.update()
                    if isinstance(decoded, ImageError):
                        self.skipped[sample.name] = str(decoded)
                        if len(self.skipped) <= self.max_bad_images:
                            log.warning("skipped an unreadable image: %s: %s", sample.name, decoded)
                        continue
                    if len(self.skipped) > self.max_bad_images:
                        continue  # nothing comes of these pixels; the other unreadable images are still to be named
                    pixels.append(decoded)
                    labels.append(sample.label)
                    if len(pixels) == batch_size:
                        yield np.stack(pixels), np.array(labels, dtype=np.int64)
                        pixels, labels = [], []
        if len(self.skipped) > self.max_bad_images:
            unreadable = [Unreadable(name, why) for name, why in self.skipped.items()]
            raise too_many_unreadable(unreadable, self.max_bad_images, len(samples))
        if pixels:
            yield np.stack(pixels), np.array(labels, dtype=np.int64)

    def all(self, samples: Sequence[Sample], description: str) -> tuple[np.ndarray, np.ndarray]:
        """Every readable sample at once: (uint8 NHWC, int64 labels)."""
        none = np.zeros((0, *self.decode.size, 3), np.uint8), np.zeros(0, np.int64)
        return next(self.batches(samples, max(1, len(samples)), description), none)

    def _try(self, sample: Sample) -> np.ndarray | ImageError:
        try:
            return self.one(sample)
        except ImageError as error:
            return ImageError(str(error))  # without its traceback, which refers to the file's bytes
