"""Labelled images in four splits; all copies of a picture are in one split.

Each image's split follows from the sha256 of its own content: adding, removing or changing one image never moves
another, and copies of one picture under several names cannot be in two splits.
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
from pipeline.artifacts.files import escape_undecodable, sha256_json
from pipeline.artifacts.results import Unreadable
from pipeline.data.decode import DecodeSpec
from pipeline.data.folders import kinds_in_words, why_one_class
from pipeline.data.sample import Sample, SourceImages, find_damaged, listing, too_many_unreadable
from pipeline.data.sources import read_source
from pipeline.data.splits import DEPLOYED_WITH, Roles, roles_of
from pipeline.recipe.schema import SPLITS, Data
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)

BATCH = 64  # images that are decoded ahead of the others

_ANY = DecodeSpec((32, 32), "stretch")  # whether a file can be decoded does not depend on the requested size


@dataclass(frozen=True)
class ImageSet:
    """Classes and the four splits, each sorted by content hash, so that names do not change the order.

    Attributes:
        classes: names in the order of the labels.
        splits: images by split.
        duplicates: how many copies of a picture were left out.
        crossed: how many copies each split lost because another split keeps the same picture.
        conflicts: pictures left out because they are in two classes, as text.
        unreadable: images left out because they cannot be decoded.
        unused: how many images of each ready-made split no split takes.
        came_in: how many of the images in `splits` came from each ready-made split.
        others: how many files of the folder were not taken, by extension.
        roles: the shares that gave each image its split.
    """

    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    duplicates: int
    crossed: Mapping[str, int] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    unused: Mapping[str | None, int] = field(default_factory=dict)
    came_in: Mapping[str | None, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    roles: Roles = field(default_factory=lambda: Roles({}))

    @property
    def crossing(self) -> int:
        """How many copies were in another split than the picture that was kept."""
        return sum(self.crossed.values())

    def fingerprint(self, split: str) -> str:
        """Return the sha256 of a split's contents and labels; names and times of files do not count."""
        return sha256_json([[s.sha256, self.classes[s.label]] for s in self.splits[split]])

    def table(self, split: str) -> list[dict[str, str]]:
        """Return name, class and content hash of each image of a split."""
        return [{"name": s.name, "class": self.classes[s.label], "sha256": s.sha256} for s in self.splits[split]]

    def log_lines(self, finished: bool, known: Sequence[Unreadable] = ()) -> Iterator[tuple[int, str]]:
        """Yield what the log says of the images, each line with its logging level.

        Args:
            finished: whether the recipe deploys a finished model, so that nothing is trained.
            known: unreadable images that were logged before. Defaults to none.
        """
        sizes = {split: len(self.splits[split]) for split in reversed(SPLITS)}
        used = [f"{size:,} {split}" for split, size in sizes.items() if size or split in DEPLOYED_WITH]
        unused = [f"{number:,} of the ready-made {ready} not used" for ready, number in self.unused.items()]
        total = count(sum(sizes.values()) + sum(self.unused.values()), "image")
        yield logging.INFO, f"{total}: {', '.join([*used, *unused])}{'; nothing is trained' if finished else ''}"
        if not finished and (warning := self.roles.sum_warning()):
            yield logging.WARNING, warning
        if self.duplicates:
            yield logging.INFO, f"left out {self.copies('of pictures that have another name too')}"
        if self.others:
            yield logging.WARNING, f"left out: {kinds_in_words(self.others)}"
        if new := [image for image in self.unreadable if image not in known]:
            number = count(len(new), f"{'more ' if known else ''}unreadable image")
            yield logging.WARNING, f"left out {number}:\n{listing(new)}"
        if self.conflicts:
            number = count(len(self.conflicts), "picture that is", "pictures that are")
            yield logging.WARNING, f"left out {number} in two classes: {listed(self.conflicts, separator='; ')}"

    def copies(self, which: str = "") -> str:
        """Return in words how many copies were left out, and how many of them were in another split.

        Args:
            which: a phrase that follows the number. Defaults to "".
        """
        number = " ".join(filter(None, [count(self.duplicates, "copy", "copies"), which]))
        return number + (f", {self.crossing:,} of them in another split" if self.crossing else "")


def load_image_set(config: Data, trains: bool = True) -> ImageSet:
    """Find the images of a recipe and divide them into splits; see `deal`.

    Args:
        config: the data section of the recipe.
        trains: whether a model is trained on them; if not, they calibrate and test. Defaults to True.

    Raises:
        DataMissingError: the folder or file does not exist.
        DataError: no images, one class only, a picture in two classes, more unreadable files than are allowed.
    """
    return split_images(read_source(config), config, trains)


def split_images(
    source: SourceImages, config: Data, trains: bool, damaged: Mapping[str, str] | None = None
) -> ImageSet:
    """Divide the images of a source into splits; those that cannot be read are left out before anything is counted.

    Args:
        source: the images of the source.
        config: the data section of the recipe.
        trains: whether a model is trained on them.
        damaged: the reason why a file cannot be decoded although it opens, by sha256. Defaults to None: none is known.

    Raises:
        DataError: one class only, a picture in two classes, more unreadable files than the recipe allows.
    """
    classes = source.classes
    if len(classes) < 2:
        raise DataError(f"Expected at least two classes. Received: {list(classes)}. {why_one_class(config, classes)}")
    copies: dict[str, list[Sample]] = defaultdict(list)
    for sample in source.samples:
        copies[sample.sha256].append(sample)
    mixed = {digest: group for digest, group in copies.items() if len({sample.label for sample in group}) > 1}
    # Equal files in two classes may only be damaged in the same way.
    damaged = {**(damaged or {}), **find_damaged([group[0] for group in mixed.values()], _ANY)}
    unreadable = _unreadable(source, damaged)
    if len(unreadable) > config.max_bad_images:
        rest = [sample for sample in source.samples if sample.sha256 not in damaged]
        unreadable = _unreadable(source, damaged | find_damaged(rest, _ANY))  # one error names all of them
        raise too_many_unreadable(unreadable, config.max_bad_images, len(source.samples) + len(source.unreadable))
    roles = roles_of(config, {sample.ready for sample in source.samples}, trains)
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    unused: Counter[str | None] = Counter()
    duplicates, crossed = 0, Counter[str]()
    for digest in sorted(copies.keys() - damaged.keys() - mixed.keys()):
        group = copies[digest]
        duplicates += len(group) - 1
        placed = [(split, sample) for sample in group if (split := roles.split_of(sample)) is not None]
        if placed:
            keeper, image = min(placed, key=lambda pair: SPLITS.index(pair[0]))
            splits[keeper].append(image)
            crossed.update(split for split, _ in placed if split != keeper)
        else:
            unused[group[0].ready] += 1
    conflicts = [
        " and ".join(f"{sample.name} ({classes[sample.label]})" for sample in mixed[digest])
        for digest in sorted(mixed.keys() - damaged.keys())
    ]
    if conflicts and config.duplicates_across_classes == "error":
        raise DataError(
            f"Expected each picture in one class. Received: {listed(conflicts, separator='; ')} are the same picture. "
            "Remove the wrong copies, or leave these pictures out: --set data.duplicates_across_classes=drop"
        )
    return ImageSet(
        tuple(map(escape_undecodable, classes)),
        {split: tuple(samples) for split, samples in splits.items()},
        duplicates=duplicates,
        crossed=crossed,
        conflicts=tuple(conflicts),
        unreadable=unreadable,
        unused=unused,
        came_in=Counter(sample.ready for samples in splits.values() for sample in samples),
        others=source.others,
        roles=roles,
    )


def _unreadable(source: SourceImages, damaged: Mapping[str, str]) -> tuple[Unreadable, ...]:
    undecodable = (Unreadable(s.name, damaged[s.sha256], s.sha256) for s in source.samples if s.sha256 in damaged)
    return (*source.unreadable, *undecodable)


def check_classes(images: ImageSet, classes: Sequence[str]) -> None:
    """Refuse data whose classes are not the model's, in the same order.

    Args:
        images: the image set; its labels are indices of its own classes.
        classes: of the model, in the order of its outputs.

    Raises:
        DataError: the classes differ.
    """
    if tuple(images.classes) != tuple(classes):
        differ = sorted(set(images.classes) ^ set(classes))[:5] or ["another order"]
        raise DataError(
            f"Expected data of the model's {count(len(classes), 'class', 'classes')}. Received: "
            f"{len(images.classes)}; they differ in "
            f"{', '.join(differ)}. Train again, or restore the folders that the model was trained on."
        )


def check_readable(readable: int, minimum: int, split: str, pixels: Pixels) -> None:
    """Refuse a split that has too few images without its unreadable ones.

    Raises:
        DataError: fewer than ``minimum`` can be read.
    """
    if readable < minimum:
        raise DataError(
            f"Expected at least {count(minimum, f'readable {split} image')}. Received: {readable:,}, and "
            f"{len(pixels.skipped):,} that could not be read. Replace those."
        )


@dataclass
class Pixels:
    """Decodes samples at one size; skips unreadable ones, up to the recipe's limit.

    Attributes:
        decode: from a file to the model's input.
        max_bad_images: how many unreadable images may be skipped.
        skipped: the reason for each image that was, by name.
    """

    decode: DecodeSpec
    max_bad_images: int
    skipped: dict[str, str] = field(default_factory=dict)

    def load(self, sample: Sample) -> np.ndarray:
        """Decode one image to uint8 of shape (height, width, 3).

        Raises:
            ImageError: the image cannot be decoded.
        """
        return self.decode.pixels(sample.read())

    def batches(
        self, samples: Sequence[Sample], batch_size: int, description: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (uint8 NHWC pixels, int64 labels) with a progress bar; threads decode ahead.

        Raises:
            DataError: more unreadable images than the recipe allows; it lists all that are among these samples.
        """
        batch: list[tuple[np.ndarray, int]] = []
        with ThreadPoolExecutor() as pool, progress_bar(total=len(samples), desc=description, unit="img") as bar:
            for start in range(0, len(samples), 4 * batch_size):
                chunk = samples[start : start + 4 * batch_size]
                for sample, decoded in zip(chunk, pool.map(self._try, chunk)):
                    bar.update()
                    if isinstance(decoded, ImageError):
                        self.skipped[sample.name] = str(decoded)
                        if len(self.skipped) <= self.max_bad_images:
                            log.warning("skipped an unreadable image: %s: %s", sample.name, decoded)
                    elif len(self.skipped) <= self.max_bad_images:  # beyond, only unreadable images are looked for
                        batch.append((decoded, sample.label))
                        if len(batch) == batch_size:
                            yield _stacked(batch)
                            batch = []
        if len(self.skipped) > self.max_bad_images:
            unreadable = [Unreadable(name, why) for name, why in self.skipped.items()]
            raise too_many_unreadable(unreadable, self.max_bad_images, len(samples))
        if batch:
            yield _stacked(batch)

    def all(self, samples: Sequence[Sample], description: str) -> tuple[np.ndarray, np.ndarray]:
        """Return every readable sample at once: (uint8 NHWC pixels, int64 labels)."""
        pixels = np.empty((len(samples), *self.decode.size, 3), np.uint8)  # filled in place: they may fill the memory
        labels = np.empty(len(samples), np.int64)
        read = 0
        for some, classes in self.batches(samples, BATCH, description):
            pixels[read : read + len(some)], labels[read : read + len(some)] = some, classes
            read += len(some)
        return pixels[:read], labels[:read]

    def _try(self, sample: Sample) -> np.ndarray | ImageError:
        try:
            return self.load(sample)
        except ImageError as error:
            return ImageError(str(error))  # without its traceback, which refers to the file's bytes


def _stacked(batch: Sequence[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([pixels for pixels, _ in batch]), np.array([label for _, label in batch], dtype=np.int64)
