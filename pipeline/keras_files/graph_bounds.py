"""Limits of TensorFlow's protocol buffers, checked before anything parses them: parts, constants, function calls.

A parser allocates some hundred bytes for a part of two bytes, and a function that calls another twice, which calls a
third twice, grows exponentially when TensorFlow expands it. Field numbers are those of TensorFlow's ``.proto`` files.
The content of any other field is counted as if it were a message, so the count is an upper bound of the parts that a
parser finds. Imports no TensorFlow.
"""

import contextlib
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.errors import ModelError
from export.wire_format import BYTES, FIXED32, FIXED64, MAX_DEPTH, VARINT, read_fields
from export.words import count
from pipeline.keras_files.archive_checks import RATIO
from pipeline.keras_files.declared_sizes import LARGEST_TENSOR

MOST_BYTES = 2**31 - 1  # protobuf's own limit
MOST_STRUCTURE = 64 * 2**20  # bytes beside the values of constants
MOST_PARTS = 4_000_000
MOST_CALLS = 1_000_000  # nodes of a graph with its functions inlined
LONGEST_NAME = 2**15
_KINDS = (VARINT, FIXED64, BYTES, FIXED32)
_TEXT, _DATA, _PARTS = "a name", "values", "parts"
_TENSOR = {2: "Shape", **dict.fromkeys((4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17), _DATA)}
_SCHEMA: Mapping[str, Mapping[int, str]] = {
    "SavedModel": {2: "MetaGraph"},
    "MetaGraph": {2: "Graph"},
    "Graph": {1: "Node", 2: "Library"},
    "Library": {1: "Function"},
    "Function": {1: "Signature", 3: "Node"},
    "Signature": {1: _TEXT},
    "Node": {1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: "Attribute"},
    "Attribute": {1: _TEXT, 2: "Value"},
    "Value": {1: "List", 2: _DATA, 8: "Tensor", 10: "Call"},
    "List": {2: _DATA, 3: _DATA, 4: _DATA, 5: _DATA, 6: _DATA, 8: "Element", 9: "Call"},
    "Call": {1: _TEXT, 2: "Attribute"},
    "Tensor": _TENSOR,
    "Element": _TENSOR,
    "Shape": {2: "Size"},
    "Size": {2: _TEXT},
    "Metadata": {1: "Object"},
    "Object": {3: _TEXT, 4: _TEXT, 5: _DATA},
}


@dataclass
class Graph:
    """Content of a protocol buffer.

    Attributes:
        operations: operations of its nodes, those in functions included.
        functions: names of its functions.
        parts: number of fields of all its messages.
    """

    operations: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    parts: int = 0


def check_file(path: Path, message: str) -> Graph:
    """Check a file that holds a protocol buffer.

    Args:
        path: the file.
        message: type of its message, such as "SavedModel".

    Raises:
        ModelError: damaged, or beyond the limits.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ModelError(f"Expected a whole model. Received: {path}, damaged: it is empty.")
        if size > MOST_BYTES:
            raise ModelError(
                f"Expected at most the {MOST_BYTES:,} bytes that TensorFlow reads. Received: {path} of {size:,}."
            )
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return check_graph(data, message, str(path))
        except ValueError as error:
            raise ModelError(f"Expected a whole model. Received: {path}, damaged: {error}.") from error


def check_graph(data: bytes | mmap.mmap, message: str, where: str) -> Graph:
    """Check a protocol buffer.

    Args:
        data: its bytes.
        message: type of its message, such as "Graph".
        where: the file or layer, for messages.

    Raises:
        ValueError: damaged.
        ModelError: beyond the limits.
    """
    walk = _Walk(data, where)
    walk.check_message(0, len(data), message, 0)
    if len(data) - walk.held > MOST_STRUCTURE:
        raise walk.refusal(f"at most {MOST_STRUCTURE:,} bytes beside its constants", f"{len(data) - walk.held:,}")
    walk.check_calls()
    return walk.graph


class _Walk:
    """Walk over a protocol buffer."""

    def __init__(self, data: bytes | mmap.mmap, where: str) -> None:
        self.data, self.where, self.graph = data, where, Graph()
        self.held = self.declared = 0  # bytes of constants, and values by their shapes
        self.sizes: list[int] = []  # dimensions of the current constant
        self.called: dict[str, Counter[str]] = {}  # operations and calls by function; the graph's own under ""
        self.label, self.names = "", Counter[str]()  # of the current function

    def check_message(self, begin: int, stop: int, message: str, depth: int) -> None:
        """Check a message, then what only all of its fields together show."""
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if message in ("Graph", "Function"):
            outer = self.label, self.names
            self.label, self.names = "", Counter()
            self.check_fields(begin, stop, message, depth)
            self.called[self.label] = self.called.get(self.label, Counter()) + self.names
            self.label, self.names = outer
        elif message in ("Attribute", "Element"):  # protobuf merges a repeated field within these
            sizes, self.sizes = self.sizes, []
            self.check_fields(begin, stop, message, depth)
            self.check_constant()
            self.sizes = sizes
        elif message == "Node":
            before = self.names.total()
            self.check_fields(begin, stop, message, depth)
            if self.names.total() == before:
                raise ValueError("a node without an operation")
        else:
            self.check_fields(begin, stop, message, depth)

    def check_fields(self, start: int, end: int, message: str, depth: int) -> None:
        schema = _SCHEMA[message]
        for number, kind, begin, stop in read_fields(self.data, start, end):
            self.count_part()
            inner = schema.get(number, _PARTS)
            if kind != BYTES:
                if message == "Size" and number == 1 and kind == VARINT:
                    self.sizes.append(begin)
            elif inner == _TEXT:
                self.check_name(message, number, begin, stop)
            elif inner == _DATA:
                self.held += stop - begin
            elif inner == _PARTS and stop - begin > 1:
                self.count_parts(begin, stop, depth + 1)
            elif inner != _PARTS:
                self.check_message(begin, stop, inner, depth + 1)

    def check_name(self, message: str, number: int, begin: int, stop: int) -> None:
        if stop - begin > LONGEST_NAME:
            raise self.refusal(f"names of at most {LONGEST_NAME:,} bytes", f"one of {stop - begin:,}")
        text = self.data[begin:stop].decode()
        if (message, number) in (("Node", 2), ("Call", 1)):
            if message == "Node":
                if not text:
                    raise ValueError("a node without an operation")
                self.graph.operations.add(text)
            self.names[text] += 1
        elif (message, number) == ("Signature", 1):
            self.graph.functions.add(text)
            self.label = text

    def count_parts(self, begin: int, stop: int, depth: int) -> None:
        """Count the fields of bytes that may be a message, up to the first that is no field."""
        if depth > MAX_DEPTH:
            return
        with contextlib.suppress(ValueError):
            for _, kind, inner, end in read_fields(self.data, begin, stop):
                self.count_part()
                if kind == BYTES and end - inner > 1 and self.data[inner] & 7 in _KINDS:
                    self.count_parts(inner, end, depth + 1)

    def count_part(self) -> None:
        self.graph.parts += 1
        if self.graph.parts > MOST_PARTS:
            raise self.refusal(f"at most {MOST_PARTS:,} parts", "more")

    def check_constant(self) -> None:
        if self.sizes:
            size = 1
            for n in self.sizes:
                size = min(size * n, 2**63)  # a negative dimension is a varint of at least 2**63
            self.declared += size
            if self.declared > RATIO * self.held + LARGEST_TENSOR:
                raise self.refusal(
                    f"constants of at most {LARGEST_TENSOR:,} values more than it holds",
                    f"{count(self.declared, 'value')}, the last of shape {self.sizes[:8]}",
                )

    def check_calls(self) -> None:
        """Refuse functions that call each other in a cycle, or too often for TensorFlow to inline."""
        total: dict[str, int] = {}
        for function in self.called:
            waiting: list[tuple[str, Iterator[str]]] = [(function, iter(self.called[function]))]
            above = {function}
            while waiting:
                name, callees = waiting[-1]
                callee = next((c for c in callees if c in self.called and c not in total), None)
                if callee is None:
                    waiting.pop()
                    above.discard(name)
                    total[name] = sum(times * total.get(c, 1) for c, times in self.called[name].items())
                    if total[name] > MOST_CALLS:
                        raise self.refusal(
                            f"functions that run at most {MOST_CALLS:,} operations",
                            f"{name or 'its graph'} with {total[name]:,}",
                        )
                elif callee in above:
                    raise self.refusal("functions that end", f"{callee}, which calls itself")
                else:
                    above.add(callee)
                    waiting.append((callee, iter(self.called[callee])))

    def refusal(self, expected: str, received: str) -> ModelError:
        return ModelError(
            f"Expected a TensorFlow graph with {expected}. Received: {self.where}: {received}. It would fill the "
            "memory or take hours; do not use it."
        )
