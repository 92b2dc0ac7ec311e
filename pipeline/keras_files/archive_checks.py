"""Checks a file before anything in it is read: what it is, links, bombs, sizes that it cannot keep.

Names the files that are no Keras model but are brought as one, and says what to do with each.

Looks at HDF5 files and .keras archives before anything in them is read: links, bombs, promises they cannot keep.
"""

from __future__ import annotations

import math
import re
import shlex
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from export.errors import ModelError
from export.words import count, listed
from pipeline.artifacts.archives import copy_member, open_zip

if TYPE_CHECKING:
    import h5py


_KERAS = "This takes the Keras model that it was made of"
_TORCH = "PyTorch's. This takes Keras models only: build the network in Keras, and copy its weights layer by layer"
_UNPACK = "Unpack it, and name what is inside"
HEAD = 512  # bytes of a file's beginning that tell what it is: a tar archive says so behind the name of its first file
_ENGINE = f"a TensorRT engine, which is built for one kind of GPU and cannot be turned back. {_KERAS}"
_TFLITE = f"a TensorFlow Lite model, which cannot be turned back. {_KERAS}"
_PAGE = "a web page, which came instead of the file. Download the file itself"
_TAR = 257, b"ustar"
# What stands at the beginning of a file, or so many bytes behind it; before its name, because names lie.
_HEADS = (
    (4, b"TFL3", _TFLITE),
    (*_TAR, "a tar archive. If `bundle` made it: python -m pipeline unpack {path}; else unpack it"),
    (0, b"\x1f\x8b", f"a gzip archive. {_UNPACK}"),
    (0, b"BZh", f"a bzip2 archive. {_UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"an xz archive. {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive. {_UNPACK}"),
    (0, b"Rar!", f"a RAR archive. {_UNPACK}"),
    (0, b"\x93NUMPY", "an array of NumPy, not a model"),
    (0, b"ftrt", _ENGINE),
    (0, b"ptrt", _ENGINE),
    (0, b"version https://git-lfs", "a pointer of Git LFS: the model itself was not fetched. Run git lfs pull"),
    (0, b"<!DOCTYPE", _PAGE),
    (0, b"<html", _PAGE),
)
_SUFFIXES = {
    ".onnx": f"an ONNX model, which is what this makes. {_KERAS}",
    ".tflite": _TFLITE,
    ".plan": _ENGINE,
    ".engine": _ENGINE,
    ".trt": _ENGINE,
    ".pb": "a graph of TensorFlow without the folder of a SavedModel. Save the model whole, with "
    "model.export('folder'), and name that folder",
    ".pbtxt": "a graph of TensorFlow as text, without weights. Save the model whole, and name that file or folder",
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".safetensors": "weights alone, without a network. Load them into the Keras model, save it whole, and name that",
    ".ckpt": "a checkpoint of TensorFlow: weights alone. Build the model, model.load_weights(...), and save it whole",
    ".index": "a checkpoint of TensorFlow: weights alone. Build the model, model.load_weights(...), and save it whole",
    ".npz": "arrays of NumPy, not a model. Build the model, model.set_weights(...), and save it whole",
    ".json": "an architecture alone, without weights. keras.models.model_from_json(...), load its weights, and save it "
    "whole",
    ".yaml": "text. A recipe is given with -c; here a model is due",
    ".pkl": "a Python pickle, which runs code when it is opened. Save the model with model.save('model.keras')",
    ".joblib": "a Python pickle, which runs code when it is opened. Save the model with model.save('model.keras')",
    ".mlmodel": f"a Core ML model. {_KERAS}",
    ".caffemodel": "a Caffe model. This takes Keras models only",
}


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is an uncompressed tar archive."""
    offset, mark = _TAR
    return head.startswith(mark, offset)


def describe_file(path: Path, head: bytes) -> str:
    """What a file is that holds no Keras model, and what to do, as a sentence's end without a stop.

    Args:
        path: the file.
        head: its first ``HEAD`` bytes.

    Returns:
        Empty where it is nothing that is known here.
    """
    if not head:
        return "an empty file"
    if known := [what for offset, mark, what in _HEADS if head.startswith(mark, offset)]:
        return known[0].replace("{path}", shlex.quote(str(path)))
    if re.search(r"\.data-\d+-of-\d+$", path.name):
        return _SUFFIXES[".ckpt"]
    if head.startswith(b"\x80") and path.suffix not in (".pt", ".pth"):
        return _SUFFIXES[".pkl"]
    return _SUFFIXES.get(path.suffix.lower(), "")


def describe_zip(path: Path) -> str:
    """The same of a zip archive; empty where it may be a Keras archive, or is nothing known.

    Raises:
        ModelError: a zip that is not safe to open.
        zipfile.BadZipFile: damaged.
    """
    with open_zip(path) as archive:
        names = archive.namelist()
    return "" if "config.json" in names else _zipped(names)


def _zipped(names: Sequence[str]) -> str:
    def folder(member: str) -> str | None:
        found = next((name for name in names if name == member or name.endswith(f"/{member}")), None)
        return None if found is None else found.removesuffix(member).rstrip("/")

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
    held = [name for name in names if Path(name).suffix in (".keras", ".h5", ".hdf5")]
    return f"a zip archive. Unzip it, and name {held[0]}" if held else ""


HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CONFIG_LIMIT = 8 * 2**20  # bytes of an architecture as JSON; NASNetLarge takes 1.1 MB
GRAPH_LIMIT = 16 * 2**20  # the same where a FrozenGraph is in it, the structure of a TensorFlow graph
MOST_OBJECTS = 100_000  # groups and datasets; NASNetLarge has 5,000
MOST_TEXTS = 1_000  # in one place of an HDF5 file, where all may be one long text that is stored once
# Weights hardly shrink by compression (a few per cent; four fifths where they were rounded), so what unpacks to far
# more than the file holds no weights. The constant lets small files be.
RATIO, SMALL = 20, 4 * 2**20


def check_hdf5(file: h5py.File, size: int, where: str) -> int:
    """Refuse an HDF5 file that reads other files, or promises far more than it can hold. Reads no data.

    Args:
        file: open for reading.
        size: of the file in bytes.
        where: its name, for the message.

    Returns:
        The number of values in all datasets.

    Raises:
        ModelError: external links, external storage or virtual datasets (CVE-2026-1669), or datasets whose shapes
            ask for far more memory than the file has bytes (CVE-2026-0897).
    """
    promised = values = 0
    for name, dataset in hdf5_datasets(file, where):
        if dataset.external or dataset.is_virtual:
            raise ModelError(
                f"Expected a model file that stands for itself. Received: {where}, whose dataset {name} keeps its data "
                "in other files. Do not use it; ask its author for a file saved by Keras."
            )
        if dataset.dtype.hasobject and dataset.size > MOST_TEXTS:
            raise ModelError(
                f"Expected weights. Received: {where}, whose dataset {name} holds {count(dataset.size, 'text')}."
            )
        values += dataset.size
        # To read one value of a chunk, HDF5 unpacks it whole; it may be larger than the dataset.
        promised += max(dataset.size, math.prod(dataset.chunks or ())) * dataset.dtype.itemsize
        _check_size(promised, size, f"{where} (at dataset {name}, shape {dataset.shape})")
    return values


def hdf5_datasets(file: h5py.File, where: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset once, with its path; links and attributes are checked before they are followed or read.

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
                    f"Expected a model file that stands for itself. Received: {where}, in which {name} is a link to "
                    f"another file ({link.filename}). Do not use it; ask its author for a file saved by Keras."
                )
            if isinstance(link, h5py.SoftLink):
                continue  # leads to what is visited anyway, or nowhere
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
    """Refuse a file of weights, HDF5 too, that reads other files or promises far more than it can hold.

    Raises:
        OSError: no HDF5 file.
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
    """Refuse a .keras archive that is a bomb, or holds what Keras would read by pickle.

    Raises:
        ModelError: it unpacks to far more than its size, names a member outside of itself, lacks its parts, or has
            weights in .npz.
    """
    members = archive.infolist()
    names = {member.filename for member in members}
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
    _check_size(sum(member.file_size for member in members), path.stat().st_size, str(path))


def extract_weights(archive: zipfile.ZipFile) -> IO[bytes] | None:
    """The weights of a checked archive as a temporary file, None where it holds none."""
    if "model.weights.h5" not in archive.namelist():
        return None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    copy_member(archive, "model.weights.h5", file, archive.getinfo("model.weights.h5").file_size)
    file.seek(0)
    return file


def _check_size(promised: int, size: int, where: str) -> None:
    if promised > RATIO * size + SMALL:
        raise ModelError(
            f"Expected a file about as large as its weights. Received: {where}: {count(size, 'byte')} that unpack to "
            f"{promised:,} or more. It would fill the memory; do not use it."
        )
