"""CSV files of image paths and labels."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from export.errors import DataError
from export.words import count, listed
from pipeline.data.class_names import data_names
from pipeline.data.sample import natural_order
from pipeline.recipe.schema import SPLIT_NAMES, Columns, Data

LONGEST_LINE = 2**20  # characters


def read_tables(config: Data, path: Path) -> tuple[list[tuple[Path, int, str | None]], Sequence[str]]:
    """Read the labelled images of a CSV file, or of a folder that has one for each split.

    A folder's tables are ``<split>.csv`` or ``<split>_labels.csv``. Paths are relative to the table, or to the folder
    of the same name beside it: ``eval_labels.csv`` and ``eval/``.

    Returns:
        (path, label, ready-made split) of each image, and the names of the classes in the order of the labels.

    Raises:
        DataError: no such table or column, an image that does not exist, a label without a name.
    """
    tables = _tables(path) if path.is_dir() else {path: None}
    rows = [row for table, split in tables.items() for row in _read(table, split, config.columns)]
    if missing := [image for image, _, _ in rows if not image.is_file()]:
        slashes = ", with / between folders" if any("\\" in path.name for path in missing) else ""
        raise DataError(
            f"Expected the images that {', '.join(t.name for t in tables)} lists. Received: {len(missing)} of "
            f"{len(rows)} do not exist, such as {listed(missing)}. "
            f"Paths are relative to the table's folder{slashes}."
        )
    labels = list(dict.fromkeys(label for _, label, _ in rows))
    names = data_names(config, path if path.is_dir() else path.parent)
    classes = names if names is not None else natural_order(labels)
    numbers = {name: index for index, name in enumerate(classes)}
    if names is not None and not set(labels) <= set(numbers):  # not names, so positions
        numbers |= {str(index): index for index in range(len(classes))}
    if unknown := [label for label in labels if label not in numbers]:
        raise DataError(
            f"Expected labels that are names or positions of the {count(len(classes), 'class', 'classes')}. "
            f"Received: {listed(map(repr, unknown))} in column {config.columns.label}."
        )
    return [(image, numbers[label], ready if config.ready_splits else None) for image, label, ready in rows], classes


def _tables(folder: Path) -> dict[Path, str | None]:
    splits = {p: SPLIT_NAMES.get(p.stem.lower().removesuffix("_labels")) for p in sorted(folder.glob("*.csv"))}
    tables: dict[Path, str | None] = {path: split for path, split in splits.items() if split is not None}
    if not tables:
        raise DataError(
            f"Expected tables such as train.csv or test_labels.csv in {folder}. Received: "
            f"{', '.join(p.name for p in splits) or 'no .csv file'}. Or name one table as data.path."
        )
    return tables


def _read(table: Path, split: str | None, columns: Columns) -> list[tuple[Path, str, str | None]]:
    beside = table.parent / table.stem.removesuffix("_labels")
    rows: list[tuple[Path, str, str | None]] = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(_lines(file))
            header = reader.fieldnames or []
            if missing := [name for name in (columns.image, columns.label) if name not in header]:
                raise DataError(
                    f"data.columns: expected {' and '.join(missing)} in {table}. Received: {', '.join(header)[:500]}. "
                    f"{_header_advice(table, header)}"
                )
            for row in reader:
                name, label = (row[columns.image] or "").strip(), (row[columns.label] or "").strip()
                if not name or not label:
                    raise DataError(
                        f"Expected a path and a label in line {reader.line_num} of {table}. Received: {str(row)[:500]}."
                    )
                folder = table.parent if (table.parent / name).exists() or not beside.is_dir() else beside
                cell = row.get(columns.split)
                rows.append((folder / name, label, _ready_split(cell, split, table, reader.line_num)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Expected a CSV file in UTF-8. Received: {table}: {error}.") from error
    if not rows:
        raise DataError(f"Expected at least one row in {table}. Received: none.")
    return rows


def _header_advice(table: Path, header: Sequence[str]) -> str:
    """What to do about a first line that does not name the columns."""
    separators = {";": "semicolons", "\t": "tabs"}
    if used := [name for character, name in separators.items() if len(header) == 1 and character in header[0]]:
        return f"Its columns are separated by {used[0]}; save it with commas."
    if any(os.path.isfile(table.parent / name) for name in header if name):  # False for names of any length
        return "Its first line is an image; add a line above it that names the columns, such as path,label."
    return "Name them: --set data.columns.image=... --set data.columns.label=..."


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line of {LONGEST_LINE:,} characters or more")
        yield line


def _ready_split(value: str | None, split: str | None, table: Path, line: int) -> str | None:
    """The split that a row is in: the table's own, else the one that the row's cell names."""
    name = (value or "").strip().lower()
    if split is None and name and name not in SPLIT_NAMES:
        raise DataError(f"Expected a split ({', '.join(SPLIT_NAMES)}) in line {line} of {table}. Received: {value!r}.")
    return split or SPLIT_NAMES.get(name)
