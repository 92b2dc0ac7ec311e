"""The fields of protocol buffers, read off their bytes without any package and without building messages.

A parser makes an object of some hundred bytes for two bytes of a file. So files that others wrote are looked through
here first. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
DEEPEST = 100  # messages in messages, as protobuf's own parsers


def fields(data: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, and where its bytes begin and stop; of a varint its value and 0.

    Raises:
        ValueError: damaged, by the iterator.
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
