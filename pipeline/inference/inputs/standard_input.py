"""What comes by standard input: an image, a tar, or a list of paths, told apart by the first bytes."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

from export.errors import DataError
from export.files import commit_file, temporary_path
from pipeline.data.formats import begins_as

HEAD = 2**16  # bytes that are looked at
EXPECTED = "Expected an image, a tar or a list of paths on standard input."
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_NETPBM = re.compile(rb"P[2356]\s+(#|\d+\s+\d)")
_OTHERS = {  # what neither comes as a stream nor is a list
    b"PAR1": "a Parquet file. Name the file instead",
    b"PK\x03\x04": "a zip archive. Unpack it, and name the folder",
    b"\x1f\x8b": "what gzip compressed. Uncompress it: gunzip -c FILE | ...",
    b"\x28\xb5\x2f\xfd": "what zstd compressed. Uncompress it: zstd -dc FILE | ...",
    b"BZh": "what bzip2 compressed. Uncompress it: bunzip2 -c FILE | ...",
    b"\xfd7zXZ\0": "what xz compressed. Uncompress it: xz -dc FILE | ...",
}


class Copied(NamedTuple):
    """Standard input as a file.

    Attributes:
        name: of the file, beside the plan; the same content has the same name.
        size: in bytes.
        too_large: whether it was not copied to its end.
    """

    name: str
    size: int
    too_large: bool


def opened_input(given: BinaryIO | None) -> BinaryIO:
    """Return standard input, open for reading bytes.

    Args:
        given: it; None takes this process's.

    Raises:
        DataError: it is closed, or a terminal.
    """
    stream = given if given is not None else getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise DataError(f"{EXPECTED} Received: none, it is closed.")
    if stream.isatty():
        raise DataError(f"{EXPECTED} Received: a terminal. Send them: find photos -name '*.jpg' -print0 | ... -")
    return stream


def read_head(stream: BinaryIO) -> bytes:
    """Read the first 64 KiB, or all.

    Raises:
        DataError: there is nothing.
    """
    head = b""
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    if not head:
        raise DataError(f"{EXPECTED} Received: nothing, it is empty.")
    return head


def kind_of(head: bytes) -> str:
    """Tell by its first bytes what a stream is: "image", "tar", "list", or other things in words, with advice."""
    if (
        begins_as(head)
        or _NETPBM.match(head)
        or (head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS)
    ):
        return "image"
    if head[257:262] == b"ustar":
        return "tar"
    return next((what for begin, what in _OTHERS.items() if head.startswith(begin)), "list")


def copy_beside(plan: Path, head: bytes, stream: BinaryIO, largest: int | None = None) -> Copied:
    """Copy standard input to a file beside the plan, which its content names.

    Args:
        plan: file of the plan.
        head: what was read before.
        stream: the rest.
        largest: bytes; of more only the begin is copied. Defaults to None: no limit.
    """
    digest, size = hashlib.sha256(), 0
    plan.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(plan.with_name("stdin"))
    try:
        with temporary.open("wb") as file:
            block = head
            while block and (largest is None or size <= largest):
                file.write(block)
                digest.update(block)
                size += len(block)
                block = stream.read(HEAD)
        name = f"stdin-{digest.hexdigest()[:32]}"
        commit_file(temporary, plan.with_name(name))
    finally:
        temporary.unlink(missing_ok=True)
    too_large = largest is not None and size > largest
    return Copied(name, size, too_large)
