"""The plan of a run: every input on the disk, so that memory does not grow with their number.

A plan's file holds `MAGIC`, a record for each item, the places of every 1,024th record, facts in JSON, and a trailer
with sizes and a checksum. Row numbers are not written: they are the order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, get_args

from export.errors import DataError, ImageStatus
from export.files import add_path, commit_file, temporary_path
from export.words import count
from pipeline.inference.inputs.found import BESIDE_PLAN, Found
from pipeline.inference.inputs.unique import absolute, hash_of, repeats
from pipeline.inference.items import Item, Kind

MAGIC = b"inputs of a run, 1\n"
STEP = 1024  # items from one known place to the next
BLOCK = 2**20
MOST_NOTES = 20
_RECORD = struct.Struct("<BBIIqqQ")  # kind, status, bytes of path and place, start, size, time of the file
_TRAILER = struct.Struct("<QQQ32s32s")  # bytes of records, places and facts; digest of the records; checksum
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_STATUSES: Final[tuple[ImageStatus, ...]] = get_args(ImageStatus)
_KIND_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_STATUS_NUMBERS = {status: number for number, status in enumerate(_STATUSES)}
TIME = 2**64 - 1  # nanoseconds since 1970, which may be before it
CODEC, ESCAPES = "utf-8", "surrogateescape"


@dataclass(frozen=True)
class Archive:
    """A file with several images, as it was when it was listed.

    Attributes:
        size: in bytes.
        mtime_ns: when it changed, in nanoseconds; 0 for a copy of standard input, which its name identifies.
        column: of a Parquet file, as it was named. Defaults to None: the only one that fits.
    """

    size: int
    mtime_ns: int
    column: str | None = None


@dataclass(frozen=True)
class Plan:
    """Every input of a run, in order; the items are read from the file when they are asked for.

    Several threads and processes may read it at once.

    Attributes:
        file: the plan's file.
        digest: sha256 of what was found: each item's path, kind, place, size and its file's time.
        left_out: how many files are not taken, by ending.
        notes: what a person should know of the listing.
        archives: tars and Parquet files, by their place.
    """

    file: Path
    digest: str
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    archives: Mapping[str, Archive]
    _count: int = field(repr=False)
    _places: array[int] = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self._count

    def lines(self) -> list[str]:
        """Return the messages for a person, such as "left out below photos: 3 .heic, 1 file without an ending"."""
        more = len(self.notes) - MOST_NOTES
        if more <= 1:
            return list(self.notes)
        return [*self.notes[:MOST_NOTES], f"{more:,} more messages of this kind"]

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yield the items of a range of rows.

        Args:
            start: the first row. Defaults to 0.
            stop: the row after the last one. Defaults to None: all.

        Raises:
            DataError: the file was cut or removed since it was opened.
        """
        stop = self._count if stop is None else min(stop, self._count)
        if start < 0:
            raise ValueError(f"a first row of {start}")
        if start >= stop:
            return
        try:
            with self.file.open("rb", buffering=BLOCK // 4) as file:
                file.seek(self._places[start // STEP])
                for _ in range(start % STEP):
                    _read_record(file)
                for row in range(start, stop):
                    kind, status, path, place, first, size, _ = _read_record(file)
                    yield Item(row, path, _KINDS[kind], self._place(path, place), first, size, _STATUSES[status])
        except (OSError, struct.error) as error:
            raise _damaged(self.file, str(error)) from error

    def _place(self, path: str, place: str) -> str:
        return beside(self.file, place) if place else path


def beside(file: Path, place: str) -> str:
    """Return the path of a place, which may be a file beside the plan."""
    return str(file.parent / place[1:]) if place.startswith(BESIDE_PLAN) else place


def _read_record(file: BinaryIO) -> tuple[int, int, str, str, int, int, int]:
    kind, status, path, place, start, size, mtime_ns = _RECORD.unpack(file.read(_RECORD.size))
    texts = file.read(path + place)
    if len(texts) < path + place:
        raise struct.error("it ends within an item")
    return (
        kind,
        status,
        str(texts[:path], CODEC, ESCAPES),
        str(texts[path:], CODEC, ESCAPES) if place else "",
        start,
        size,
        mtime_ns,
    )


def _record(found: Found) -> bytes:
    path, place = found.path.encode(CODEC, ESCAPES), found.place.encode(CODEC, ESCAPES)
    return (
        _RECORD.pack(
            _KIND_NUMBERS[found.kind],
            _STATUS_NUMBERS[found.status],
            len(path),
            len(place),
            found.start,
            found.size,
            found.mtime_ns & TIME,
        )
        + path
        + place
    )


class PlanWriter:
    """Writes a plan item by item; a context, which removes what is not finished.

    Args:
        file: the plan's file; it is replaced at the end.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._working = os.getcwd()
        self._hashes = array("Q")
        self._places = array("Q")
        self._place = len(MAGIC)
        self._temporaries: list[Path] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PlanWriter:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        for path in self._temporaries:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            add_path(error, self._file)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, found: Found) -> None:
        """Write an item."""
        record = _record(found)
        self._hashes.append(hash_of(self._key(found.path, found.kind, found.start)))
        self._places.append(self._place)
        self._place += len(record)
        self._out.write(record)

    def finish(self, facts: Mapping[str, Any]) -> Plan:
        """Leave out what was named before, and put the file in its place.

        Args:
            facts: the plan's left_out, notes and archives, for JSON.
        """
        self._out.flush()
        raw = self._temporaries[-1]
        with raw.open("rb") as file:
            same, others = repeats(self._hashes, lambda item: self._identity(file, item))
        self._hashes = array("Q")
        places = self._places[::STEP]
        number, end = len(self._places), self._place
        if same or others:
            places, number, end = self._without(raw, same, others)
        self._end(places, number, end, facts)
        self._stack.close()
        commit_file(self._temporaries[-1], self._file)
        return read_plan(self._file)

    def _open(self) -> BinaryIO:
        self._temporaries.append(temporary_path(self._file))
        out = self._stack.enter_context(self._temporaries[-1].open("w+b", buffering=BLOCK))
        out.write(MAGIC)
        return out

    def _key(self, path: str, kind: Kind, start: int) -> str:
        """What two items for one content have in common; a member is not the file that has its path.

        The path of a member stays as it is: ``..`` in its name leads nowhere, and not to a member of another archive.
        """
        return f"{path}\0" if start or kind in ("tar", "parquet") else absolute(path, self._working)

    def _identity(self, file: BinaryIO, item: int) -> tuple[str, int]:
        file.seek(self._places[item])
        kind, _, path, _, start, _, _ = _read_record(file)
        return self._key(path, _KINDS[kind], start), start

    def _without(self, raw: Path, same: array[int], others: dict[int, int]) -> tuple[array[int], int, int]:
        """Write the items again, without those named before; a further member of one name gets "#2" behind it."""
        self._out = self._open()
        places, number, end = array("Q"), 0, len(MAGIC)
        left_out = iter(same)
        skipped = next(left_out, -1)
        with raw.open("rb", buffering=BLOCK) as file:
            file.seek(len(MAGIC))
            for item in range(len(self._places)):
                kind, status, path, place, start, size, mtime_ns = _read_record(file)
                if item == skipped:
                    skipped = next(left_out, -1)
                    continue
                if item in others:
                    path = f"{path}#{others[item]}"
                record = _record(Found(path, _KINDS[kind], place, start, size, mtime_ns, _STATUSES[status]))
                if number % STEP == 0:
                    places.append(end)
                self._out.write(record)
                number, end = number + 1, end + len(record)
        self._places = array("Q")
        return places, number, end

    def _end(self, places: array[int], number: int, end: int, facts: Mapping[str, Any]) -> None:
        """Write what comes behind the records."""
        known = json.dumps({**facts, "count": number}).encode()
        index = places.tobytes()
        self._out.seek(len(MAGIC))
        digest = _hash(self._out, end - len(MAGIC))
        sizes = struct.pack("<QQQ", end - len(MAGIC), len(index), len(known))
        checksum = hashlib.sha256(MAGIC + digest + index + known + sizes).digest()
        self._out.seek(end)
        self._out.write(index + known + sizes + digest + checksum)


def _hash(file: BinaryIO, size: int) -> bytes:
    digest = hashlib.sha256()
    while size and (block := file.read(min(size, BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


def read_plan(file: Path) -> Plan:
    """Open a plan; all of it is read once, to see that it is whole.

    Raises:
        DataError: it is damaged, cut, of another version, or not there.
    """
    try:
        with file.open("rb") as opened:
            end = opened.seek(0, os.SEEK_END) - _TRAILER.size
            if end < len(MAGIC):
                raise ValueError(f"it has {count(end + _TRAILER.size, 'byte')}")
            opened.seek(end)
            trailer = opened.read()
            records, places, known, digest, checksum = _TRAILER.unpack(trailer)
            opened.seek(0)
            if opened.read(len(MAGIC)) != MAGIC:
                raise ValueError("it begins as no plan of this version")
            if len(MAGIC) + records + places + known != end:
                raise ValueError("its parts do not make up its size")
            if _hash(opened, records) != digest:
                raise ValueError("its items have another checksum")
            index, text = opened.read(places), opened.read(known)
        if hashlib.sha256(MAGIC + digest + index + text + trailer[:24]).digest() != checksum:
            raise ValueError("its facts have another checksum")
    except (OSError, ValueError) as error:
        raise _damaged(file, getattr(error, "strerror", None) or str(error)) from error
    facts = json.loads(text)
    return Plan(
        file=file,
        digest=digest.hex(),
        left_out=facts["left_out"],
        notes=tuple(facts["notes"]),
        archives={beside(file, place): Archive(*values) for place, values in facts["archives"].items()},
        _count=facts["count"],
        _places=array("Q", index),
    )


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(
        f"Expected the whole list of inputs in {file}. Received: one that cannot be read: {reason}. Remove its folder, "
        "and start the run again."
    )
