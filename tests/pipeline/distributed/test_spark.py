"""Spark in local mode, on two workers: the rows of `infer`, whatever is in the column."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.errors import ProjectError
from export.files import ROOT
from pipeline.inference.deployment import BatchClassifier, Deployment
from pipeline.inference.rows import Row, columns
from tests.pipeline.inference.deployments import make_deployment, make_photos

pyspark = pytest.importorskip("pyspark", reason="needs pyspark: make install-distributed")
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (shutil.which("java") or os.environ.get("JAVA_HOME")), reason="Spark needs Java"),
]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable  # of the workers
    builder = SparkSession.builder.master("local[2]").appName("tests")
    for key, value in {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.executorEnv.PYTHONPATH": str(ROOT),
    }.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
    del os.environ["PYSPARK_PYTHON"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spark")
    photos = make_photos(folder / "photos", 30)
    (folder / "photos" / "text.png").write_text("no image")
    (folder / "photos" / "cut.png").write_bytes(photos[0].read_bytes()[:70])
    return folder


@pytest.fixture(scope="module")
def deployment(folder: Path) -> Deployment:
    return make_deployment(folder, top_k=3)


@pytest.fixture(scope="module")
def expected(deployment: Deployment, folder: Path) -> dict[str, Row]:
    with deployment.open() as classifier:
        rows = classifier.files(sorted((folder / "photos").iterdir()))
    return {Path(row.path).name: row for row in rows}


def compared(rows: list[Any], expected: dict[str, Row]) -> None:
    assert sorted(Path(row["path"]).name for row in rows) == sorted(expected)
    for row in rows:
        wanted = expected[Path(row["path"]).name]
        answer = row["answer"]
        assert list(answer.asDict()) == columns(3)[1:]
        names = ("class", "class_2", "class_3")
        assert (answer["status"], answer["width"]) == (wanted.status, wanted.width)
        assert answer["error"] == (wanted.error or None)
        assert tuple(answer[name] for name in names if answer[name]) == wanted.classes
        shown = [answer[f"probability{end}"] for end in ("", "_2", "_3")]
        assert [p for p in shown if p is not None] == pytest.approx(wanted.probabilities, abs=1e-6)


def test_a_batch_without_an_image_is_refused(deployment: Deployment) -> None:
    from pipeline.distributed.spark import classify_udf

    for size in (0, -1):
        with pytest.raises(ProjectError, match=rf"batch_size of at least 1\. Received: {size}\."):
            classify_udf(deployment, size)


def test_contents_and_paths_get_the_rows_of_infer(
    spark: Any, deployment: Deployment, folder: Path, expected: dict[str, Row]
) -> None:
    from pipeline.distributed.spark import classify_udf

    files = spark.read.format("binaryFile").load(str(folder / "photos"))
    assert files.rdd.getNumPartitions() > 1
    for column in ("content", "path"):
        udf = classify_udf(deployment, batch_size=7)
        compared(files.select("path", udf(column).alias("answer")).collect(), expected)
    assert {row.status for row in expected.values()} == {"ok", "not_an_image", "damaged"}


def test_null_is_a_row_too(spark: Any, deployment: Deployment, folder: Path) -> None:
    from pipeline.distributed.spark import classify_udf

    photo = bytearray((folder / "photos" / "000.png").read_bytes())
    frame = spark.createDataFrame([(0, photo), (1, None), (2, photo)], "id int, content binary")
    rows = frame.select("id", classify_udf(deployment)("content").alias("answer")).orderBy("id").collect()
    assert [row["answer"]["status"] for row in rows] == ["ok", "missing", "ok"]
    assert rows[1]["answer"]["class"] is None
    paths = spark.createDataFrame([(0, None), (1, str(folder / "photos" / "000.png"))], "id int, path string")
    answers = paths.coalesce(1).select("id", classify_udf(deployment)("path").alias("answer"))
    assert [row["answer"]["status"] for row in answers.orderBy("id").collect()] == ["missing", "ok"]


def test_both_forms_of_an_address_name_the_file(spark: Any, deployment: Deployment, tmp_path: Path) -> None:
    from pipeline.distributed.spark import classify_udf

    names = ["a b.png", "a#1.png", "100%.png", "50%20.png", "é?.png"]
    photos = make_photos(tmp_path / "photos", len(names))
    widths = {}
    for width, (photo, name) in enumerate(zip(photos, names), 20):
        Image.open(photo).resize((width, 20)).save(photo.with_name(name))
        photo.unlink()
        widths[name] = width
    files = spark.read.format("binaryFile").load(str(tmp_path / "photos"))
    classify = classify_udf(deployment)
    for column in ("path", "_metadata.file_path"):
        rows = files.select("path", classify(column).alias("answer")).collect()
        assert {Path(row["path"]).name: row["answer"]["width"] for row in rows} == widths


def test_paths_get_rows_where_spark_reads_no_file(spark: Any, deployment: Deployment, tmp_path: Path) -> None:
    from pipeline.distributed.spark import classify_udf

    photos = make_photos(tmp_path / "photos", 2)
    hidden = photos[0].rename(photos[0].with_name("_hidden.png"))
    empty = photos[0].with_name("empty.png")
    empty.touch()
    files = spark.read.format("binaryFile").load(str(tmp_path / "photos"))
    assert [Path(row["path"]).name for row in files.select("path").collect()] == [photos[1].name]
    paths = spark.createDataFrame([(str(path),) for path in (empty, hidden, photos[1])], "path string")
    rows = paths.select("path", classify_udf(deployment)("path").alias("answer")).collect()
    statuses = {Path(row["path"]).name: row["answer"]["status"] for row in rows}
    assert statuses == {"empty.png": "not_an_image", "_hidden.png": "ok", photos[1].name: "ok"}


def test_a_column_of_something_else_is_refused(spark: Any, deployment: Deployment) -> None:
    from pipeline.distributed.spark import classify_udf

    frame = spark.createDataFrame([(1,), (2,)], "number int")
    with pytest.raises(Exception, match=r"Expected a column of bytes.* Received: int\."):
        frame.select(classify_udf(deployment)("number").alias("answer")).collect()


def test_a_model_that_spark_lets_go_is_closed(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.distributed.spark import make_predict_batch

    closed: list[object] = []
    monkeypatch.setattr(BatchClassifier, "__exit__", lambda self, *exc: closed.append(self))
    predict = make_predict_batch(deployment)()
    assert predict(np.array([None], object))["status"].tolist() == ["missing"]
    assert not closed
    del predict
    gc.collect()
    assert len(closed) == 1


def test_another_file_on_a_worker_is_named(spark: Any, deployment: Deployment, folder: Path) -> None:
    from pipeline.distributed.spark import classify_udf

    other = replace(deployment, digest="0" * 64)
    files = spark.read.format("binaryFile").load(str(folder / "photos"))
    with pytest.raises(Exception, match="as it was when it was selected, sha256 000000000000"):
        files.select(classify_udf(other)("content").alias("answer")).collect()


ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pyspark.sql import SparkSession
from pipeline.distributed.spark import classify_udf, ship_package
from tests.pipeline.inference.deployments import make_deployment
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
ship_package(spark)
files = spark.read.format("binaryFile").load(sys.argv[2] + "/photos")
answers = files.select("path", classify_udf(make_deployment(Path(sys.argv[2])))("content").alias("answer"))
answers.select("path", "answer.*").write.parquet("answers")
"""


def test_the_code_is_sent_to_workers_that_do_not_have_it(
    folder: Path, tmp_path: Path, expected: dict[str, Row], deployment: Deployment
) -> None:
    import pyarrow.parquet as pq

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT), str(folder)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "answers").to_pylist()
    assert {Path(row["path"]).name: row["class"] for row in rows} == {
        name: row.classes[0] if row.classes else None for name, row in expected.items()
    }
