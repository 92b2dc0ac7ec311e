"""Labelled images: where they come from, and splits that keep the same picture on one side.

Each image's split follows from the sha256 of its own content, so adding, removing or changing one image never moves
another, and copies of one picture under several names cannot land on two sides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.files import sha256_bytes, sha256_json
from pipeline.preprocess import EXTENSIONS, ImageError, Resize, array_to_image, load_image, resize_image
from pipeline.progress import progress_bar
from pipeline.recipe import Data

log = logging.getLogger(__name__)

# Hash ranges are dealt out in this order.
SPLITS = ("test", "validation", "calibration", "train")


class DataMissingError(DataError):
    """The data of a recipe is not on this machine."""


@dataclass(frozen=True)
class Sample:
    """One labelled image."""

    name: str  # path below the data folder, or "<source>/<index>"
    label: int
    sha256: str  # of the file's bytes, or of the array's
    read: Callable[[], bytes | np.ndarray] = field(repr=False, compare=False)
    path: Path | None = None


@dataclass(frozen=True)
class ImageSet:
    """Classes and the four splits, each sorted by content hash (an order that names do not change)."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    duplicates: int  # copies of a picture that were left out

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
    samples, classes = {"digits": _digits, "folder": _folder, "npz": _npz}[config.source](config)
    if len(classes) < 2:
        raise DataError(
            f"Expected at least two classes. Received: {list(classes)}. "
            f"{config.path or config.source} needs a folder for each class."
        )
    unique: dict[str, Sample] = {}
    for sample in samples:
        first = unique.setdefault(sample.sha256, sample)
        if first.label != sample.label:
            raise DataError(
                f"Expected each picture in one class. Received: {first.name} ({classes[first.label]}) and "
                f"{sample.name} ({classes[sample.label]}) are the same picture. Remove one of them."
            )
    splits = {
        split: tuple(s for s in sorted(unique.values(), key=lambda s: s.sha256) if split_of(s, config) == split)
        for split in SPLITS
    }
    return ImageSet(tuple(classes), splits, duplicates=len(samples) - len(unique))


def split_of(sample: Sample, config: Data) -> str:
    """The split that an image's own hash puts it in."""
    shares = {name: getattr(config.splits, name) for name in SPLITS}
    position = int(sha256_bytes(f"{config.salt}{sample.sha256}".encode())[:15], 16) / 16**15 * sum(shares.values())
    for name in SPLITS:
        position -= shares[name]
        if position < 0:
            return name
    return next(name for name in reversed(SPLITS) if shares[name] > 0)


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


@dataclass
class Pixels:
    """Decodes samples at one size, names what is unreadable, and gives up above the recipe's limit."""

    size: tuple[int, int]
    resize: Resize
    max_bad_images: int
    skipped: dict[str, str] = field(default_factory=dict)  # name to reason

    def one(self, sample: Sample) -> np.ndarray:
        """uint8 of shape (height, width, 3).

        Raises:
            ImageError: the image cannot be decoded.
        """
        try:
            content = sample.read()
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        if isinstance(content, np.ndarray):
            return resize_image(array_to_image(content), self.size, self.resize)
        return load_image(content, self.size, self.resize)

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
            return np.zeros((0, *self.size, 3), np.uint8), np.zeros(0, np.int64)
        return np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts])

    def result(self) -> dict[str, Any]:
        """What the manifest records of it."""
        return {"skipped_images": self.skipped} if self.skipped else {}

    def _try(self, sample: Sample) -> np.ndarray | ImageError:
        try:
            return self.one(sample)
        except ImageError as error:
            return error

    def _skip(self, sample: Sample, error: ImageError) -> None:
        self.skipped[sample.name] = str(error)
        if len(self.skipped) > self.max_bad_images:
            named = "\n".join(f"  {name}: {why}" for name, why in self.skipped.items())
            raise DataError(
                f"Expected at most {self.max_bad_images} unreadable images (data.max_bad_images). "
                f"Received: {len(self.skipped)} so far:\n{named}\nRemove or replace them, or raise the limit."
            )
        log.warning("skipped an unreadable image: %s: %s", sample.name, error)


def _digits(config: Data) -> tuple[list[Sample], list[str]]:
    try:
        from sklearn.datasets import load_digits  # its data comes with the package
    except ImportError as error:
        raise DataMissingError(f"Expected scikit-learn, which holds the digits. Received: {error}.") from error

    digits = load_digits()
    arrays = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _array_samples("digits", arrays, digits.target), [str(i) for i in range(10)]


def _npz(config: Data) -> tuple[list[Sample], list[str]]:
    path = _existing(config)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = np.concatenate([file["x_train"], file["x_test"]])
            labels = np.concatenate([file["y_train"], file["y_test"]]).astype(np.int64)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(
            f"Expected arrays x_train, y_train, x_test, y_test in {path} (the layout of keras.datasets). "
            f"Received: {error}."
        ) from error
    if arrays.dtype != np.uint8 or arrays.ndim not in (3, 4) or len(arrays) != len(labels):
        raise DataError(
            f"Expected uint8 images of shape (N, height, width[, channels]) and as many labels in {path}. "
            f"Received: {arrays.dtype} {arrays.shape} and {labels.shape} labels."
        )
    return _array_samples(path.stem, arrays, labels), [str(i) for i in range(int(labels.max()) + 1)]


def _array_samples(name: str, arrays: np.ndarray, labels: np.ndarray) -> list[Sample]:
    return [
        Sample(
            f"{name}/{i}",
            int(label),
            sha256_bytes(str(array.shape).encode() + array.tobytes()),
            partial(_identity, array),
        )
        for i, (array, label) in enumerate(zip(arrays, labels))
    ]


def _identity(array: np.ndarray) -> np.ndarray:
    return array


def _folder(config: Data) -> tuple[list[Sample], list[str]]:
    root = _existing(config)
    if not root.is_dir():
        raise DataError(f"Expected a folder with a subfolder for each class. Received: {root}, which is a file.")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    paths: list[tuple[Path, int]] = []
    classes: list[str] = []
    for folder in folders:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if found:
            paths += [(p, len(classes)) for p in found]
            classes.append(folder.name)
        else:
            log.warning("class folder %s holds no images and is left out", folder)
    if not paths:
        raise DataError(
            f"Expected images in a subfolder for each class. Received: {root} with "
            f"{len(folders)} subfolders and no image in them ({', '.join(sorted(EXTENSIONS))})."
        )
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash_file, (p for p, _ in paths)))
    return [
        Sample(p.relative_to(root).as_posix(), label, digest, p.read_bytes, p)
        for (p, label), digest in zip(paths, hashes)
    ], classes


def _hash_file(path: Path) -> str:
    try:
        return sha256_bytes(path.read_bytes())
    except OSError as error:
        raise DataError(f"Expected a readable file. Received: {path}: {error.strerror}.") from error


def _existing(config: Data) -> Path:
    path = Path(config.path or "")
    if not path.exists():
        what = "a folder with a subfolder for each class" if config.source == "folder" else "an .npz file"
        raise DataMissingError(
            f"data.path: expected {what}. Received: {path}, which does not exist. Name it with --set data.path=..."
        )
    return path
