"""Protocol buffers read from their bytes, without building messages, and ONNX files with external data refused.

A parser creates an object of some hundred bytes for two bytes of a file, so files from elsewhere are scanned here
first. A verdict is bound to the sha256 of the ONNX file, which does not cover external data: such a file could change
after it was verified, so it is neither run nor built from. Standard library only, Python 3.10 syntax.
"""

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from export.errors import ProjectError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_DEPTH = 100  # levels of nested messages, as in protobuf's own parsers


def read_fields(data: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number and wire type of each field with the start and end of its bytes; of a varint its value and 0.

    Raises:
        ValueError: The message is damaged; raised by the iterator.
    """
    while at < end:
        tag = data[at]
        if tag < 0x80:  # most are one byte, and so are most lengths
            at += 1
        else:
            tag, at = _varint(data, at, end)
        field, kind = tag >> 3, tag & 7
        if not field:
            raise ValueError("a field of number 0")
        if kind == VARINT:
            value, at = _varint(data, at, end)
            yield field, kind, value, 0
            continue
        if kind == BYTES:
            if at < end and (length := data[at]) < 0x80:
                at += 1
            else:
                length, at = _varint(data, at, end)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at + length > end:
            raise ValueError("damaged or cut short")
        yield field, kind, at, at + length
        at += length


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError("damaged or cut short")
        byte = data[at]
        if byte < 0x80:
            return value | byte << shift, at + 1
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7


# Message -> the fields that lead to tensors: field number, as in onnx.proto3 -> message.
PATHS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}  # fmt: skip
EXTERNAL_DATA, DATA_LOCATION, EXTERNAL = 13, 14, 1  # of TensorProto


def refuse_external_data(path: str | os.PathLike[str]) -> None:
    """Refuse an ONNX file with weights in other files.

    Raises:
        ProjectError: The file has external data, or is no ONNX file.
    """
    file = Path(path)
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            external = _has_external(data, 0, len(data), "ModelProto", 0)
    except FileNotFoundError as error:
        raise ProjectError(f"Expected an ONNX file. Received: {file}, which is not there. Correct the path.") from error
    except (OSError, ValueError, IndexError) as error:
        raise ProjectError(
            f"Expected an ONNX file. Received: {file}, which does not parse: {error}. Write it again, or copy it again."
        ) from error
    if external:
        raise ProjectError(
            f"Expected an ONNX file that holds its own weights. Received: {file}, which keeps some in other files "
            "(external data), where no hash and no verdict reaches. Export it again, in one file."
        )


def _has_external(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    inner = PATHS.get(message, {})
    return any(
        field == EXTERNAL_DATA or (field == DATA_LOCATION and kind == VARINT and begin == EXTERNAL)
        if message == "TensorProto"
        else field in inner and kind == BYTES and _has_external(data, begin, stop, inner[field], depth + 1)
        for field, kind, begin, stop in read_fields(data, start, end)
    )
