"""The rows that Ray's workers have written, as its checkpoint says: how many, of which status, each once.

A part ``<name>-0.parquet`` counts once its checkpoint, ``<name>.parquet``, is there; Ray gives it this name after the
part is whole.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from export.errors import ProjectError, cause
from pipeline.inference.rows import OK, Row

ROW: Final = "row"  # the column with a row's number, by which Ray knows what is written
_PENDING: Final = ".pending"
_SHOWN: Final = ["path", "path_bytes", "status", "class", "probability", "error"]


class Look(NamedTuple):
    """What is new.

    Attributes:
        rows: how many.
        failed: of these, rows whose status is not "ok".
        shown: those that a person may want to see: the failed ones, or all.
    """

    rows: int
    failed: int
    shown: list[Row]


class WrittenRows:
    """The rows that are written, counted once; a look adds those that are new.

    Args:
        parts: folder of the parts.
        checkpoint: folder of Ray's checkpoint.
        total: rows of the run.
        shows_all: whether a look shows rows without a failure too. Defaults to False.
    """

    def __init__(self, parts: Path, checkpoint: Path, total: int, *, shows_all: bool = False) -> None:
        self._parts, self._checkpoint, self._shows_all = parts, checkpoint, shows_all
        self._seen: set[str] = set()
        self._is_there = np.zeros(total, bool)
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of rows with each status."""
        return self._counts

    @property
    def done(self) -> int:
        """Number of rows."""
        return self._counts.total()

    @property
    def missing(self) -> int:
        """Number of rows that are nowhere."""
        return int(len(self._is_there) - self._is_there.sum())

    @property
    def repeated(self) -> int:
        """Number of rows that are there again."""
        return self.done - int(self._is_there.sum())

    def look(self) -> Look:
        """Count what was written since the last look.

        Raises:
            ProjectError: a part cannot be read.
        """
        failed, shown, before = 0, [], self.done
        for name in committed(self._checkpoint):
            if name in self._seen:
                continue
            table = _read(part_of(self._parts, name), [ROW, *_SHOWN])
            self._seen.add(name)
            self._is_there[table[ROW].to_numpy()] = True
            counts = {each["values"]: each["counts"] for each in table["status"].value_counts().to_pylist()}
            self._counts.update(counts)
            failed += table.num_rows - counts.get(OK, 0)
            shown += [
                _row(record)
                for record in (table if self._shows_all else _without_answer(table)).select(_SHOWN).to_pylist()
            ]
        return Look(self.done - before, failed, shown)


def part_ranges(total: int, rows: int) -> list[tuple[int, int]]:
    """Return the first row of each part, and the one after its last.

    The last part takes the rest: Ray would join one that is smaller than the others to some other, and the batches
    would be others.

    Args:
        total: rows of the run.
        rows: of a part.
    """
    starts = [*range(0, max(1, total // rows) * rows, rows), total]
    return list(pairwise(starts))


def committed(checkpoint: Path) -> Iterator[str]:
    """Yield the names of the parts that are whole."""
    names = os.listdir(checkpoint) if checkpoint.is_dir() else []
    for name in sorted(names):
        stem = name.removesuffix(".parquet")
        if not stem.endswith(_PENDING):
            yield stem


def part_of(parts: Path, name: str) -> Path:
    """Return the file of a part."""
    return parts / f"{name}-0.parquet"


def discard_damaged(parts: Path, checkpoint: Path) -> int:
    """Remove the parts that are not as they were written, so that their rows are done anew; return how many."""
    damaged = [name for name in committed(checkpoint) if not _is_whole(part_of(parts, name), checkpoint, name)]
    for name in damaged:
        (checkpoint / f"{name}.parquet").unlink()
        part_of(parts, name).unlink(missing_ok=True)
    return len(damaged)


def discard_uncommitted(parts: Path, checkpoint: Path) -> None:
    """Remove parts that a worker of a stopped run has begun."""
    whole = {part_of(parts, name) for name in committed(checkpoint)}
    for name in os.listdir(parts):
        if parts / name not in whole:
            (parts / name).unlink()


def _is_whole(part: Path, checkpoint: Path, name: str) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: int = pq.read_metadata(part).num_rows
        listed: int = pq.read_metadata(checkpoint / f"{name}.parquet").num_rows
    except (OSError, pa.ArrowInvalid):
        return False
    return rows == listed


def _read(path: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ProjectError(
            f"Expected {path} as a worker wrote it. Received: one that cannot be read: {cause(error)} Run the same "
            "command again, which does its rows anew."
        ) from error


def _without_answer(table: Any) -> Any:
    import pyarrow.compute as pc

    return table.filter(pc.not_equal(table["status"], OK))


def _row(record: dict[str, Any]) -> Row:
    raw, name, probability = record["path_bytes"], record["class"], record["probability"]
    return Row(
        record["path"] if raw is None else os.fsdecode(raw),
        record["status"],
        () if name is None else (name,),
        () if probability is None else (probability,),
        record["error"] or "",
    )
