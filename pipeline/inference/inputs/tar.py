"""The members of an uncompressed tar, read off its headers in constant memory; nothing of it is unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from export.errors import DataError, ImageStatus
from export.words import count
from pipeline.inference.inputs.found import Found, problem
from pipeline.inference.inputs.left_out import LeftOut
from pipeline.inference.inputs.lists import LONGEST_PATH
from pipeline.inference.inputs.paths import OF_MACOS, ending_of, is_image_name

HEADER = 512  # bytes; data is padded to a multiple
LONGEST_EXTENSION = 2**20  # bytes of a header that extends the next one, as one with a long name
REGULAR, FOLDER = (b"0", b"\0", b"7"), b"5"
LONG_NAME, LONG_LINK, EXTENDED, OF_SOLARIS, OF_ALL = b"L", b"K", b"x", b"X", b"g"
SPARSE, SPARSE_KEYS = b"S", b"GNU.sparse."
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"6", FOLDER)
OTHER_KINDS = {
    b"1": "a hard link to another member",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    SPARSE: "a sparse file",
}


class DamagedTarError(DataError):
    """The rest of a tar cannot be read; the message is the reason."""


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        name: bytes, as the tar has them.
        kind: flag of its kind.
        start: first byte of its content.
        size: of its content in bytes.
        too_long: why its name is not known in full; "" where it is.
    """

    name: bytes
    kind: bytes
    start: int
    size: int
    too_long: str = ""


def members_of(file: BinaryIO, length: int) -> Iterator[Member]:
    """Yield the members, folders included, in the order of the tar.

    Args:
        file: open for reading bytes, at its begin.
        length: of the file in bytes.

    Raises:
        DamagedTarError: what follows is cut off or no header.
    """
    place = 0
    ours: dict[bytes, bytes] = {}  # what headers before a member say of it
    of_all: dict[bytes, bytes] = {}
    too_long = ""
    while True:
        file.seek(place)
        header = file.read(HEADER)
        if len(header) < HEADER:
            raise DamagedTarError("it is cut off: the blocks that mark its end are missing")
        if header.count(0) == HEADER:
            return
        kind, size = _checked(header, place)
        data = place + HEADER
        if kind in (LONG_NAME, LONG_LINK, EXTENDED, OF_SOLARIS, OF_ALL):
            place = _after(data, size, length, "a header")
            if size > LONGEST_EXTENSION:
                too_long = f"its header has {count(size, 'byte')}, more than the {LONGEST_EXTENSION:,} allowed"
                continue
            content = file.read(size)
            if kind == LONG_NAME:
                ours[b"path"] = content.partition(b"\0")[0]
            elif kind != LONG_LINK:
                (of_all if kind == OF_ALL else ours).update(_records(content))
            continue
        if kind == SPARSE:
            data = _after_maps(file, header, data)
        said = {**of_all, **ours}
        if (number := said.get(b"size")) is not None:
            if not number.isdigit() or len(number) > 20:
                raise DamagedTarError("a size that is no number")
            size = int(number)
        name = said.get(SPARSE_KEYS + b"name") or said.get(b"path") or _short_name(header)
        if SPARSE_KEYS in said:
            kind = SPARSE
        if kind in WITHOUT_CONTENT:  # whatever size they state
            size = 0
        place = _after(data, size, length, os.fsdecode(name[:200]))
        yield Member(name, kind, data, size, too_long)
        ours, too_long = {}, ""


def _checked(header: bytes, place: int) -> tuple[bytes, int]:
    """The kind and size in a header whose checksum is right."""
    try:
        stated = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        stated = size = -1
    blank = header[:148] + b" " * 8 + header[156:]
    total = sum(blank)
    if size < 0 or (stated != total and stated != total - 256 * sum(byte > 127 for byte in blank)):  # signed, once
        raise DamagedTarError("it is no tar" if place == 0 else f"no header of a member at byte {place:,}")
    return header[156:157], size


def _after_maps(file: BinaryIO, header: bytes, place: int) -> int:
    """Where the content of a sparse member begins: behind blocks that say where its holes are."""
    more = header[482]
    while more:
        block = file.read(HEADER)
        if len(block) < HEADER:
            raise DamagedTarError("it is cut off within a sparse file")
        more, place = block[504], place + HEADER
    return place


def _number(field: bytes) -> int:
    """A number in octal digits, or in binary after a byte of 128 or 255."""
    if field[0] in (128, 255):
        return int.from_bytes(field[1:], "big", signed=field[0] == 255)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _after(data: int, size: int, length: int, what: str) -> int:
    """Where the next header is."""
    if data + size > length:
        raise DamagedTarError(f"it is cut off within {what}")
    return data + -(-size // HEADER) * HEADER


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys of an extended header that matter, with their values: lines such as "27 path=folder/image.jpg"."""
    place = 0
    while place < len(content) and content[place]:
        digits, blank, _ = content[place : place + 20].partition(b" ")
        if not blank or not digits.isdigit() or int(digits) <= len(digits) + 1:
            raise DamagedTarError("an extended header that is no list of keys and values")
        key, _, value = content[place + len(digits) + 1 : place + int(digits) - 1].partition(b"=")
        if key in (b"path", b"size", SPARSE_KEYS + b"name"):  # no more, as headers may follow each other without end
            yield key, value
        if key.startswith(SPARSE_KEYS):
            yield SPARSE_KEYS, b""
        place += int(digits)


def _short_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def images_in_tar(file: BinaryIO, path: str, place: str, mtime_ns: int, left_out: LeftOut) -> Iterator[Found]:
    """Yield the images of a tar by their ending, and what cannot be one of them; damage ends it with a problem.

    Args:
        file: open for reading bytes.
        path: of the tar, as it was named.
        place: see `Found`.
        mtime_ns: likewise.
        left_out: counts the other members.
    """
    has_images = False
    try:
        for member in members_of(file, os.fstat(file.fileno()).st_size):
            name = os.fsdecode(member.name.partition(b"\0")[0])
            folder, _, last = name.rpartition("/")
            if not last or member.kind == FOLDER or OF_MACOS in folder.split("/"):
                continue
            if not is_image_name(last) and not member.too_long:
                left_out.add(last, ending_of(last))
                continue
            has_images = True
            shown = f"{path}/{_plain(name)}"
            if fault := _fault(member):
                yield problem(shown, *fault, member.start, mtime_ns)
            else:
                yield Found(shown, "tar", place, member.start, member.size, mtime_ns)
    except DamagedTarError as error:
        before = "; the images before that are taken" if has_images else ""
        yield problem(path, f"{error}{before}", "damaged", 0, mtime_ns)


def _plain(name: str) -> str:
    """A name without what says that it is relative or absolute, shortened if it is long."""
    while name.startswith(("/", "./")):
        name = name.removeprefix(".").lstrip("/")
    return name if len(name) <= LONGEST_PATH else f"{name[:200]}..."


def _fault(member: Member) -> tuple[str, ImageStatus] | None:
    """Why a member with an image's name is none."""
    if member.too_long or len(member.name) > LONGEST_PATH:
        return member.too_long or f"a name of {count(len(member.name), 'byte')}", "too_large"
    if member.kind in OTHER_KINDS:
        return f"{OTHER_KINDS[member.kind]} in the tar; only regular members are read", "not_a_file"
    if member.kind not in REGULAR:
        return f"a member of the unknown kind {os.fsdecode(member.kind)!r}", "not_a_file"
    return None
