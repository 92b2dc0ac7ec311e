"""Joins the sealed shards of a run to its final files, every checksum verified on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from export.errors import ProjectError
from export.files import replacing_file
from pipeline.inference.output.layout import Layout, Mark
from pipeline.inference.output.lines import decode, header
from pipeline.inference.output.parquet import Sink, embeddings_as_parquet, read_columns, rows_as_parquet
from pipeline.inference.output.spec import OutputSpec


class DamagedShardError(ProjectError):
    """A sealed shard does not hold what was written; its argument is the number of the shard."""


def join(layout: Layout, spec: OutputSpec, output: Path) -> None:
    """Write the final files; until they are whole and on the disk, former ones stay as they are.

    The embeddings are put in their place first, so that an output that is there has all that belongs to it.

    Raises:
        DamagedShardError: A shard changed on the disk.
    """
    with ExitStack() as files:
        target = files.enter_context(replacing_file(output))
        vectors = None if spec.embeddings is None else files.enter_context(replacing_file(spec.embeddings))
        with ExitStack() as writers:
            sinks = [writers.enter_context(_rows(target, spec))]
            if vectors is not None:
                features = layout.last_mark(0).features
                sinks.append(writers.enter_context(embeddings_as_parquet(vectors, spec, features)))
            for number in range(layout.shards):
                _copy(layout, number, sinks)


def read_rows(output: Path, spec: OutputSpec) -> Iterator[dict[str, Any]]:
    """Yield ``path, status, class, probability`` of a final file's rows, as far as they have them; a row at a time.

    Paths are as `os.fsdecode` gives them. Of CSV the probabilities have six digits.
    """
    if spec.format == "parquet":
        for row in read_columns(output, ["path", "path_bytes", "status", "class", "probability"]):
            raw = row.pop("path_bytes", None)
            yield row if raw is None else row | {"path": raw.decode("utf-8", "surrogateescape")}
        return
    with output.open(encoding="utf-8", errors="surrogateescape", newline="" if spec.format == "csv" else "\n") as file:
        rows = decode(file, spec)
        if spec.format == "csv":
            next(rows)
        yield from rows


def _copy(layout: Layout, number: int, sinks: list[Sink]) -> None:
    shard, last = layout.shard(number), Mark()
    for batch in layout.batches(number, layout.sealed(number)):
        for sink in sinks:
            sink(batch.lines, batch.embeddings)
        last = batch.mark
    if last.rows != shard.stop - shard.start:
        raise DamagedShardError(number)


@contextmanager
def _rows(path: Path, spec: OutputSpec) -> Iterator[Sink]:
    if spec.format == "parquet":
        with rows_as_parquet(path, spec) as sink:
            yield sink
        return
    with path.open("xb", buffering=2**20) as file:
        file.write(header(spec))

        def take(lines: bytes, embeddings: bytes) -> None:
            file.write(lines)

        yield take
