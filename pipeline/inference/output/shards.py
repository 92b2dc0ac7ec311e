"""Writes shards: rows at the end of an open one, which is sealed by a rename once it is full."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from zlib import crc32

import numpy as np

from export.errors import ProjectError
from export.files import commit_file, sync
from pipeline.inference.output.layout import MARK_BYTES, Layout, Mark, Shard, pack
from pipeline.inference.output.lines import encode
from pipeline.inference.output.places import lock, open_inside, write_at
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.rows import STATUSES, Rows


class ShardWriter:
    """Writes the shards of a run, one at a time; several processes may write different ones.

    Each batch is handed to the system at once: its rows, its embeddings, then its mark. So whatever ends the process,
    at most the batch that was being written is lost. Files are synced to the disk when a shard is sealed.

    Args:
        layout: of the run's folder.
        spec: how rows are written.
        is_alive: whether the run goes on, asked before a shard is opened. Defaults to always.
    """

    def __init__(self, layout: Layout, spec: OutputSpec, is_alive: Callable[[], bool] = lambda: True) -> None:
        self._layout = layout
        self._spec = spec
        self._is_alive = is_alive
        self._open: _OpenShard | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def claim(self, number: int) -> Shard:
        """Open a shard for this process alone, cut to its last whole batch.

        Returns:
            Shard: with the rows that are there; nothing is to be written where that is all of them.

        Raises:
            ProjectError: Another process writes it, or the run has ended.
        """
        self.close()
        if not self._is_alive():
            raise ProjectError(
                f"Expected a process that holds {self._layout.folder}. Received: none; the run has ended."
            )
        sealed = self._layout.sealed(number)
        if not sealed.exists():
            opened = _OpenShard(self._layout, self._spec, number)
            try:
                if sealed.exists():  # another process finished it meanwhile
                    opened.close()
                else:
                    opened.cut()
                    self._open = opened
                    self._seal_if_full()
            except BaseException:
                self._open = None
                opened.close()
                raise
        return self._layout.shard(number, self._layout.last_mark(number).rows)

    def next_row(self, number: int) -> int:
        """Return the number of a shard's first row that is not on the disk, its stop where all are.

        Nothing is opened or cut, so another thread may ask while this writer is at an earlier shard.
        """
        return self._layout.shard(number, self._layout.last_mark(number).rows).next

    def write(self, rows: Rows) -> None:
        """Write a batch, which has to be the next one of its shard; the shard is claimed if it is not open.

        Raises:
            ValueError: They are other rows, or belong to two shards.
        """
        number = rows.first // self._layout.shard_rows
        if self._open is None or self._open.shard.number != number:
            self.claim(number)
        if self._open is None:
            raise ValueError(f"Expected rows of an unfinished shard. Received: row {rows.first} of shard {number}.")
        self._open.append(rows)
        self._seal_if_full()

    def close(self) -> None:
        """Close the open shard; what is written of it stays."""
        if self._open is not None:
            opened, self._open = self._open, None
            opened.close()

    def _seal_if_full(self) -> None:
        if self._open is not None and self._open.is_full:
            opened, self._open = self._open, None
            try:
                opened.seal()
            finally:
                opened.close()


class _OpenShard:
    """The files of an open shard, and the lock on it."""

    def __init__(self, layout: Layout, spec: OutputSpec, number: int) -> None:
        self._layout = layout
        self._spec = spec
        self._seed = layout.seed(number)
        self._mark = Mark()
        self._marks = 0
        self.shard = layout.shard(number)
        self._paths = [layout.index(number), layout.part(number)]
        if layout.has_embeddings:
            self._paths.append(layout.embeddings(number))
        self._files: list[int] = []
        try:
            for path in self._paths:
                self._files.append(open_inside(path, os.O_RDWR | os.O_CREAT))
                if len(self._files) == 1 and not lock(self._files[0], path):
                    raise ProjectError(
                        f"Expected no other process at rows {self.shard.start:,} to {self.shard.stop - 1:,} in "
                        f"{layout.folder}. Received: one that writes them, of a run that was stopped. Wait until it "
                        "has ended, or end it."
                    )
        except BaseException:
            self.close()
            raise

    @property
    def is_full(self) -> bool:
        return self._mark.rows == self.shard.stop - self.shard.start

    def cut(self) -> None:
        """Cut the files to the last batch whose checksums hold."""
        for batch in self._layout.batches(self.shard.number, self._layout.part(self.shard.number)):
            self._mark = batch.mark
            self._marks += 1
        sizes = (self._marks * MARK_BYTES, self._mark.end, self._mark.embeddings_end)
        for file, size in zip(self._files, sizes):
            os.ftruncate(file, size)

    def append(self, rows: Rows) -> None:
        expected, stop = self.shard.start + self._mark.rows, rows.first + len(rows.rows)
        if rows.first != expected or stop > self.shard.stop or not rows.rows:
            raise ValueError(
                f"Expected rows from {expected} to at most {self.shard.stop - 1}. Received: {rows.first} to {stop - 1}."
            )
        lines = encode(rows.rows, self._spec)
        vectors, features = self._embeddings(rows)
        counts = list(self._mark.counts)
        for row in rows.rows:
            counts[STATUSES.index(row.status)] += 1
        mark = Mark(
            rows=self._mark.rows + len(rows.rows),
            end=self._mark.end + len(lines),
            crc=crc32(lines, self._seed),
            features=features,
            embeddings_crc=crc32(vectors, self._seed),
            counts=tuple(counts),
        )
        index, part, *embeddings = self._files
        write_at(part, self._mark.end, lines)
        for file in embeddings:
            write_at(file, mark.embeddings_end - len(vectors), vectors)
        write_at(index, self._marks * MARK_BYTES, pack(mark, self._seed))
        self._mark = mark
        self._marks += 1

    def seal(self) -> None:
        """Wait until the rows are on the disk, then give them the name of finished ones."""
        os.close(self._files.pop(1))  # Windows renames no open file
        index, part, *embeddings = self._paths
        for path in (index, *embeddings):
            sync(path)
        commit_file(part, self._layout.sealed(self.shard.number))

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())  # the index last, which has the lock

    def _embeddings(self, rows: Rows) -> tuple[bytes, int]:
        if not self._layout.has_embeddings:
            return b"", 0
        shape = None if rows.embeddings is None else rows.embeddings.shape
        known = self._mark.features
        if rows.embeddings is None or shape is None or shape != (len(rows.rows), known or shape[-1]) or not shape[-1]:
            raise ValueError(f"Expected embeddings ({len(rows.rows)}, {known or 'features'}). Received: {shape}.")
        return np.ascontiguousarray(rows.embeddings, "<f4").tobytes(), int(shape[-1])
