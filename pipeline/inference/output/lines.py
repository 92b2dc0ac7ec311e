r"""Rows as bytes and back: CSV and JSON Lines.

Names of files need not be UTF-8; Python has their other bytes as lone surrogates. CSV has the very bytes of a name,
so that reading with ``errors="surrogateescape"`` gives the name back. JSON has them as the escapes ``\udc80`` to
``\udcff``, so that ``os.fsencode`` of the parsed name gives them back.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.rows import Row, columns

_NO_BYTE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte
_FORMULA: Final = tuple("=+-@＝＋－＠")
_FIRST: Final = ("'", "\t", "\r", "\n")
_json = json.JSONEncoder(ensure_ascii=False).encode


def header(spec: OutputSpec) -> bytes:
    """Return what stands before the first row of a file."""
    return _csv([columns(spec.top_k)]) if spec.format == "csv" else b""


def encode(rows: Iterable[Row], spec: OutputSpec) -> bytes:
    """Return whole lines, one a row; JSON Lines for Parquet, which is made of them at the end."""
    if spec.format == "csv":
        cells = (_cells(row, spec.top_k) for row in rows)
        return _csv(map(_harmless, cells) if spec.csv_safe else cells)
    text = "\n".join(_json(_filled(row)) for row in rows)
    return (text + "\n").encode("utf-8", "backslashreplace") if text else b""


def decode(lines: Iterable[str], spec: OutputSpec) -> Iterator[dict[str, str]]:
    """Yield the filled columns of rows, as text, from lines without the header; names as `os.fsdecode` gives them.

    Args:
        lines: of CSV decoded with ``errors="surrogateescape"``, each with its end.
        spec: what the rows were written by.
    """
    if spec.format == "csv":
        names = columns(spec.top_k)
        for cells in csv.reader(lines):
            yield {name: _plain(cell) if spec.csv_safe else cell for name, cell in zip(names, cells) if cell}
    else:
        for line in lines:
            yield {name: value if isinstance(value, str) else repr(value) for name, value in json.loads(line).items()}


def split_lines(data: bytes) -> io.StringIO:
    """Return whole lines as `decode` takes them."""
    return io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")


def name_bytes(text: str) -> bytes:
    """Return the bytes of a file's name, whatever they are.

    A surrogate that stands for no byte, which no file system gives, becomes its escape.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _NO_BYTE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8", "surrogateescape")


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return name_bytes(text.getvalue())


def _cells(row: Row, top_k: int) -> list[object]:
    best: list[object] = []
    for name, probability in zip(row.classes, row.probabilities):
        best += (name, f"{probability:.6f}")
    best += [""] * (2 * top_k - len(best))
    return [row.path, row.status, *best, row.error, row.width, row.height]  # None is written as an empty cell


def _harmless(cells: list[object]) -> list[object]:
    """Put an apostrophe before what a spreadsheet runs as a formula, and before an apostrophe, so that one goes back.

    Spreadsheets take full-width signs, and signs after white space, for formulas too.
    """
    return [
        f"'{cell}"
        if isinstance(cell, str) and (cell.startswith(_FIRST) or cell.lstrip().startswith(_FORMULA))
        else cell
        for cell in cells
    ]


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") else cell


def _filled(row: Row) -> dict[str, object]:
    """Return the columns of a row that have a value, in their order."""
    filled: dict[str, object] = {"path": row.path, "status": row.status}
    for rank, (name, probability) in enumerate(zip(row.classes, row.probabilities), 1):
        suffix = f"_{rank}" if rank > 1 else ""
        filled |= {f"class{suffix}": name, f"probability{suffix}": float(probability)}
    if row.error:
        filled["error"] = row.error
    if row.width is not None:
        filled["width"] = row.width
    if row.height is not None:
        filled["height"] = row.height
    return filled
