"""The content of items, read by several threads: paths as they are, members of tars, rows of Parquet files."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from export.errors import ImageError
from export.words import count
from pipeline.data.image_files import check_bytes
from pipeline.inference.inputs.parquet import ParquetRows
from pipeline.inference.inputs.plan import Archive, Plan
from pipeline.inference.items import Item

MOST_OPEN = 8  # archives; threads that are at different places need two or three


class PathReader:
    """An `ItemReader` of items that are files."""

    def content(self, item: Item, largest: int) -> Path | bytes:
        """Return the path; decoding looks at the size."""
        return Path(item.place)


class _OpenArchive:
    """An archive that is open while somebody reads it, and a while longer."""

    def __init__(self, place: str, listed: Archive) -> None:
        self.place, self.listed = place, listed
        self.file = open(place, "rb", buffering=0)  # noqa: SIM115  # closed by `Reader`
        self.lock = threading.Lock()
        self.users = 0
        self.rows: ParquetRows | None = None

    def check(self) -> None:
        """Refuse an archive that is not the one that was listed: its members are elsewhere now."""
        facts = os.fstat(self.file.fileno())
        same_time = self.listed.mtime_ns in (0, facts.st_mtime_ns)
        if facts.st_size != self.listed.size or not same_time:
            raise ImageError(f"{self.place} was changed after it was listed", "unreadable")


class Reader:
    """An `ItemReader` of a plan; several threads may use it at once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenArchive] = OrderedDict()

    def content(self, item: Item, largest: int) -> Path | bytes:
        """Return a file's path, or the bytes of a member; see `ItemReader`.

        Rows of a Parquet file are read forward: threads ask in about rising order.
        """
        if item.kind == "problem":
            raise ImageError(item.place, item.status)
        if item.kind == "file":
            return Path(item.place)
        check_bytes(item.size, largest)
        try:
            with self._held(item.place) as archive:
                archive.check()
                content = _member(archive, item) if item.kind == "tar" else self._row(archive, item, largest)
                archive.check()
                return content
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            reason = f"{item.place}: {error.strerror or error}"
            raise ImageError(reason, "missing" if gone else "unreadable") from error

    def close(self) -> None:
        """Close all archives."""
        with self._lock:
            for archive in self._open.values():
                archive.file.close()
            self._open.clear()

    @contextlib.contextmanager
    def _held(self, place: str) -> Iterator[_OpenArchive]:
        """An archive that stays open while the block runs; those unused for longest are closed for it."""
        with self._lock:
            if place not in self._open:
                self._open[place] = _OpenArchive(place, self._plan.archives[place])
            archive = self._open[place]
            self._open.move_to_end(place)
            archive.users += 1
            unused = [other for other in self._open.values() if not other.users]
            for other in unused[: max(0, len(self._open) - MOST_OPEN)]:
                other.file.close()
                del self._open[other.place]
        try:
            yield archive
        finally:
            with self._lock:
                archive.users -= 1

    def _row(self, archive: _OpenArchive, item: Item, largest: int) -> bytes:
        with archive.lock:
            if archive.rows is None:
                archive.rows = ParquetRows(archive.file, archive.place, archive.listed.column)
            return archive.rows.row(item.start, largest)


def _member(archive: _OpenArchive, item: Item) -> bytes:
    """The bytes of a tar's member."""
    pieces: list[bytes] = []
    read = 0
    while read < item.size and (piece := _read_at(archive, item.size - read, item.start + read)):
        pieces.append(piece)
        read += len(piece)
    if read < item.size:
        raise ImageError(f"the tar ends after {count(read, 'byte')} of {item.size:,}")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_at(archive: _OpenArchive, size: int, start: int) -> bytes:
    if sys.platform != "win32" and hasattr(os, "pread"):
        return os.pread(archive.file.fileno(), size, start)  # moves no place in the file, so no lock is needed
    with archive.lock:
        archive.file.seek(start)
        return archive.file.read(size)


@contextlib.contextmanager
def open_reader(plan: Plan) -> Iterator[Reader]:
    """Yield a reader of a plan's items, whose archives are closed at the end of the block.

    Args:
        plan: as `make_plan` or `read_plan` returned it; each process opens a reader of its own.
    """
    reader = Reader(plan)
    try:
        yield reader
    finally:
        reader.close()
