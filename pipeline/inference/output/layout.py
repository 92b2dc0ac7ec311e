"""The files of a run's folder: their names, and the index that says what of a shard is whole.

A shard is the rows ``[number * shard_rows, (number + 1) * shard_rows)``. Its rows are in ``000003.part`` while it is
open and in ``000003.csv`` (or ``.jsonl``) once it is sealed, its embeddings in ``000003.f32`` as raw float32. For each
batch ``000003.index`` has a record of fixed size: how far both files go, and checksums of what the batch added. The
checksums begin with the run's token and the shard's number, so no record of another run or shard ever holds.
"""

from __future__ import annotations

import os
import re
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from zlib import crc32

from pipeline.inference.output.places import open_inside
from pipeline.inference.rows import STATUSES

LOCK: Final = "lock"
RECORD: Final = "run.json"
INPUTS: Final = "inputs"
SHARD_NAME: Final = re.compile(r"\d{6,}\.(?:part|csv|jsonl|index|f32)")
PARTS: Final = "parts"  # folder for what the workers of Ray write
CHECKPOINT: Final = "checkpoint"  # folder where Ray keeps which rows are written
PART_NAME: Final = re.compile(r"\w+_[0-9a-f]{32}_\d{6,}(?:-\d+|\.pending)?\.parquet")  # in both
_BODY: Final = struct.Struct(f"<QQIII{len(STATUSES)}I")
_CHECK: Final = struct.Struct("<I")
MARK_BYTES: Final = _BODY.size + _CHECK.size


class Shard(NamedTuple):
    """Rows that are written together.

    Attributes:
        number: from 0 on.
        start: number of its first row.
        stop: number of the row after its last one.
        done: how many of its rows are on the disk.
    """

    number: int
    start: int
    stop: int
    done: int

    @property
    def next(self) -> int:
        """Number of the first row that is not on the disk."""
        return self.start + self.done


class Mark(NamedTuple):
    """The state of a shard after a batch.

    Attributes:
        rows: of the shard so far.
        end: bytes of its rows so far.
        crc: checksum of the batch's rows.
        features: values of an embedding; 0 without embeddings.
        embeddings_crc: checksum of the batch's embeddings.
        counts: rows so far with each of `STATUSES`.
    """

    rows: int = 0
    end: int = 0
    crc: int = 0
    features: int = 0
    embeddings_crc: int = 0
    counts: tuple[int, ...] = (0,) * len(STATUSES)

    @property
    def embeddings_end(self) -> int:
        """Bytes of the shard's embeddings so far."""
        return 4 * self.rows * self.features


class Batch(NamedTuple):
    """What a shard holds of one batch: its mark, its lines, its embeddings in bytes."""

    mark: Mark
    lines: bytes
    embeddings: bytes


@dataclass(frozen=True)
class Layout:
    """Where the shards of a run are.

    Attributes:
        folder: of the run.
        token: of the run.
        total: rows of the run.
        shard_rows: rows of a shard; the last one may have fewer.
        suffix: of a sealed shard.
        has_embeddings: whether rows have them.
    """

    folder: Path
    token: str
    total: int
    shard_rows: int
    suffix: str
    has_embeddings: bool

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.total // self.shard_rows)

    def shard(self, number: int, done: int = 0) -> Shard:
        """Return a shard, of which so many rows are there."""
        start = number * self.shard_rows
        return Shard(number, start, min(start + self.shard_rows, self.total), done)

    def part(self, number: int) -> Path:
        """Return the file of an open shard's rows."""
        return self.folder / f"{number:06d}.part"

    def sealed(self, number: int) -> Path:
        """Return the file of a finished shard's rows."""
        return self.folder / f"{number:06d}{self.suffix}"

    def index(self, number: int) -> Path:
        """Return the file of a shard's marks."""
        return self.folder / f"{number:06d}.index"

    def embeddings(self, number: int) -> Path:
        """Return the file of a shard's embeddings."""
        return self.folder / f"{number:06d}.f32"

    def discard(self, number: int) -> None:
        """Remove what there is of a shard, the finished rows first."""
        for path in (self.sealed(number), self.part(number), self.index(number), self.embeddings(number)):
            path.unlink(missing_ok=True)

    def seed(self, number: int) -> int:
        """Return what a shard's checksums begin with."""
        return crc32(f"{self.token} {number}".encode())

    def last_mark(self, number: int) -> Mark:
        """Return the state of a shard as its index says; the content is not looked at."""
        seed = self.seed(number)
        with ExitStack() as stack:
            index = _opened(self.index(number), stack)
            if index is None:
                return Mark()
            size = index.seek(0, os.SEEK_END)
            index.seek(max(0, size // MARK_BYTES - 1) * MARK_BYTES)
            for mark in _marks(index, seed):
                return mark
            index.seek(0)
            last = deque(_marks(index, seed), maxlen=1)
            return last[0] if last else Mark()

    def batches(self, number: int, rows: Path) -> Iterator[Batch]:
        """Yield the batches of a shard as long as their checksums hold; one batch is in memory at a time.

        Args:
            number: of the shard.
            rows: the file of its rows.
        """
        seed, former = self.seed(number), Mark()
        with ExitStack() as stack:
            lines = _opened(rows, stack)
            embeddings = _opened(self.embeddings(number), stack)
            for mark in _marks(_opened(self.index(number), stack), seed):
                added = _read(lines, mark.end - former.end)
                vectors = _read(embeddings, mark.embeddings_end - former.embeddings_end)
                if crc32(added, seed) != mark.crc or crc32(vectors, seed) != mark.embeddings_crc:
                    return
                yield Batch(mark, added, vectors)
                former = mark


def pack(mark: Mark, seed: int) -> bytes:
    """Return the record of a mark, `MARK_BYTES` long."""
    body = _BODY.pack(*mark[:-1], *mark.counts)
    return body + _CHECK.pack(crc32(body, seed))


def _marks(index: BinaryIO | None, seed: int) -> Iterator[Mark]:
    """Yield the marks of an index, from where it is, up to the first one that does not hold; of None there are none."""
    while len(record := _read(index, MARK_BYTES)) == MARK_BYTES:
        body, check = record[: _BODY.size], record[_BODY.size :]
        if _CHECK.unpack(check)[0] != crc32(body, seed):
            return
        rows, end, crc, features, embeddings_crc, *counts = _BODY.unpack(body)
        yield Mark(rows, end, crc, features, embeddings_crc, tuple(counts))


def _opened(path: Path, stack: ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(os.fdopen(open_inside(path), "rb"))
    except FileNotFoundError:
        return None


def _read(file: BinaryIO | None, size: int) -> bytes:
    """Return at most so many bytes; none of a file that is missing."""
    return file.read(size) if file is not None and size > 0 else b""
