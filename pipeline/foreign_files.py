"""Names the files that are no Keras model but are brought as one, and says what to do with each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.archive_files import open_zip

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
