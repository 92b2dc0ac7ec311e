"""Parquet files of rows and of embeddings, a row group at a time."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.errors import ProjectError
from pipeline.inference.output import parquet
from pipeline.inference.output.run import RunFolder
from pipeline.inference.output.spec import OutputSpec
from tests.pipeline.inference.output.made_runs import FEATURES, batch, row, spec_of, work

TOTAL = 23


def test_rows_have_typed_columns_and_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 11)  # no multiple of a batch or a shard
    work(tmp_path / "out.parquet", TOTAL)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [11, 11, 1]
    text, number, whole = pa.string(), pa.float64(), pa.int32()
    assert {field.name: field.type for field in file.schema_arrow} == {
        **{"path": text, "path_bytes": pa.binary(), "status": text, "class": text, "probability": number},
        **{"class_2": text, "probability_2": number, "error": text, "width": whole, "height": whole},
    }
    for index, read in enumerate(file.read().to_pylist()):
        made = row(index)
        classes, probabilities = made.classes or (None, None), made.probabilities or (None, None)
        assert [read["class"], read["class_2"]] == [*classes]
        assert [read["probability"], read["probability_2"]] == [*probabilities]
        assert [read[name] for name in ("status", "width", "height")] == [made.status, made.width, made.height]
        assert read["error"] == (made.error or None)
        name = made.path.encode(errors="surrogateescape")
        assert (read["path_bytes"] or read["path"].encode()) == name
        assert (read["path_bytes"] is not None) == (b"\xff" in name)


def test_embeddings_are_float32_beside_the_rows_and_null_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 4 * FEATURES * 5)
    work(tmp_path / "out.csv", TOTAL, embeddings=True)
    file = pq.ParquetFile(tmp_path / "features.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [5, 5, 5, 5, 3]
    assert file.schema_arrow.field("embedding").type == pa.list_(pa.float32(), FEATURES)
    assert file.schema_arrow.names == ["path", "path_bytes", "status", "embedding"]
    made = batch(0, TOTAL, True)
    assert made.embeddings is not None
    for read, one, vector in zip(file.read().to_pylist(), made.rows, made.embeddings, strict=True):
        assert read["status"] == one.status
        assert (read["path_bytes"] or read["path"].encode()) == one.path.encode(errors="surrogateescape")
        assert read["embedding"] == (vector.tolist() if one.status == "ok" else None)


def test_an_output_that_is_there_has_its_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []
    replace = os.replace

    def recorded(source: Path, target: Path) -> None:
        placed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    work(tmp_path / "out.csv", 4, 4, embeddings=True)
    assert placed[-2:] == ["features.parquet", "out.csv"]


def test_an_embedding_that_has_some_nan_is_no_null(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with RunFolder.take(output) as run:
        run.begin({}, 1, 8, spec_of(output, True))
        rows = batch(0, 1)
        run.write(rows._replace(embeddings=np.array([[math.nan, 2]], np.float32)))
        run.finish()
    (read,) = pq.read_table(tmp_path / "features.parquet").to_pylist()
    assert math.isnan(read["embedding"][0])
    assert read["embedding"][1] == 2


@pytest.mark.parametrize("values", [None, np.zeros((1, 3), np.float32), np.zeros((2, 0), np.float32)])
def test_embeddings_of_other_rows_are_refused(tmp_path: Path, values: np.ndarray | None) -> None:
    output = tmp_path / "out.csv"
    with RunFolder.take(output) as run:
        run.begin({}, 4, 8, spec_of(output, True))
        with pytest.raises(ValueError, match=r"Expected embeddings \(2, "):
            run.write(batch(0, 2)._replace(embeddings=values))
        run.write(batch(0, 2, True))
        with pytest.raises(ValueError, match=r"Expected embeddings \(2, 3\)"):
            run.write(batch(2, 2)._replace(embeddings=np.zeros((2, 4), np.float32)))


@pytest.mark.parametrize("spec", [OutputSpec("parquet", 1), OutputSpec("csv", 1, embeddings=Path("e.parquet"))])
def test_without_pyarrow_no_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: OutputSpec) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(ProjectError, match=r"Expected pyarrow, .* Install it"),
        RunFolder.take(tmp_path / "out.parquet") as run,
    ):
        run.begin({}, 1, 1, spec)
    assert list(tmp_path.iterdir()) == []
