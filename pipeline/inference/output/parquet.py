"""Rows and embeddings as Parquet, a row group at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from pipeline.inference.output.lines import decode, encode, name_bytes, split_lines
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.rows import Row, columns

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS: Final = 16_384
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPE: Final = rb"\ud"  # JSON Lines have no surrogate without it
_GROUP_BYTES: Final = 32 * 2**20  # of embeddings, which have thousands of values each


class Sink(Protocol):
    """Takes the rows of a run, batch by batch."""

    def __call__(self, lines: bytes, embeddings: bytes) -> None:
        """Take the lines of a batch and its embeddings."""


def schema_of_rows(top_k: int) -> pa.Schema:
    r"""Return the columns of rows, those of `columns` and ``path_bytes``.

    The column ``path`` is text, with a byte that is not UTF-8 as its escape, ``\xff``; ``path_bytes`` has the bytes of
    such a name, and is null for all others. What a row does not have is null.

    Args:
        top_k: classes in a row, at most.
    """
    import pyarrow as pa

    kinds = {"width": pa.int32(), "height": pa.int32(), "path_bytes": pa.binary()}
    names = columns(top_k)
    names.insert(1, "path_bytes")
    return pa.schema(
        [(name, kinds.get(name, pa.float64() if name.startswith("probability") else pa.string())) for name in names]
    )


def rows_as_table(rows: Sequence[Row], top_k: int) -> pa.Table:
    """Return rows as the table that `rows_as_parquet` would write of them."""
    import pyarrow as pa

    return pa.Table.from_pylist(_parsed(encode(rows, OutputSpec("parquet", top_k))), schema_of_rows(top_k))


@contextmanager
def rows_as_parquet(path: Path, spec: OutputSpec) -> Iterator[Sink]:
    """Yield what writes JSON Lines as a Parquet file, see `schema_of_rows`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of_rows(spec.top_k)
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def write() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema))
            waiting.clear()

        def take(lines: bytes, embeddings: bytes) -> None:
            for row in _parsed(lines):
                waiting.append(row)
                if len(waiting) == GROUP_ROWS:
                    write()

        yield take
        if waiting:
            write()


@contextmanager
def embeddings_as_parquet(path: Path, spec: OutputSpec, features: int) -> Iterator[Sink]:
    """Yield what writes embeddings as a Parquet file: path, path_bytes, status, and float32 of a fixed length.

    The embedding of an image without an answer is null.

    Args:
        path: the file.
        spec: what the lines were written by.
        features: values of an embedding.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("path_bytes", pa.binary()),
            ("status", pa.string()),
            ("embedding", pa.list_(pa.float32(), features)),
        ]
    )
    group = max(1, min(GROUP_ROWS, _GROUP_BYTES // max(1, 4 * features)))
    rows: list[dict[str, Any]] = []
    vectors: list[np.ndarray] = []
    plain = {"use_dictionary": ["status"], "compression": {"path": "snappy", "embedding": "none"}}
    with pq.ParquetWriter(path, schema, **plain) as writer:

        def write() -> None:
            values = np.concatenate(vectors)
            absent = pa.array(np.isnan(values).all(axis=1))
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), features, mask=absent)
            texts = [
                pa.array([row.get(name) for row in rows], kind) for name, kind in zip(schema.names[:3], schema.types)
            ]
            writer.write_table(pa.Table.from_arrays([*texts, embedding], schema=schema))
            rows.clear()
            vectors.clear()

        def take(lines: bytes, embeddings: bytes) -> None:
            of_batch = list(decode(split_lines(lines), spec))
            values = np.frombuffer(embeddings, "<f4").reshape(len(of_batch), features)
            for row, vector in zip(of_batch, values):
                rows.append({"status": row["status"], **_named(row["path"])})
                vectors.append(vector[None])
                if len(rows) == group:
                    write()

        yield take
        if rows:
            write()


def read_columns(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file with the named columns alone; nulls are left out."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=4096, columns=list(names)):
            for row in batch.to_pylist():
                yield {name: value for name, value in row.items() if value is not None}


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(b"[" + lines.replace(b"\n", b",")[:-1] + b"]")  # JSON escapes a name's \n
    if _ESCAPE not in lines:
        return rows
    return [
        {
            **{name: _text(value) if isinstance(value, str) else value for name, value in row.items()},
            **_named(row["path"]),
        }
        for row in rows
    ]


def _named(path: str) -> dict[str, Any]:
    """Return the columns of a name; its bytes only where it is no text."""
    return {"path": _text(path), "path_bytes": name_bytes(path)} if _SURROGATE.search(path) else {"path": path}


def _text(text: str) -> str:
    return name_bytes(text).decode("utf-8", "backslashreplace") if _SURROGATE.search(text) else text
