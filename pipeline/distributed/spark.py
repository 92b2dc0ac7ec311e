"""Spark: a column of image files, or of their paths, to the columns of `infer`.

Spark's ``predict_batch_udf`` opens the file that answers once for each Python worker, and keeps it while the worker lives.
The rows are those of `infer`: what is no image has a status and no class, and fails no job.
"""

from __future__ import annotations

import atexit
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from export.errors import ProjectError
from export.files import ROOT
from pipeline.inference.deployment import Deployment
from pipeline.inference.rows import Row, columns

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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
        ProjectError: pyspark or pandas is missing.
    """
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


def return_type(top_k: int) -> str:
    """Return the type of the struct, as Spark writes types.

    Args:
        top_k: classes in a row.
    """
    kinds = {"width": "int", "height": "int"}
    return ", ".join(
        f"{name} {kinds.get(name, 'double' if name.startswith('probability') else 'string')}"
        for name in columns(top_k)[1:]
    )


def make_predict_batch(deployment: Deployment) -> Callable[[], PredictBatch]:
    """Return what Spark calls once in a worker: it opens the file that answers.

    Args:
        deployment: what answers.
    """
    settings = deployment.settings
    alone = replace(
        deployment, threads=deployment.threads or 1, settings=replace(settings, decode_threads=settings.decode_threads or 1)
    )
    top_k = min(settings.top_k, len(deployment.card.classes))

    def make() -> PredictBatch:
        classifier = alone.open()
        classifier.__enter__()
        atexit.register(classifier.__exit__)

        def predict(values: np.ndarray) -> dict[str, np.ndarray]:
            return _as_columns(classifier.items_of(values.tolist()), top_k)

        return predict

    return make


def ship_package(spark: SparkSession) -> None:
    """Send this project's code to the workers of a cluster, whose machines have its requirements but not its folder.

    Args:
        spark: the session; the code is there for all its later jobs.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "keras-resnet-to-tensorrt.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for package in _PACKAGES:
                for path in sorted((ROOT / package).rglob("*")):
                    if path.is_file() and "__pycache__" not in path.parts:
                        file.write(path, path.relative_to(ROOT))
        spark.sparkContext.addPyFile(str(archive))


def _as_columns(rows: Sequence[Row], top_k: int) -> dict[str, np.ndarray]:
    """Return rows as columns; what a row does not have is null."""
    table: dict[str, list[Any]] = {name: [] for name in columns(top_k)[1:]}
    for row in rows:
        values: dict[str, Any] = {"status": row.status, "error": row.error, "width": row.width, "height": row.height}
        for rank, (name, probability) in enumerate(zip(row.classes, row.probabilities), 1):
            end = "" if rank == 1 else f"_{rank}"
            values |= {f"class{end}": name, f"probability{end}": probability}
        for column, cells in table.items():
            cells.append(values.get(column))
    return {column: _objects(cells) for column, cells in table.items()}


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array
