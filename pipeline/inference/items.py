"""One input of a run: where its bytes are, and what its row is called."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from export.errors import ImageStatus

Kind = Literal["file", "tar", "parquet", "problem"]


class Item(NamedTuple):
    """One input: one row of the output.

    Attributes:
        row: number of its row, from 0 on.
        path: the row's name: the path as it was named, or that of an archive, a slash and its member. Bytes that are
            not UTF-8 are surrogate escapes, as in `os.fsdecode`.
        kind: "file": the path itself; "tar": bytes in an uncompressed tar; "parquet": a row of a Parquet file;
            "problem": it was found to have no content while the inputs were listed.
        place: the file that is opened; of a "problem" the reason, a sentence without a full stop.
        start: first byte in a tar; row in a Parquet file. Defaults to 0.
        size: in bytes, as listed. Defaults to -1: unknown.
        status: of a "problem". Defaults to "unreadable".
    """

    row: int
    path: str
    kind: Kind
    place: str
    start: int = 0
    size: int = -1
    status: ImageStatus = "unreadable"


class ItemReader(Protocol):
    """Gives the content of items; several threads may call it at once."""

    def content(self, item: Item, largest: int) -> Path | bytes:
        """Return what `DecodeSpec.decode` takes: a path, or the bytes of an archive's member.

        Args:
            item: one of the plan.
            largest: bytes; a larger member is refused before it is read.

        Raises:
            ImageError: it has no content, or too much; with its status.
        """
