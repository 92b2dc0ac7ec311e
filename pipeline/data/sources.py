"""Sources of labelled images: folders, tables, arrays, TensorFlow Datasets."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from export.errors import DataError, ImageError
from export.words import count, listed
from pipeline.artifacts.archives import array_names, read_arrays
from pipeline.artifacts.files import sha256_bytes
from pipeline.artifacts.results import Unreadable
from pipeline.data.class_names import data_names
from pipeline.data.decode import check_header
from pipeline.data.folders import (
    has_images,
    images_below,
    is_source,
    other_files,
    subfolders,
    why_groups,
    why_no_images,
)
from pipeline.data.image_files import hash_image_file
from pipeline.data.sample import DataMissingError, Sample, SourceImages, natural_order
from pipeline.data.tables import read_tables
from pipeline.recipe.messages import describe_path
from pipeline.recipe.schema import SPLIT_NAMES, Data
from pipeline.terminal.console import map_in_threads, progress_bar

log = logging.getLogger(__name__)
T = TypeVar("T")

EXPECTED = {
    "folder": "a folder with a subfolder for each class",
    "csv": "a .csv file, or a folder with one for each split",
    "npz": "an .npz file in the layout of keras.datasets",
    "tfds": "the folder of tensorflow-datasets",
}
MOST_CLASSES = 100_000  # of arrays, whose labels are numbers: a larger label is a mistake


def read_source(config: Data) -> SourceImages:
    """Find every labelled image of a recipe.

    Raises:
        DataMissingError: the folder or file does not exist, or cannot be downloaded.
        DataError: no images, or a file that is not what the recipe says.
    """
    readers: dict[str, Callable[[Data, Path], SourceImages]] = {
        "folder": _folder,
        "npz": _npz,
        "csv": _csv,
        "tfds": _tfds,
    }
    if config.source == "digits":
        return _digits()
    return readers[config.source](config, _locate(config))


def _locate(config: Data) -> Path:
    if config.source == "tfds" and config.path is None:
        return Path()
    if config.path is None and config.download is not None:
        from pipeline.data.download import fetch_dataset

        return fetch_dataset(config.download)
    path = Path(config.path or "")
    expected = f"data.path: expected {EXPECTED[config.source]}. Received: {path}, {describe_path(path)}"
    if not path.exists():
        raise DataMissingError(f"{expected} Name it with --set data.path=...")
    if config.source != "tfds" and not is_source(config.source, path):
        raise DataError(expected)
    return path


def _digits() -> SourceImages:
    try:
        from sklearn.datasets import load_digits  # its data comes with the package
    except ImportError as error:
        raise DataMissingError(f"Expected scikit-learn, which holds the digits. Received: {error}.") from error

    digits = load_digits()
    arrays = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return SourceImages(_array_samples("digits", arrays, digits.target), [str(i) for i in range(10)])


def _npz(config: Data, path: Path) -> SourceImages:
    expected = "arrays x_train, y_train, x_test, y_test (the layout of keras.datasets)"
    samples: list[Sample] = []
    try:
        names = array_names(path, expected)
        parts = [name[2:] for name in names if name.startswith("x_") and name[2:] in SPLIT_NAMES]
        missing = [f"x_{name[2:]}" for name in names if name.startswith("y_") and name[2:] not in parts]
        if not parts or missing:
            received = ", ".join(names)[:500] + (f" without {', '.join(missing)}" if missing else "")
            raise DataError(f"Expected {expected} in {path}. Received: {received}.")
        contents = read_arrays(path, [f"{kind}_{part}" for part in parts for kind in "xy"], expected)
        for part in parts:
            arrays, labels = contents[f"x_{part}"], contents[f"y_{part}"].astype(np.int64)
            labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # keras' CIFAR-10
            _check_arrays(path, arrays, labels)
            samples += _array_samples(
                path.stem, arrays, labels, len(samples), SPLIT_NAMES[part] if config.ready_splits else None
            )
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"Expected {expected} in {path}. Received: {error}.") from error
    return SourceImages(samples, _class_names(config, path, max((s.label for s in samples), default=-1) + 1))


def _check_arrays(path: Path, arrays: np.ndarray, labels: np.ndarray) -> None:
    images = arrays.dtype == np.uint8 and arrays.ndim in (3, 4) and 0 not in arrays.shape[1:]
    if not images or labels.shape != arrays.shape[:1]:
        raise DataError(
            f"Expected uint8 images of shape (N, height, width[, channels]) and as many labels in {path}. "
            f"Received: {arrays.dtype} {arrays.shape} and {labels.shape} labels."
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= MOST_CLASSES):
        raise DataError(
            f"Expected labels from 0 to at most {MOST_CLASSES - 1:,} in {path}. "
            f"Received: {labels.min()} to {labels.max()}."
        )


def _class_names(config: Data, path: Path, classes: int) -> Sequence[str]:
    names = data_names(config, path.parent) or [str(i) for i in range(classes)]
    if len(names) < classes:
        raise DataError(f"data.classes: expected at least {count(classes, 'name')}. Received: {len(names)}.")
    return names


def _array_samples(
    name: str, arrays: np.ndarray, labels: np.ndarray, start: int = 0, ready: str | None = None
) -> list[Sample]:
    return [
        Sample(f"{name}/{i}", int(label), _array_hash(array), partial(_identity, array), ready=ready)
        for i, (array, label) in enumerate(zip(arrays, labels), start)
    ]


def _array_hash(array: np.ndarray) -> str:
    return sha256_bytes(str(array.shape).encode() + array.tobytes())


def _identity(content: T) -> T:
    return content


def _folder(config: Data, root: Path) -> SourceImages:
    parts = _ready_folders(root) if config.ready_splits else {}
    folders: Iterable[tuple[str | None, Path]] = parts.items() if parts else [(None, root)]
    read = partial(_by_name, pattern=config.label_pattern) if config.label_pattern else _by_folder
    rows = [(path, label, ready) for ready, folder in folders for path, label in read(folder)]
    others = other_files(root, {path for path, _, _ in rows})
    if not rows:
        raise DataError(why_no_images(config, root, others))
    labels = {label for _, label, _ in rows}
    classes = data_names(config, root) or natural_order(labels)
    if unknown := sorted(labels - set(classes)):
        raise DataError(f"data.classes: expected a name for each class. Received: none for {listed(unknown)}.")
    if not config.label_pattern and (suspicion := why_groups(root, labels)):
        log.warning("%s", suspicion)
    numbers = {name: index for index, name in enumerate(classes)}
    images = [(path, path.relative_to(root).as_posix(), numbers[label], ready) for path, label, ready in rows]
    return _hashed(images, classes, others)


def _ready_folders(root: Path) -> dict[str, Path]:
    """Subfolders that are splits (``train``, ``val``, ...); empty where the subfolders are classes."""
    folders = subfolders(root)
    splits = [p for p in folders if p.name.lower() in SPLIT_NAMES]
    others = [p.name for p in folders if p not in splits and has_images(p)]
    if not splits or (others and not any(subfolders(p) for p in splits)):
        return {}
    if others:
        raise DataError(
            f"Expected either splits ({', '.join(p.name for p in splits)}) or classes below {root}. Received: both; "
            f"{listed(others)} is no split. Move it away, or set data.ready_splits=false for classes only."
        )
    by_split: dict[str, Path] = {}
    for folder in splits:
        first = by_split.setdefault(SPLIT_NAMES[folder.name.lower()], folder)
        if first is not folder:
            raise DataError(f"Expected one folder for a split. Received: {first} and {folder}. Merge them.")
    return by_split


def _by_folder(root: Path) -> Iterator[tuple[Path, str]]:
    for folder in subfolders(root):
        paths = sorted(images_below(folder))
        if not paths:
            log.warning("class folder %s holds no images and is left out", folder)
        yield from ((path, folder.name) for path in paths)


def _by_name(root: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(images_below(root)):
        match = re.search(pattern, path.name)
        if match is None or not match.group(1):
            raise DataError(
                f"data.label_pattern: expected {pattern!r} to find the class in every file name. "
                f"Received: {path}, where it finds none. Correct the pattern or remove the file."
            )
        yield path, match.group(1)


def _hashed(
    rows: Sequence[tuple[Path, str, int, str | None]], classes: Sequence[str], others: Mapping[str, int] | None = None
) -> SourceImages:
    """The images of rows of (path, name, label, ready-made split); each file is opened once and hashed."""
    digests = list(map_in_threads(_hash_file, [path for path, *_ in rows], "opening images"))
    samples = [
        Sample(name, label, digest, partial(_identity, path), path, ready)
        for (path, name, label, ready), digest in zip(rows, digests)
        if not isinstance(digest, ImageError)
    ]
    errors = [(name, str(error)) for (_, name, *_), error in zip(rows, digests) if isinstance(error, ImageError)]
    return SourceImages(samples, classes, tuple(Unreadable(name, error) for name, error in errors), others or {})


def _hash_file(path: Path) -> str | ImageError:
    """The sha256 of an image file, or why it is no image, as far as its header shows."""
    try:
        check_header(path)
        return hash_image_file(path)
    except ImageError as error:
        return ImageError(str(error))  # without its traceback, which refers to the open file


def _csv(config: Data, path: Path) -> SourceImages:
    rows, classes = read_tables(config, path)
    base = path if path.is_dir() else path.parent
    named = [
        (file, file.relative_to(base).as_posix() if file.is_relative_to(base) else str(file), label, ready)
        for file, label, ready in rows
    ]
    return _hashed(named, classes)


def _tfds(config: Data, path: Path) -> SourceImages:
    """Read a data set by its name, by random access, so that images stay on the disk."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataMissingError(
            f"data.source tfds: expected the package tensorflow-datasets. Received: {error}. "
            "Install it with `.venv/bin/python -m pip install tensorflow-datasets array_record`, "
            "or export the images to a folder for each class."
        ) from error
    folder = {"data_dir": str(path)} if config.path else {}
    try:
        builder = tfds.builder(config.tfds, **folder, file_format="array_record")
        builder.download_and_prepare()
        sources: dict[str, Any] = builder.as_data_source()
        classes = list(builder.info.features["label"].names)
    except Exception as error:  # the package raises many types: unknown names, no network, other features
        raise DataMissingError(
            f"data.tfds: expected a data set of tensorflow-datasets with 'image' and 'label'. Received: "
            f"{config.tfds!r}: {type(error).__name__}: {error}"
        ) from error
    samples: list[Sample] = []
    for part, source in sources.items():
        ready = SPLIT_NAMES.get(part) if config.ready_splits and len(sources) > 1 else None
        for index in progress_bar(range(len(source)), desc=f"  hashing {config.tfds} {part}", unit="img"):
            record, read = source[index], partial(_tfds_image, source, index)
            digest = _array_hash(np.asarray(record["image"]))
            samples.append(Sample(f"{part}/{index}", int(record["label"]), digest, read, ready=ready))
    return SourceImages(samples, classes)


def _tfds_image(source: Any, index: int) -> np.ndarray:
    return np.asarray(source[index]["image"])
