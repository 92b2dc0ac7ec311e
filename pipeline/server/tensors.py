"""Tensors of the Open Inference Protocol v2: a request's bytes to arrays, arrays to an answer's bytes.

Tensors stand in the JSON, or, by the binary tensor data extension, behind it: ``Inference-Header-Content-Length`` says
how long the JSON is, ``binary_data_size`` of each tensor how long its bytes are, in the order of the JSON. Nothing is
allocated before its size is known to fit what was sent.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.server.errors import RequestError

HEADER_LENGTH: Final = "inference-header-content-length"
MOST_DIMENSIONS: Final = 8


@dataclass(frozen=True)
class Tensor:
    """An input as it was sent.

    Attributes:
        name: of the input.
        datatype: such as "UINT8".
        shape: as sent, every dimension at least 0.
        data: its bytes, or the JSON value.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | Any


@dataclass(frozen=True)
class Wanted:
    """An output that was asked for: by its name, as bytes or JSON, or as the best classes alone."""

    name: str
    binary: bool = False
    classification: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request of the protocol."""

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Wanted, ...]  # none: all of them
    binary: bool  # what is not asked for by name


def bad(message: str) -> RequestError:
    """Return the refusal of a request that is not as the protocol has it."""
    return RequestError(400, message, "bad_request")


def read_request(body: bytes, header_length: str | None, most_json: int) -> InferRequest:
    """Read a request.

    Args:
        body: of the request.
        header_length: value of `HEADER_LENGTH`; None: the body is JSON alone.
        most_json: bytes of JSON that are parsed, at most.

    Raises:
        RequestError: 400 with what is wrong.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdecimal() and len(header_length) < 12 and int(header_length) <= len(body)):
            raise bad(
                f"Expected Inference-Header-Content-Length of at most {len(body)}, the body's length. "
                f"Received: {header_length[:40]!r}."
            )
        length = int(header_length)
    if length > most_json:
        raise RequestError(
            413,
            f"Expected at most {most_json >> 20} MiB of JSON. Received: {length >> 20} MiB. Send binary data.",
            "too_large",
        )
    tree = _object(_parse(body[:length]), "the request")
    rest = memoryview(body)[length:]
    inputs: list[Tensor] = []
    for entry in _list(tree, "inputs"):
        tensor, rest = _input(_object(entry, "an input"), rest)
        inputs.append(tensor)
    if len(rest):
        raise bad(f"Expected as many bytes behind the JSON as its inputs have. Received: {len(rest)} more.")
    if len({tensor.name for tensor in inputs}) != len(inputs):
        raise bad("Expected each input once. Received: one twice.")
    identity = tree.get("id")
    if identity is not None and not isinstance(identity, str):
        raise bad("Expected a text for id. Received: another type.")
    binary = bool(_parameters(tree).get("binary_data_output", False))
    outputs = tuple(_wanted(_object(entry, "an output"), binary) for entry in _list(tree, "outputs"))
    return InferRequest(identity, tuple(inputs), outputs, binary)


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise bad("Expected JSON as the protocol has it. Received: JSON that is nested too deeply.") from None
    except ValueError as error:
        raise bad(f"Expected JSON. Received: {str(error)[:100]}.") from None


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise bad(f"Expected a JSON object for {what}. Received: another type.")
    return value


def _list(tree: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = tree.get(key, [])
    if not isinstance(value, list):
        raise bad(f"Expected a list for {key}. Received: another type.")
    if len(value) > MOST_DIMENSIONS:
        raise bad(f"Expected at most {MOST_DIMENSIONS} {key}. Received: {len(value)}.")
    return value


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(entry.get("parameters", {}), "parameters")


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise bad("Expected a name for each tensor. Received: none.")
    return name


def _input(entry: Mapping[str, Any], rest: memoryview) -> tuple[Tensor, memoryview]:
    name, datatype, shape = _name(entry), entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str):
        raise bad(f"Expected a datatype for {name[:80]!r}. Received: none.")
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**40 for size in shape)
    ):
        raise bad(f"Expected a shape of whole numbers from 0 on for {name[:80]!r}. Received: {str(shape)[:80]}.")
    parameters = _parameters(entry)
    _refuse_shared_memory(name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise bad(f"Expected data or binary_data_size for {name[:80]!r}. Received: neither.")
        return Tensor(name, datatype, tuple(shape), entry["data"]), rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise bad(f"Expected binary_data_size of at most {len(rest)} for {name[:80]!r}. Received: {str(size)[:40]}.")
    return Tensor(name, datatype, tuple(shape), rest[:size]), rest[size:]


def _wanted(entry: Mapping[str, Any], binary: bool) -> Wanted:
    parameters = _parameters(entry)
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise bad("Expected a whole number of classes for classification. Received: another value.")
    name = _name(entry)
    _refuse_shared_memory(name, parameters)
    return Wanted(name, bool(parameters.get("binary_data", binary)), count)


def _refuse_shared_memory(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a tensor in shared memory; a client that got its answer elsewhere would read there what was before."""
    if any(key.startswith("shared_memory_") for key in parameters):
        raise bad(f"Expected {name[:80]!r} in the request and its answer. Received: shared memory. Send binary data.")


def uint8_of(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels of an input.

    Args:
        tensor: as sent.
        shape: without the first dimension, the images.

    Returns:
        np.ndarray: uint8, (N, *shape).
    """
    text = f"UINT8 of shape [N, {', '.join(map(str, shape))}]"
    if tensor.datatype != "UINT8" or tensor.shape[1:] != shape or len(tensor.shape) != 1 + len(shape):
        raise bad(f"Expected {text} for {tensor.name}. Received: {tensor.datatype[:20]} {list(tensor.shape)}.")
    if tensor.shape[0] < 1:
        raise bad(f"Expected at least one image in {tensor.name}. Received: none.")
    values = math.prod(tensor.shape)
    if isinstance(tensor.data, memoryview):
        if len(tensor.data) != values:
            raise bad(f"Expected {values} bytes for {tensor.name}. Received: {len(tensor.data)}.")
        return np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    try:
        # Not by numpy, which makes every text of a list as long as the longest: gigabytes of a small request.
        data = bytes(_flat(tensor.data))
    except (TypeError, ValueError):
        raise bad(f"Expected whole numbers from 0 to 255 for {tensor.name}. Received: others.") from None
    if len(data) != values:
        raise bad(f"Expected {values} numbers for {tensor.name}. Received: {len(data)}.")
    return np.frombuffer(data, np.uint8).reshape(tensor.shape)


def _flat(data: Any) -> list[Any]:
    """Return the numbers of a list, or of lists in it, at most as deep as a tensor is."""
    if not isinstance(data, list):
        raise TypeError("no list")
    numbers: list[Any] = data
    for _ in range(MOST_DIMENSIONS):
        if not any(isinstance(part, list) for part in numbers):
            break
        numbers = list(itertools.chain.from_iterable(numbers))
    return numbers


def bytes_of(tensor: Tensor, most: int) -> list[bytes]:
    """Return the elements of an input of type BYTES and shape [N, 1] or [N].

    Args:
        tensor: as sent.
        most: elements.
    """
    if tensor.datatype != "BYTES" or len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise bad(
            f"Expected BYTES of shape [N, 1] for {tensor.name}. Received: {tensor.datatype[:20]} {list(tensor.shape)}."
        )
    if not isinstance(tensor.data, memoryview):
        raise bad(
            f"Expected {tensor.name} as binary data, since JSON holds no bytes. Received: JSON. Send "
            "binary_data_size, or one image to /classify."
        )
    if not 1 <= tensor.shape[0] <= most:
        raise bad(f"Expected 1 to {most} elements in {tensor.name}. Received: {tensor.shape[0]}.")
    elements: list[bytes] = []
    rest = tensor.data
    while len(rest):
        size = struct.unpack_from("<I", rest)[0] if len(rest) >= 4 else len(rest)
        if size > len(rest) - 4 or len(elements) == tensor.shape[0]:
            raise bad(f"Expected each element of {tensor.name} behind its length. Received: lengths that do not fit.")
        elements.append(bytes(rest[4 : 4 + size]))
        rest = rest[4 + size :]
    if len(elements) != tensor.shape[0]:
        raise bad(f"Expected {tensor.shape[0]} elements in {tensor.name}. Received: {len(elements)}.")
    return elements


@dataclass(frozen=True)
class Output:
    """An output to send: FP32, or BYTES where the elements are texts."""

    name: str
    values: np.ndarray
    binary: bool


def write_response(
    model: str, version: str, identity: str | None, outputs: Sequence[Output]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON; None where there is nothing behind it."""
    entries, parts = [], []
    for output in outputs:
        texts = output.values.dtype == object
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": "BYTES" if texts else "FP32",
            "shape": list(output.values.shape),
        }
        if output.binary:
            part = _bytes_tensor(output.values) if texts else np.ascontiguousarray(output.values, "<f4").tobytes()
            entry["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            values = output.values.reshape(-1).tolist()
            entry["data"] = values if texts else [value if math.isfinite(value) else None for value in values]
        entries.append(entry)
    tree = {"model_name": model, "model_version": version, **({"id": identity} if identity else {}), "outputs": entries}
    text = json.dumps(tree).encode()
    return b"".join([text, *parts]), len(text) if parts else None


def _bytes_tensor(values: np.ndarray) -> bytes:
    encoded = [str(value).encode() for value in values.reshape(-1)]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
