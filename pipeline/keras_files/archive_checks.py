"""Checks of a model file before anything in it is read: its format, links to other files, decompression bombs.

Files of other formats get an error that says what the file is and what to do with it.
"""

from __future__ import annotations

import math
import re
import shlex
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from export.errors import ModelError
from export.words import count, listed
from pipeline.artifacts.archives import copy_member, open_zip

if TYPE_CHECKING:
    import h5py


_KERAS = "Pass the Keras model that it was made from"
_TORCH = "PyTorch's. Only Keras models are accepted: build the network in Keras, and copy its weights layer by layer"
_UNPACK = "Unpack it, and name the model inside"
HEAD = 512  # bytes at a file's start that show its format; a tar archive has its mark at byte 257
_ENGINE = f"a TensorRT engine, which is built for one kind of GPU and cannot be converted back. {_KERAS}"
_TFLITE = f"a TensorFlow Lite model, which cannot be converted back. {_KERAS}"
_PAGE = "a web page in place of the file. Download the file itself"
_TAR = b"ustar", 257
# Formats by the bytes at an offset of the file. They come before the file's suffix, which may be wrong.
_HEADS = (
    (b"TFL3", 4, _TFLITE),
    (*_TAR, "a tar archive. If `bundle` made it: python -m pipeline unpack {path}; else unpack it"),
    (b"\x1f\x8b", 0, f"a gzip archive. {_UNPACK}"),
    (b"BZh", 0, f"a bzip2 archive. {_UNPACK}"),
    (b"\xfd7zXZ\x00", 0, f"an xz archive. {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", 0, f"a 7z archive. {_UNPACK}"),
    (b"Rar!", 0, f"a RAR archive. {_UNPACK}"),
    (b"\x93NUMPY", 0, "a NumPy array, not a model"),
    (b"ftrt", 0, _ENGINE),
    (b"ptrt", 0, _ENGINE),
    (b"version https://git-lfs", 0, "a Git LFS pointer: the model itself was not fetched. Run git lfs pull"),
    (b"<!DOCTYPE", 0, _PAGE),
    (b"<html", 0, _PAGE),
)
_SUFFIXES = {
    ".onnx": f"an ONNX model, which is an output of the conversion. {_KERAS}",
    ".tflite": _TFLITE,
    ".plan": _ENGINE,
    ".engine": _ENGINE,
    ".trt": _ENGINE,
    ".pb": "a TensorFlow graph without the folder of a SavedModel. Save the model whole, with "
    "model.export('folder'), and name that folder",
    ".pbtxt": "a TensorFlow graph as text, without weights. Save the model whole, and name that file or folder",
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".safetensors": "weights alone, without a network. Load them into the Keras model, save it whole, and name that",
    ".ckpt": "a checkpoint of TensorFlow: weights alone. Build the model, model.load_weights(...), and save it whole",
    ".index": "a checkpoint of TensorFlow: weights alone. Build the model, model.load_weights(...), and save it whole",
    ".npz": "NumPy arrays, not a model. Build the model, model.set_weights(...), and save it whole",
    ".json": "an architecture alone, without weights. keras.models.model_from_json(...), load its weights, and save it "
    "whole",
    ".yaml": "text. Pass a recipe with -c, and a model file here",
    ".pkl": "a Python pickle, which runs code when it is opened. Save the model with model.save('model.keras')",
    ".joblib": "a Python pickle, which runs code when it is opened. Save the model with model.save('model.keras')",
    ".mlmodel": f"a Core ML model. {_KERAS}",
    ".caffemodel": "a Caffe model. Only Keras models are accepted",
}


def is_tar(head: bytes) -> bool:
    """Whether a file with these first bytes is an uncompressed tar archive."""
    return head.startswith(*_TAR)


def describe_file(path: Path, head: bytes) -> str:
    """Describe a file that holds no Keras model, and what to do with it.

    Args:
        path: the file.
        head: its first ``HEAD`` bytes.

    Returns:
        The end of a sentence, without a full stop; empty for an unknown format.
    """
    if not head:
        return "an empty file"
    if descriptions := [description for mark, offset, description in _HEADS if head.startswith(mark, offset)]:
        return descriptions[0].replace("{path}", shlex.quote(str(path)))
    if re.search(r"\.data-\d+-of-\d+$", path.name):
        return _SUFFIXES[".ckpt"]
    if head.startswith(b"\x80") and path.suffix not in (".pt", ".pth"):
        return _SUFFIXES[".pkl"]
    return _SUFFIXES.get(path.suffix.lower(), "")


def describe_zip(path: Path) -> str:
    """Describe a zip archive as ``describe_file`` describes a file.

    Returns:
        Empty for what may be a Keras archive, and for unknown content.

    Raises:
        ModelError: a zip that is not safe to open.
        zipfile.BadZipFile: damaged.
    """
    with open_zip(path) as archive:
        names = archive.namelist()

    def folder(member: str) -> str | None:
        paths = (name for name in names if name == member or name.endswith(f"/{member}"))
        return next((name.removesuffix(member).rstrip("/") for name in paths), None)

    if "config.json" in names:
        return ""
    if (inside := folder("saved_model.pb")) is not None:
        return f"a SavedModel in a zip archive. Unzip it, and name the folder{f' {inside}' if inside else ''}"
    if (inside := folder("config.json")) is not None and folder("model.weights.h5") is not None:
        return (
            "a .keras archive that was unpacked and zipped with its folder. Zip its content: "
            f"cd {inside} && zip -0 -r ../model.keras ."
        )
    if folder("data.pkl") is not None:
        return _TORCH
    if names and all(name.endswith(".npy") for name in names):
        return _SUFFIXES[".npz"]
    models = [name for name in names if Path(name).suffix in (".keras", ".h5", ".hdf5")]
    return f"a zip archive. Unzip it, and name {models[0]}" if models else ""


HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CONFIG_LIMIT = 8 * 2**20  # bytes of an architecture as JSON; NASNetLarge takes 1.1 MB
GRAPH_LIMIT = 16 * 2**20  # the same with a FrozenGraph in it, which holds the structure of a TensorFlow graph
MOST_OBJECTS = 100_000  # groups and datasets; NASNetLarge has 5,000
MOST_TEXTS = 1_000  # in one dataset or attribute of an HDF5 file, where all may share one long stored text
# Weights hardly shrink by compression (by a few per cent; by four fifths if they were rounded), so data that unpacks to
# far more than the file's size is no weights. The constant exempts small files.
RATIO, SMALL = 20, 4 * 2**20


def check_hdf5(file: h5py.File, size: int, where: str) -> int:
    """Refuse an HDF5 file that reads other files, or declares far more data than it can hold. Reads no data.

    Args:
        file: open for reading.
        size: size of the file in bytes.
        where: the file's name, for the message.

    Returns:
        The number of values in all datasets.

    Raises:
        ModelError: external links, external storage or virtual datasets (CVE-2026-1669), or datasets whose shapes
            ask for far more memory than the file has bytes (CVE-2026-0897).
    """
    declared = values = 0
    for name, dataset in hdf5_datasets(file, where):
        if dataset.external or dataset.is_virtual:
            raise ModelError(
                f"Expected a self-contained model file. Received: {where}, whose dataset {name} keeps its data "
                "in other files. Do not use it; ask its author for a file saved by Keras."
            )
        if dataset.dtype.hasobject and dataset.size > MOST_TEXTS:
            raise ModelError(
                f"Expected weights. Received: {where}, whose dataset {name} holds {count(dataset.size, 'text')}."
            )
        values += dataset.size
        # To read one value, HDF5 unpacks its whole chunk, which may be larger than the dataset.
        declared += max(dataset.size, math.prod(dataset.chunks or ())) * dataset.dtype.itemsize
        _check_size(declared, size, f"{where} (at dataset {name}, shape {dataset.shape})")
    return values


def hdf5_datasets(file: h5py.File, where: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset once, with its path, after a check of the links and attributes on the way.

    Raises:
        ModelError: a link to another file, or more objects or longer attributes than a model has.
    """
    import h5py

    seen: set[int] = set()
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        path, group = waiting.pop()
        _check_attributes(group, f"{where} (at {path or '/'})")
        for key in group:
            name = f"{path}/{key}"
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ModelError(
                    f"Expected a self-contained model file. Received: {where}, in which {name} is a link to "
                    f"another file ({link.filename}). Do not use it; ask its author for a file saved by Keras."
                )
            if isinstance(link, h5py.SoftLink):
                continue  # its target is visited anyway, or does not exist
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MOST_OBJECTS:
                raise ModelError(f"Expected a Keras model. Received: {where} with over {MOST_OBJECTS:,} HDF5 objects.")
            if isinstance(item, h5py.Group):
                waiting.append((name, item))
            elif isinstance(item, h5py.Dataset):
                yield name, item


def check_weights_file(path: Path) -> None:
    """Refuse an HDF5 file of weights that reads other files or declares far more data than it can hold.

    Raises:
        OSError: not an HDF5 file.
        ModelError: see ``check_hdf5``.
    """
    import h5py

    with h5py.File(path, "r") as file:
        check_hdf5(file, path.stat().st_size, str(path))


def _check_attributes(group: h5py.Group, where: str) -> None:
    import h5py

    for name in group.attrs:
        attribute = group.attrs.get_id(name)
        kind, size = attribute.get_type(), math.prod(attribute.shape or ())
        texts = isinstance(kind, h5py.h5t.TypeVlenID) or (
            isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
        )
        if size * kind.get_size() > GRAPH_LIMIT or (texts and size > MOST_TEXTS):
            raise ModelError(
                f"Expected a model's attributes. Received: {where}, whose attribute {name} holds "
                f"{count(size, 'value')} of {count(kind.get_size(), 'byte')}. Do not use it."
            )


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a .keras archive that is a decompression bomb, or that Keras would read with pickle.

    Raises:
        ModelError: it unpacks to far more than its size, has a member path outside of itself, lacks config.json, or
            has weights in .npz.
    """
    names = set(archive.namelist())
    if "config.json" not in names:
        raise ModelError(
            f"Expected a .keras archive, which holds config.json. Received: {path}, a zip of "
            f"{count(len(names), 'other file')} ({listed(sorted(names))})."
        )
    if outside := [n for n in names if n.startswith(("/", "\\")) or ".." in Path(n.replace("\\", "/")).parts]:
        raise ModelError(f"Expected members inside the archive. Received: {path} with {outside[0]!r}. Do not use it.")
    if "model.weights.npz" in names:
        raise ModelError(
            f"Expected weights as model.weights.h5. Received: {path} with model.weights.npz, which Keras reads with "
            "pickle, and pickle runs code. Save the model again with its weights in HDF5."
        )
    _check_size(sum(member.file_size for member in archive.infolist()), path.stat().st_size, str(path))


def extract_weights(archive: zipfile.ZipFile) -> IO[bytes] | None:
    """Return the weights of a checked archive as a temporary file; None if it has none."""
    if "model.weights.h5" not in archive.namelist():
        return None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    copy_member(archive, "model.weights.h5", file, archive.getinfo("model.weights.h5").file_size)
    file.seek(0)
    return file


def _check_size(declared: int, size: int, where: str) -> None:
    if declared > RATIO * size + SMALL:
        raise ModelError(
            f"Expected a file about as large as its weights. Received: {where}: {count(size, 'byte')} that unpack to "
            f"{declared:,} or more. It would fill the memory; do not use it."
        )
