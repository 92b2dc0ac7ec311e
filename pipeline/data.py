"""Labelled images: where they come from, and splits that keep the same picture on one side.

Each image's split follows from the sha256 of its own content, so adding, removing or changing one image never moves
another, and copies of one picture under several names cannot land on two sides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.decode_spec import DecodeSpec
from pipeline.errors import DataError, ImageError
from pipeline.files import as_text, sha256_bytes, sha256_json
from pipeline.progress import progress_bar
from pipeline.recipe import Data
from pipeline.samples import SPLITS, DataMissingError, Sample
from pipeline.sources import read_source

__all__ = [
    "SPLITS", "DataMissingError", "ImageSet", "Pixels", "Sample", "check_classes", "check_split_sizes",
    "load_image_set", "split_of",
]  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Classes and the four splits, each sorted by content hash (an order that names do not change)."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    duplicates: int  # copies of a picture that were left out
    crossing: int = 0  # those of them that stood in another split than the one that was kept
    conflicts: tuple[str, ...] = ()  # pictures left out because they stand in two classes

    def fingerprint(self, split: str) -> str:
        """sha256 over contents and labels of a split; names and times of files do not enter."""
        return sha256_json([[s.sha256, self.classes[s.label]] for s in self.splits[split]])

    def table(self, split: str) -> list[dict[str, str]]:
        """Name, class and content hash of each image of a split, for the record."""
        return [{"name": s.name, "class": self.classes[s.label], "sha256": s.sha256} for s in self.splits[split]]

    def labels(self, split: str) -> np.ndarray:
        """int64 labels of shape (N,)."""
        return np.array([s.label for s in self.splits[split]], dtype=np.int64)


def load_image_set(config: Data) -> ImageSet:
    """Find the images of a recipe and deal them out.

    Raises:
        DataMissingError: the folder or file does not exist.
        DataError: no images, one class only, a picture in two classes, an unreadable file.
    """
    found = read_source(config)
    samples, classes = found.samples, found.classes
    if len(classes) < 2:
        raise DataError(
            f"Expected at least two classes. Received: {list(classes)}. "
            f"{config.path or config.source} needs a folder for each class."
        )
    copies: dict[str, list[Sample]] = {}
    for sample in samples:
        copies.setdefault(sample.sha256, []).append(sample)
    missing = _missing_splits(samples, config)
    chosen: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    conflicts: list[str] = []
    crossing = 0
    for digest in sorted(copies):
        group = copies[digest]
        if any(sample.label != group[0].label for sample in group):
            conflicts.append(" and ".join(f"{s.name} ({classes[s.label]})" for s in group))
            continue
        sides = [split_of(sample, config, missing) for sample in group]
        split = min(sides, key=SPLITS.index)
        chosen[split].append(group[sides.index(split)])
        crossing += sum(side != split for side in sides)
    if conflicts and config.duplicates_across_classes == "error":
        raise DataError(
            f"Expected each picture in one class. Received: {_listed(conflicts)} are the same picture. "
            "Remove what is wrong, or leave these pictures out: --set data.duplicates_across_classes=drop"
        )
    kept = sum(map(len, chosen.values()))
    dropped = sum(len(group) for group in copies.values() if any(s.label != group[0].label for s in group))
    return ImageSet(
        tuple(map(as_text, classes)),
        {split: tuple(found) for split, found in chosen.items()},
        duplicates=len(samples) - dropped - kept,
        crossing=crossing,
        conflicts=tuple(conflicts),
    )


def split_of(sample: Sample, config: Data, missing: Sequence[str] = ()) -> str:
    """The split that an image's own hash, and the ready-made split it came in, put it in.

    Args:
        sample: the image.
        config: the shares.
        missing: splits that no ready-made one provides; they come out of ``train``.
    """
    shares = {name: getattr(config.splits, name) for name in SPLITS}
    if sample.ready is not None:
        divided = _shares(config, sample.ready)
        if any(divided.values()):
            shares = divided
        elif sample.ready == "train":
            shares = {name: shares[name] if name == "train" or name in missing else 0.0 for name in SPLITS}
        else:
            return sample.ready
    total = sum(shares.values())
    if not total:
        return "train"
    position = int(sha256_bytes(f"{config.salt}{sample.sha256}".encode())[:15], 16) / 16**15 * total
    for name in SPLITS:
        position -= shares[name]
        if position < 0:
            return name
    return next(name for name in reversed(SPLITS) if shares[name] > 0)


def _shares(config: Data, ready: str) -> dict[str, float]:
    part = getattr(config.divide, ready)
    return {name: getattr(part, name) for name in SPLITS}


def _missing_splits(samples: Sequence[Sample], config: Data) -> list[str]:
    given: set[str] = set()
    for ready in {s.ready for s in samples if s.ready is not None}:
        shares = _shares(config, ready)
        given |= {name for name in SPLITS if shares[name]} if any(shares.values()) else {ready}
    return [name for name in SPLITS if name not in given]


def _listed(items: Sequence[str], limit: int = 5) -> str:
    return "; ".join(items[:limit]) + (f"; and {len(items) - limit} more" if len(items) > limit else "")


def check_split_sizes(images: ImageSet, minimum: dict[str, int]) -> None:
    """Refuse data that later stages could not use, before the first stage spends time on it.

    Args:
        images: the image set.
        minimum: split to the number of images it needs, with the recipe key that asks for it behind a colon.
    """
    counts = ", ".join(f"{name} {len(images.splits[name])}" for name in reversed(SPLITS))
    for split, needed in minimum.items():
        received = len(images.splits[split])
        if received < needed:
            lowers = {"calibration": "quantize.min_images", "test": "verify.min_images"}.get(split)
            way_out = f", or lower {lowers} (results get less certain)" if lowers else ""
            raise DataError(
                f"Expected at least {needed} {split} images. Received: {received} ({counts}). "
                f"Add images or raise data.splits.{split}{way_out}."
            )
    missing = sorted(set(range(len(images.classes))) - {s.label for s in images.splits["train"]})
    if missing and minimum.get("train"):  # a finished model is not trained
        names = ", ".join(images.classes[i] for i in missing)
        raise DataError(f"Expected training images of every class. Received: none of {names}. Add images of it.")


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
            f"Expected data of the model's {len(classes)} classes. Received: {len(images.classes)}; they differ in "
            f"{', '.join(differ)}. Train anew, or bring back the folders that the model was trained on."
        )


def check_readable(count: int, minimum: int, split: str, pixels: Pixels) -> None:
    """Refuse a split of which unreadable images left too few.

    Raises:
        DataError: with the number that is left.
    """
    if count < minimum:
        raise DataError(
            f"Expected at least {minimum} readable {split} images. Received: {count}, and {len(pixels.skipped)} that "
            "could not be read. Replace those."
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
            DataError: more unreadable images than the recipe allows.
        """
        pixels: list[np.ndarray] = []
        labels: list[int] = []
        with ThreadPoolExecutor() as pool, progress_bar(total=len(samples), desc=description, unit="img") as bar:
            for start in range(0, len(samples), 4 * batch_size):
                chunk = samples[start : start + 4 * batch_size]
                for sample, decoded in zip(chunk, pool.map(self._try, chunk)):
                    bar.update()
                    if isinstance(decoded, ImageError):
                        self._skip(sample, decoded)
                        continue
                    pixels.append(decoded)
                    labels.append(sample.label)
                    if len(pixels) == batch_size:
                        yield np.stack(pixels), np.array(labels, dtype=np.int64)
                        pixels, labels = [], []
        if pixels:
            yield np.stack(pixels), np.array(labels, dtype=np.int64)

    def all(self, samples: Sequence[Sample], description: str) -> tuple[np.ndarray, np.ndarray]:
        """Every readable sample at once: (uint8 NHWC, int64 labels)."""
        parts = list(self.batches(samples, 256, description))
        if not parts:
            return np.zeros((0, *self.decode.size, 3), np.uint8), np.zeros(0, np.int64)
        return np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts])

    def result(self) -> dict[str, Any]:
        """What the manifest records of it."""
        return {"skipped_images": self.skipped} if self.skipped else {}

    def _try(self, sample: Sample) -> np.ndarray | ImageError:
        try:
            return self.one(sample)
        except ImageError as error:
            return ImageError(str(error))  # without its traceback, which refers to the file's bytes

    def _skip(self, sample: Sample, error: ImageError) -> None:
        self.skipped[sample.name] = str(error)
        if len(self.skipped) > self.max_bad_images:
            named = "\n".join(f"  {name}: {why}" for name, why in self.skipped.items())
            raise DataError(
                f"Expected at most {self.max_bad_images} unreadable images (data.max_bad_images). "
                f"Received: {len(self.skipped)} so far:\n{named}\nRemove or replace them, or raise the limit."
            )
        log.warning("skipped an unreadable image: %s: %s", sample.name, error)
