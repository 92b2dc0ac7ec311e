"""Spark: a column of image files, or of their paths, to the columns of `infer`.

Spark's ``predict_batch_udf`` opens the file that answers once in each Python worker, and keeps those of the three
functions used last; one that it lets go is closed. The rows are those of `infer`: what is no image has a status and no
class, and fails no job.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from export.errors import ProjectError
from export.files import ROOT, temporary_folder
from export.words import listed
from pipeline.inference.deployment import BatchClassifier, Deployment
from pipeline.inference.output.parquet import rows_as_table
from pipeline.inference.rows import Row, columns

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

PredictBatch = Callable[[np.ndarray], dict[str, np.ndarray]]
_PACKAGES = ("pipeline", "export")


def classify_udf(deployment: Deployment, batch_size: int = 256) -> Callable[..., Any]:
    """Return a function of a column, which gives a struct with the columns of `infer` but for the path.

    Args:
        deployment: what answers, see `pipeline.workflow.deployment.read_deployment`. Where it leaves them open, ONNX
            Runtime gets one thread and so does decoding, because Spark runs a worker for each core.
        batch_size: images that a worker takes at once. Defaults to 256: several batches of the model, so that decoding
            and computing overlap.

    Returns:
        Callable: takes a column of bytes (the contents of image files) or of text (their paths on every worker).

    Raises:
        ProjectError: pyspark or pandas is missing, or a batch has no image.
    """
    if batch_size < 1:
        raise ProjectError(f"Expected a batch_size of at least 1. Received: {batch_size}. 256 is the default.")
    try:
        from pyspark.ml.functions import predict_batch_udf
    except ImportError as error:
        raise ProjectError(
            f"Expected the packages of requirements-distributed.txt. Received: {error}. `make install-distributed`."
        ) from None
    udf: Callable[..., Any] = predict_batch_udf(
        make_predict_batch(deployment),
        return_type=return_type(min(deployment.settings.top_k, len(deployment.card.classes))),
        batch_size=batch_size,
    )
    return udf


def return_type(top_k: int) -> StructType:
    """Return the type of the struct.

    Args:
        top_k: classes in a row.
    """
    from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType

    kinds = {"width": IntegerType(), "height": IntegerType()}
    return StructType(
        [
            StructField(name, kinds.get(name, DoubleType() if name.startswith("probability") else StringType()))
            for name in columns(top_k)[1:]
        ]
    )


def make_predict_batch(deployment: Deployment) -> Callable[[], PredictBatch]:
    """Return what Spark calls once in a worker: it opens the file that answers.

    Args:
        deployment: what answers.
    """
    settings = deployment.settings
    alone = replace(
        deployment,
        threads=deployment.threads or 1,
        settings=replace(settings, decode_threads=settings.decode_threads or 1),
    )
    top_k = min(settings.top_k, len(deployment.card.classes))

    def make() -> PredictBatch:
        classifier = alone.open()
        classifier.__enter__()

        def predict(values: np.ndarray) -> dict[str, np.ndarray]:
            return _as_columns(_classify(classifier, values.tolist()), top_k)

        weakref.finalize(predict, classifier.__exit__)  # when Spark's cache lets it go: a worker ends without `atexit`
        return predict

    return make


def ship_package(spark: SparkSession) -> None:
    """Send this project's code to the workers of a cluster, whose machines have its requirements but not its folder.

    Args:
        spark: the session; the code is there for all its later jobs.
    """
    block = ExitStack()
    folder = block.enter_context(temporary_folder(Path(tempfile.gettempdir()) / "pipeline-spark"))
    atexit.register(block.close)  # not earlier: Spark reads it when a job starts
    archive = folder / "keras-resnet-to-tensorrt.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for package in _PACKAGES:
            for path in sorted((ROOT / package).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    file.write(path, path.relative_to(ROOT))
    spark.sparkContext.addPyFile(str(archive))


def _classify(classifier: BatchClassifier, values: Sequence[Any]) -> list[Row]:
    """Classify the values of a column, contents of files or paths; null is a row too."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {str}:
        return classifier.files([None if value is None else _path(value) for value in values])
    if kinds <= {bytes, bytearray}:
        return classifier.contents([None if value is None else bytes(value) for value in values])
    raise ProjectError(
        "Expected a column of bytes, the contents of image files, or of text, their paths. "
        f"Received: {listed(sorted(kind.__name__ for kind in kinds))}."
    )


def _path(text: str) -> str:
    """Return the path of a file: address that Spark gives to a file.

    The column ``path`` has names as they are, ``_metadata.file_path`` with escapes; both look alike.
    """
    if not text.startswith("file:/"):
        return text
    plain = "/" + text.removeprefix("file:").lstrip("/")
    return plain if os.path.lexists(plain) else url2pathname(urlsplit(text).path)


def _as_columns(rows: Sequence[Row], top_k: int) -> dict[str, np.ndarray]:
    """Return rows as columns of Python's values; what a row does not have is null."""
    table = rows_as_table(rows, top_k)
    result = {}
    for name in columns(top_k)[1:]:
        result[name] = np.empty(len(rows), object)
        result[name][:] = table[name].to_pylist()
    return result
