"""Lists of paths: text of a path a line or as ``find -print0`` writes it, and tables in CSV; streamed."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

from export.errors import DataError
from export.words import count, listed
from pipeline.inference.inputs.found import Found, problem
from pipeline.inference.inputs.left_out import NO_PATH, LeftOut

LONGEST_PATH = 4096  # bytes; Linux opens none that is longer
BLOCK = 2**16
LONGEST_LINE = 2**20  # bytes; a longer line may have no end
LONGEST_ROW = 2**20  # characters of a line of a table
COLUMNS = ("path", "file", "filename", "image", "file_name", "image_path")
UTF_8 = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def paths_in_text(file: BinaryIO, name: str, first: bytes = b"") -> Iterator[str | Found]:
    """Yield the paths of a list, or a problem for a line that is too long for one.

    A line ends with a line feed, before which a carriage return may stand; or with a NUL, if the first 64 KiB hold one;
    or with a carriage return, if they hold no line feed either. Empty lines, and lines of blanks that no NUL ends, are
    no paths. Behind a line that is so long that it may have no end, nothing is read.

    Args:
        file: open for reading bytes.
        name: of the list, for messages.
        first: what was read of it before. Defaults to nothing.

    Raises:
        DataError: it is UTF-16, or has no path.
    """
    block = first or file.read(BLOCK)
    _refuse_utf_16(block, name)
    if len(block) >= BLOCK and block.count(0) == len(block):  # such as /dev/zero, which has no end
        raise DataError(f"Expected a path a line. Received: {name}, which begins with {len(block):,} NUL bytes.")
    end = next((end for end in (b"\0", b"\n", b"\r") if end in block), b"\n")
    found = False
    for number, (line, length) in enumerate(_lines(file, block.removeprefix(UTF_8), end), 1):
        if length > LONGEST_PATH:
            found = True
            yield _too_long(line, length, name, number)
            if length > LONGEST_LINE:
                return
            continue
        if end != b"\0":
            line = line.removesuffix(b"\r")
            if line.isspace():
                continue
        if line:
            found = True
            yield os.fsdecode(line)
    if not found:
        raise DataError(f"Expected a path a line. Received: {name}, which has none.")


def _refuse_utf_16(begin: bytes, name: str) -> None:
    if begin.startswith(UTF_16) or _is_unmarked_utf_16(begin):
        raise DataError(
            f"Expected a list in UTF-8, with a path a line. Received: {name}, which is UTF-16, as PowerShell writes. "
            "Save it as UTF-8: ... | Out-File -Encoding utf8."
        )


def _is_unmarked_utf_16(begin: bytes) -> bool:
    """Whether a NUL stands at most second bytes and hardly elsewhere, and what a list has between them.

    Paths of one letter with a NUL behind each look like that too, but none of them is a dot, a slash or a line feed.
    """
    for of_nul, of_text in ((begin[1::2], begin[::2]), (begin[::2], begin[1::2])):
        is_split = 4 * of_nul.count(0) >= 3 * len(of_nul) > 3 and 8 * of_text.count(0) < len(of_text)
        if is_split and re.search(rb"[./\\\r\n]", of_text):
            return True
    return False


def _lines(file: BinaryIO, block: bytes, end: bytes) -> Iterator[tuple[bytes, int]]:
    """Each line without its end and its length; of one that is too long for a path the begin alone.

    Where a line is longer than `LONGEST_LINE`, it is the last one, and its length that of what was read of it.
    """
    begin, length = b"", 0
    while block and length <= LONGEST_LINE:
        first, *others = block.split(end)
        length += len(first)
        begin += first[: LONGEST_PATH + 1 - len(begin)]
        if others:
            yield begin, length
            yield from ((line[: LONGEST_PATH + 1], len(line)) for line in others[:-1])
            begin, length = others[-1][: LONGEST_PATH + 1], len(others[-1])
        block = file.read(BLOCK)
    if length:
        yield begin, length


def _too_long(begin: bytes, length: int, name: str, number: int) -> Found:
    shown = os.fsdecode(begin[:200])
    reason = f"{count(length, 'byte')}, and a path has {LONGEST_PATH:,} at most"
    if length > LONGEST_LINE:
        reason = f"a line of more than {LONGEST_LINE:,} bytes; the rest of the list is not read"
    elif b"\0" in begin:
        reason = "NUL characters in a list that begins with lines; a list ends all paths with NUL, or none"
    return problem(f"{shown}... ({name}, line {number:,})", reason)


def paths_in_table(path: Path, column: str | None, left_out: LeftOut) -> Iterator[str | Found]:
    """Yield the paths of a CSV file with a header, or a problem for a cell that is too long for one.

    Args:
        path: the file.
        column: name of the column. Defaults, if None, to the first one of `COLUMNS` that it has.
        left_out: counts rows without a path.

    Raises:
        DataError: it cannot be read, has no such column or no path.
    """
    found = False
    try:
        with path.open("rb") as binary, TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file:
            _refuse_utf_16(binary.peek(BLOCK), str(path))
            # Strict: else a quote that is never closed makes one path of all lines behind it.
            rows = csv.reader(_rows(file), strict=True)
            header = next(rows, [])
            index = _column(path, header, column)
            for row in rows:
                cell = row[index] if index < len(row) else ""
                if not cell.strip():
                    if row:
                        left_out.endings[NO_PATH] += 1
                    continue
                found = True
                raw = cell.encode(errors="surrogateescape")
                yield (
                    os.fsdecode(raw) if len(raw) <= LONGEST_PATH else _too_long(raw, len(raw), str(path), rows.line_num)
                )
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"Expected a CSV file in UTF-8. Received: {path}: line {rows.line_num}: {error}.") from error
    if not found:
        raise DataError(f"Expected a path a row. Received: {path}, which has none in column {header[index]}.")


def _rows(file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST_ROW):
        if len(line) == LONGEST_ROW:
            raise csv.Error(f"a line of {LONGEST_ROW:,} characters or more")
        yield line


def _column(path: Path, header: list[str], column: str | None) -> int:
    """The place of the column with the paths."""
    names = [name.strip().lower() for name in header]
    for wanted in COLUMNS if column is None else (column.strip().lower(),):
        if wanted in names:
            return names.index(wanted)
    expected = f"a column {column!r}" if column else f"a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
    separators = {";": "semicolons", "\t": "tabs"}
    used = [words for sign, words in separators.items() if len(header) == 1 and sign in header[0]]
    if used:
        advice = f"Its columns are separated by {used[0]}; save it with commas."
    elif not header:
        advice = "A first line names the columns."
    else:
        advice = "Name the one with the paths: --column NAME. A list without a header ends in .txt."
    raise DataError(f"Expected {expected} in {path}. Received: {listed(map(repr, header)) or 'no line'}. {advice}")
