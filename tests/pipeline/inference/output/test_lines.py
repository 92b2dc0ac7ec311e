"""Any name goes into each format and comes back as it was."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import ProjectError
from pipeline.inference.output.join import read_rows
from pipeline.inference.output.lines import encode, header
from pipeline.inference.output.parquet import rows_as_parquet
from pipeline.inference.output.spec import OutputSpec, format_of
from pipeline.inference.output.stream import StreamWriter
from pipeline.inference.rows import Row, Rows, columns

CSV, SAFE, JSONL = OutputSpec("csv", 1), OutputSpec("csv", 1, csv_safe=True), OutputSpec("jsonl", 1)
ENDS = [
    "'",
    '"',
    ",",
    "\n",
    "\r",
    "\t",
    "=",
    "@",
    "\\",
    "\x85",
    "\u2028",
    "\u202e",
    "😀",
    "\ufeff",
    "\udcff",
    "\udc80",
    "\x1a",
]
NAMES = st.binary(min_size=1, max_size=30).map(lambda data: os.fsdecode(data.replace(b"\0", b"/"))) | st.lists(
    st.sampled_from([*ENDS, "a", " "]), min_size=1, max_size=8
).map("".join)


def written(rows: list[Row], spec: OutputSpec) -> bytes:
    return header(spec) + encode(rows, spec)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=4), NAMES)
def test_names_come_back_from_csv_and_json_lines(names: list[str], word: str) -> None:
    rows = [Row(name, "ok", (word,), (0.5,), word) for name in names]
    text = written(rows, CSV).decode("utf-8", "surrogateescape")
    assert [row["path"] for row in csv.DictReader(io.StringIO(text, newline=""))] == names
    lines = written(rows, JSONL).split(b"\n")
    assert lines.pop() == b""
    parsed = [json.loads(line) for line in lines]
    assert [os.fsencode(row["path"]) for row in parsed] == [os.fsencode(name) for name in names]
    assert {row["class"] for row in parsed} == {row["error"] for row in parsed} == {word}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=4), NAMES)
def test_each_format_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], word: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = [Row(name, "ok", (word,), (0.25,)) for name in names]
    for spec, file in ((CSV, "a.csv"), (SAFE, "b.csv"), (JSONL, "c.jsonl")):
        (folder / file).write_bytes(written(rows, spec))
        back = list(read_rows(folder / file, spec))
        assert [row["path"] for row in back] == names
        assert {(row["status"], row["class"], float(row["probability"])) for row in back} == {("ok", word, 0.25)}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_names_come_back_from_parquet(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    import pyarrow.parquet as pq

    path, spec = tmp_path_factory.getbasetemp() / "d.parquet", OutputSpec("parquet", 1)
    with rows_as_parquet(path, spec) as take:
        take(encode([Row(name, "ok", ("x",), (0.25,)) for name in names], spec), b"")
    assert [row["path"] for row in read_rows(path, spec)] == names
    for row, name in zip(pq.read_table(path).to_pylist(), names):
        data = os.fsencode(name)
        assert row["path"] == data.decode("utf-8", "backslashreplace")
        assert row["path_bytes"] == (None if row["path"].encode() == data else data)


def test_csv_has_the_very_bytes_of_a_name_and_json_its_escapes() -> None:
    rows = [Row(os.fsdecode(b"\xff\xc3\xa4.png"), "ok", ("cat",), (np.float32(0.1),), "", 3, 4)]
    assert written(rows, CSV) == (
        b"path,status,class,probability,error,width,height\r\n\xff\xc3\xa4.png,ok,cat,0.100000,,3,4\r\n"
    )
    assert written(rows, JSONL) == (
        b'{"path": "\\udcff\xc3\xa4.png", "status": "ok", "class": "cat", "probability": 0.10000000149011612, '
        b'"width": 3, "height": 4}\n'
    )


def test_a_surrogate_that_is_no_byte_is_written_as_its_escape() -> None:
    rows = [Row("a\ud800b\udcff", "ok", ("\udfff",), (0.5,))]
    assert b"a\\ud800b\xff,ok,\\udfff," in written(rows, CSV)
    assert json.loads(written(rows, JSONL))["path"] == "a\ud800b\udcff"


def test_columns_without_a_value_are_empty_in_csv_and_absent_in_json() -> None:
    rows = [Row("a", "missing", error="gone"), Row("b", "ok", ("x",), (1.0,))]
    lines = written(rows, OutputSpec("csv", 3)).splitlines()
    assert lines == [
        b"path,status,class,probability,class_2,probability_2,class_3,probability_3,error,width,height",
        b"a,missing,,,,,,,gone,,",
        b"b,ok,x,1.000000,,,,,,,",
    ]
    assert lines[0].decode().split(",") == columns(3)
    assert [json.loads(line) for line in written(rows, OutputSpec("jsonl", 3)).splitlines()] == [
        {"path": "a", "status": "missing", "error": "gone"},
        {"path": "b", "status": "ok", "class": "x", "probability": 1.0},
    ]


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@x", "\t=1", "\t1", "\r1", "\n1", "＝1", "＋1", "－1", "＠1", " =1", "\u00a0@1", "'=1", "'"],
)
def test_no_cell_of_safe_csv_is_a_formula(cell: str) -> None:
    rows = [Row(cell, "damaged", (cell,), (0.5,), cell)]
    (row,) = csv.DictReader(io.StringIO(written(rows, SAFE).decode(), newline=""))
    assert [row[name] for name in ("path", "class", "error")] == ["'" + cell] * 3
    assert (row["status"], row["probability"]) == ("damaged", "0.500000")
    (row,) = csv.DictReader(io.StringIO(written(rows, CSV).decode(), newline=""))
    assert row["path"] == cell


def test_harmless_cells_of_safe_csv_stay() -> None:
    rows = [Row("a=1.png", "ok", ("x-ray",), (0.5,), "no, -1")]
    assert written(rows, SAFE) == written(rows, CSV)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.csv", "csv"), ("a.JSONL", "jsonl"), ("a.b.parquet", "parquet"), ("a", ""), ("a.xlsx", "")],
)
def test_the_ending_is_the_format(name: str, expected: str) -> None:
    if expected:
        assert format_of(Path(name)) == expected
    else:
        with pytest.raises(ProjectError, match=rf"Expected a file that ends in \.csv, .*\. Received: {name}\."):
            format_of(Path(name))


# --- a pipe ---


class Pipe(io.BytesIO):
    """Tells what had left the process at each moment."""

    flushed = b""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def test_a_pipe_gets_whole_batches_in_order_at_once() -> None:
    pipe = Pipe()
    writer = StreamWriter(pipe, CSV)
    rows = [Row("a", "ok", ("x",), (1.0,)), Row("b", "missing", error="gone"), Row("c", "ok", ("x",), (0.5,))]
    writer.write(Rows(0, rows[:2]))
    assert pipe.flushed == written(rows[:2], CSV)
    writer.write(Rows(2, rows[2:]))
    assert pipe.flushed == written(rows, CSV)
    assert (writer.done, writer.counts()) == (3, {"ok": 2, "missing": 1})
    with pytest.raises(ValueError, match="Expected row 3 next"):
        writer.write(Rows(2, rows[2:]))


def test_a_reader_that_has_gone_is_not_hidden() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError), os.fdopen(write, "wb", 0) as stream:
        StreamWriter(stream, JSONL).write(Rows(0, [Row("a", "ok")]))


@pytest.mark.parametrize("spec", [OutputSpec("parquet", 1), OutputSpec("csv", 1, embeddings=Path("e.parquet"))])
def test_a_pipe_takes_no_parquet(spec: OutputSpec) -> None:
    with pytest.raises(ValueError, match="Expected CSV or JSON Lines"):
        StreamWriter(io.BytesIO(), spec)
