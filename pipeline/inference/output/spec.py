"""What a run writes: the format of its rows, and whether embeddings go beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from export.errors import ProjectError

Format = Literal["csv", "jsonl", "parquet"]
ENDINGS: Final[dict[str, Format]] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class OutputSpec:
    """What a run writes.

    Attributes:
        format: of the rows.
        top_k: classes in a row, at most.
        csv_safe: whether cells that a spreadsheet would run as a formula get an apostrophe, see
            `pipeline.inference.output.lines`; for CSV alone. Defaults to False.
        embeddings: Parquet file of the pooled features. Defaults to None: they are not written.
    """

    format: Format
    top_k: int
    csv_safe: bool = False
    embeddings: Path | None = None


def format_of(output: Path) -> Format:
    """Return the format that the ending of an output's name asks for.

    Raises:
        ProjectError: It has another ending.
    """
    try:
        return ENDINGS[output.suffix.lower()]
    except KeyError:
        raise ProjectError(f"Expected a file that ends in {', '.join(ENDINGS)} after -o. Received: {output}.") from None


def require_parquet() -> None:
    """Refuse to start where Parquet files cannot be written.

    Raises:
        ProjectError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise ProjectError(
            f"Expected pyarrow, which writes Parquet files. Received: {error}. Install it (pip install pyarrow), or "
            "name an output that ends in .csv or .jsonl."
        ) from error
