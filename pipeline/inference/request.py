"""What a person asks of batch inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.inference.output.spec import Format


@dataclass(frozen=True)
class Request:
    """What is classified, how, and where the rows go.

    Attributes:
        inputs: paths, patterns, archives, and "-" for standard input.
        lists: files that name inputs.
        column: of a CSV list or a Parquet file. None: it is found.
        output: the file. None: standard output.
        format: of the rows.
        batch_size: images at a time, at most.
        top_k: classes in each row, at most.
        threshold: a class with a smaller probability, 0 to 1, is left out of its row.
        embeddings: Parquet file for the features before the last layer. None: none.
        sort_into: folder for links by class. None: none.
        csv_safe: put an apostrophe before cells that a spreadsheet would compute.
        keep_damaged: answer damaged JPEGs too.
        decode_threads: threads; 0: one for each CPU of this process.
        largest_file: in bytes.
        shard_rows: rows of a shard, before they are rounded up to whole batches.
        gpus: "all", or indices separated by commas. None: ``runtime.device`` alone.
        restart: drop the rows of a stopped run.
    """

    inputs: tuple[str, ...]
    lists: tuple[str, ...]
    column: str | None
    output: Path | None
    format: Format
    batch_size: int
    top_k: int
    threshold: float
    embeddings: Path | None
    sort_into: Path | None
    csv_safe: bool
    keep_damaged: bool
    decode_threads: int
    largest_file: int
    shard_rows: int
    gpus: str | None
    restart: bool
