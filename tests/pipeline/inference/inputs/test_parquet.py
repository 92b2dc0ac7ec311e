"""Rows of a Parquet file: which column holds the images, and their bytes in about rising order."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from export.errors import DataError, ImageError
from pipeline.inference.inputs import parquet
from pipeline.inference.inputs.plan import Plan
from pipeline.inference.inputs.reader import Reader, open_reader
from pipeline.inference.items import Item
from tests.pipeline.inference.inputs.parts import only, plan


def write(path: str, columns: dict[str, Any], **options: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def image(row: int) -> bytes:
    return b"image %d " % row * (row % 7 + 1)


def answer(reader: Reader, item: Item, largest: int = 2**20) -> bytes | tuple[str, str]:
    try:
        content = reader.content(item, largest)
    except ImageError as error:
        return error.status, str(error)
    assert isinstance(content, bytes)
    return content


def answers(made: Plan, rows: Sequence[int] | None = None, largest: int = 2**20) -> list[bytes | tuple[str, str]]:
    items = list(made.items())
    with open_reader(made) as reader:
        return [answer(reader, items[row], largest) for row in (range(len(items)) if rows is None else rows)]


ROWS = [image(row) for row in range(100)]
NULL = ("missing", "the row has no image: null")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pyarrow.binary(), ROWS),
        (pyarrow.large_binary(), ROWS),
        (pyarrow.binary_view(), ROWS),
        (pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()), ROWS),
        (pyarrow.binary(4), [b"%04d" % row for row in range(100)]),
        (pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.binary()}), ROWS),
    ],
)
def test_columns_that_hold_images(kind: Any, values: list[bytes]) -> None:
    cells: list[Any] = (
        [{"bytes": value, "path": "x"} for value in values] if pyarrow.types.is_struct(kind) else [*values]
    )
    cells[3] = None
    if pyarrow.types.is_struct(kind):
        cells[4] = {"bytes": None, "path": "y"}
    write("d.parquet", {"label": ["a"] * 100, "picture": pyarrow.array(cells, kind)}, row_group_size=30)
    made = plan("d.parquet")
    assert [(item.path, item.kind, item.place, item.start) for item in made.items()] == [
        (f"d.parquet/{row}", "parquet", "d.parquet", row) for row in range(100)
    ]
    expected: list[Any] = [*values]
    expected[3] = NULL
    if pyarrow.types.is_struct(kind):
        expected[4] = NULL
    assert answers(made) == expected


def test_a_column_is_named_where_several_fit() -> None:
    write("d.parquet", {"a": [b"1"], "b": [b"2"], "c": ["3"], "a.b": [b"4"]})
    with pytest.raises(DataError) as told:
        plan("d.parquet")
    assert str(told.value) == (
        "Expected one column of bytes in d.parquet. Received: 'a', 'b', 'a.b'. Name one: --column NAME."
    )
    for column, expected in {"a": b"1", "b": b"2", "a.b": b"4"}.items():
        assert answers(plan("d.parquet", column=column)) == [expected]
    with pytest.raises(
        DataError, match=r"Expected a column 'c' of bytes in d\.parquet\. Received: 'a', 'b', 'a\.b'\.$"
    ):
        plan("d.parquet", column="c")


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.int64()])
@pytest.mark.parametrize("column", [None, "a"])
def test_two_columns_of_one_name_are_not_guessed_between(kind: Any, column: str | None) -> None:
    other = pyarrow.array([b"2" if kind == pyarrow.binary() else 2], kind)
    table = pyarrow.Table.from_arrays([pyarrow.array([b"1"]), other], ["a", "a"])
    pyarrow.parquet.write_table(table, "d.parquet")
    with pytest.raises(DataError) as told:
        plan("d.parquet", column=column)
    assert str(told.value) == (
        "Expected one column 'a' in d.parquet. Received: 2 of that name. Rename those without the images."
    )


def test_no_column_that_fits() -> None:
    write("d.parquet", {"a": [1], "b": [{"path": "x"}]})
    with pytest.raises(DataError) as told:
        plan("d.parquet")
    assert str(told.value) == (
        "Expected a column of bytes, or of {bytes, path} in d.parquet. "
        "Received: 'a' (int64), 'b' (struct<path: string>)."
    )


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", "damaged", "no whole Parquet file: "),
        (b"PAR1 and what follows is none PAR1", "damaged", "no whole Parquet file: "),
        (
            b"PARE" + b"x" * 20 + b"\4\0\0\0PARE",
            "unsupported",
            "an encrypted Parquet file; write it without encryption",
        ),
    ],
)
def test_a_file_that_cannot_be_opened_is_an_item(content: bytes, status: str, reason: str) -> None:
    Path("d.parquet").write_bytes(content)
    item = only(plan("d.parquet"))
    assert (item.path, item.kind, item.status) == ("d.parquet", "problem", status)
    assert item.place.startswith(reason)


def test_a_file_that_is_cut_is_an_item() -> None:
    write("d.parquet", {"a": ROWS})
    os.truncate("d.parquet", os.path.getsize("d.parquet") - 1)
    assert only(plan("d.parquet")).status == "damaged"


def test_a_file_without_rows_has_no_image() -> None:
    write("d.parquet", {"a": pyarrow.array([], pyarrow.binary())})
    with pytest.raises(DataError, match=r"none in d\.parquet"):
        plan("d.parquet")


def test_names_that_are_not_utf_8_and_endings_in_capitals() -> None:
    write("x", {"a": [b"1"]})
    os.rename("x", "d\udce9.PARQUET")
    made = plan("d\udce9.PARQUET")
    assert only(made).path == "d\udce9.PARQUET/0"
    assert answers(made) == [b"1"]


@pytest.mark.parametrize("group", [7, 100, 5000])
def test_any_order_gives_each_row_its_image(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "REACH", 20)
    values = [image(row) for row in range(1000)]
    write("d.parquet", {"a": values}, row_group_size=group)
    made = plan("d.parquet")
    draw = random.Random(1)
    for rows in (range(999, -1, -50), draw.choices(range(1000), k=60), [500, 480, 520, 519, 900, 0, 999, 999]):
        assert answers(made, list(rows)) == [values[row] for row in rows]


def test_rows_in_about_rising_order_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [image(row) for row in range(3000)]
    write("d.parquet", {"a": values}, row_group_size=500)
    made = plan("d.parquet")
    groups: list[int] = []
    opening = parquet.ParquetRows._open
    monkeypatch.setattr(
        parquet.ParquetRows, "_open", lambda self, group: (groups.append(group), opening(self, group))[1]
    )
    draw = random.Random(2)
    rows = sorted(range(1200, 3000), key=lambda row: row + draw.uniform(0, 200))
    assert answers(made, rows) == [values[row] for row in rows]
    assert groups == [2, 3, 4, 5]


def test_threads_share_a_reader() -> None:
    values = [image(row) for row in range(2000)]
    for name in "ab":
        write(f"{name}.parquet", {"a": values}, row_group_size=300)
    made = plan("a.parquet", "b.parquet")
    with open_reader(made) as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda item: reader.content(item, 2**20), made.items())) == values * 2


def test_what_is_kept_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_BYTES", 10_000)
    monkeypatch.setattr(parquet, "MOST_ROWS", 30)
    values = [bytes([row % 250]) * 1000 for row in range(400)]
    write("d.parquet", {"a": values})
    with open("d.parquet", "rb", buffering=0) as file:
        rows = parquet.ParquetRows(file, "d.parquet", None)
        for number in (390, 10, 5, 200, 150, 151):
            assert rows.row(number, 2**20) == values[number]
            assert len(rows._kept) <= 10
            assert rows._bytes == sum(map(len, rows._kept.values())) <= 10_000


def test_rows_far_before_the_first_one_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "REACH", 5)
    write("d.parquet", {"a": [image(row) for row in range(200)]})
    with open("d.parquet", "rb", buffering=0) as file:
        rows = parquet.ParquetRows(file, "d.parquet", None)
        assert rows.row(100, 2**20) == image(100)
        assert min(rows._kept) == 95


def test_an_image_that_is_too_large_is_refused_alone() -> None:
    write("d.parquet", {"a": [b"1", b"x" * 5001, b"3"]})
    refused = ("too_large", "5,001 bytes, more than the 5,000 allowed")
    assert answers(plan("d.parquet"), largest=5000) == [b"1", refused, b"3"]


@pytest.mark.parametrize("rows", [None, [35, 36, 30, 61, 29], [59, 60, 31, 0]])
def test_a_damaged_row_group_costs_its_rows_alone(rows: list[int] | None) -> None:
    write("d.parquet", {"a": ROWS}, row_group_size=30, compression="zstd", use_dictionary=False)
    about = pyarrow.parquet.ParquetFile("d.parquet").metadata.row_group(1).column(0)
    content = bytearray(Path("d.parquet").read_bytes())
    middle = about.data_page_offset + about.total_compressed_size // 2
    content[middle : middle + 20] = b"\xff" * 20
    Path("d.parquet").write_bytes(content)
    found = answers(plan("d.parquet"), rows)
    for row, one in zip(range(100) if rows is None else rows, found, strict=True):
        if 30 <= row < 60:
            assert one[0] == "damaged"
            assert one[1].startswith("a damaged row group: ")
        else:
            assert one == ROWS[row]


def test_a_page_of_rows_larger_than_the_batch_is_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100_000)
    content = parquet._content
    monkeypatch.setattr(parquet, "_content", lambda value, largest: (sizes.append(1), content(value, largest))[1])
    write(
        "d.parquet", {"a": [b"%d" % row * 10_000 for row in range(10)] * 10}, compression="none", use_dictionary=False
    )
    made = plan("d.parquet")
    assert answers(made, [0]) == [b"0" * 10_000]
    assert len(sizes) == 9  # 100,000 bytes of 10,000 and a length each
