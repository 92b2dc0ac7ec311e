"""Rows to a pipe, in the order of the inputs; what a reader took cannot be taken back, so nothing is resumed."""

from __future__ import annotations

from collections import Counter
from typing import BinaryIO

from pipeline.inference.output.lines import encode, header
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.rows import Rows


class StreamWriter:
    """Writes rows to a stream, whole lines, each batch at once.

    Args:
        stream: such as `sys.stdout.buffer`.
        spec: its format is CSV or JSON Lines, and it has no embeddings.
    """

    def __init__(self, stream: BinaryIO, spec: OutputSpec) -> None:
        if spec.format == "parquet" or spec.embeddings is not None:
            raise ValueError(f"Expected CSV or JSON Lines alone for a stream. Received: {spec}.")
        self._stream = stream
        self._spec = spec
        self._counts: Counter[str] = Counter()
        self.done = 0

    def write(self, rows: Rows) -> None:
        """Write the rows that come next.

        Raises:
            BrokenPipeError: The reader has gone.
        """
        if rows.first != self.done:
            raise ValueError(f"Expected row {self.done} next. Received: rows from {rows.first} on.")
        head = b"" if self.done else header(self._spec)
        self._stream.write(head + encode(rows.rows, self._spec))
        self._stream.flush()  # at each batch, so that no row waits for the next one
        self.done += len(rows.rows)
        self._counts.update(row.status for row in rows.rows)

    def counts(self) -> dict[str, int]:
        """Return how many rows have each status."""
        return dict(self._counts)
