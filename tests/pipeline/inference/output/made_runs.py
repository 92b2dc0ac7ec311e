"""Runs whose rows follow from their numbers, so that whoever writes them, they are the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.inference.output.layout import Shard
from pipeline.inference.output.run import RunFolder
from pipeline.inference.output.spec import OutputSpec, format_of
from pipeline.inference.rows import Row, Rows

FEATURES = 3
NAMES = (b"photo", b"a,b", b'"quoted"', b"two\nlines", b"\xff\xfe", "ä\u202e😀".encode(), b"=1+1", b"\r\t\x1b")


def row(number: int) -> Row:
    path = os.fsdecode(NAMES[number % len(NAMES)] + b"%d.png" % number)
    if number % 5 == 3:
        return Row(path, "damaged", error=f"reason, {number}", width=7)
    return Row(path, "ok", ("cät", "dog"), (1 - 1 / (number + 2), 1 / (number + 2)), "", 640 + number, 480)


def batch(first: int, count: int, embeddings: bool = False) -> Rows:
    rows = [row(number) for number in range(first, first + count)]
    values = np.arange(first, first + count, dtype=np.float32)[:, None] + np.arange(FEATURES, dtype=np.float32)
    values[[one.status != "ok" for one in rows]] = np.nan
    return Rows(first, rows, values if embeddings else None)


def batches(shard: Shard, size: int, embeddings: bool = False) -> Iterator[Rows]:
    for first in range(shard.next, shard.stop, size):
        yield batch(first, min(size, shard.stop - first), embeddings)


def spec_of(output: Path, embeddings: bool = False, top_k: int = 2) -> OutputSpec:
    return OutputSpec(format_of(output), top_k, embeddings=output.with_name("features.parquet") if embeddings else None)


def work(
    output: Path,
    total: int = 23,
    shard_rows: int = 10,
    size: int = 2,
    *,
    embeddings: bool = False,
    most: int | None = None,
    fresh: bool = False,
    identity: str = "a",
) -> int:
    """Run to the end, or for so many batches until Ctrl-C; return how many rows were there at first."""
    with RunFolder.take(output) as run:
        run.begin({"model": identity}, total, shard_rows, spec_of(output, embeddings), fresh=fresh)
        before, written = run.done, 0
        for shard in run.unfinished():
            for rows in batches(shard, size, embeddings):
                if written == most:
                    raise KeyboardInterrupt
                run.write(rows)
                written += 1
        if written == most:
            raise KeyboardInterrupt
        run.finish()
    return before


def finals(output: Path) -> dict[str, bytes]:
    """The content of the final files that are there."""
    return {path.name: path.read_bytes() for path in output.parent.glob("*.*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
