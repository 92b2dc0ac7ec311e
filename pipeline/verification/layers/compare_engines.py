"""Compares the layers of engines with Keras', where a TensorRT and a GPU are here."""

import logging
from collections.abc import Mapping as Table
from functools import partial
from pathlib import Path

import numpy as np

from export.errors import DeviceUnavailableError, ProjectError
from export.onnx_passes.file import load_model
from export.tensorrt.sidecar import Precision, read_sidecar
from pipeline.artifacts.engines import engines, plan_flavour, plan_precision
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import LayerRun
from pipeline.artifacts.paths import TENSORS, Artifacts
from pipeline.artifacts.tensor_changes import read_changes
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.verification.checks.engine_files import check_engine_file
from pipeline.verification.layers.compare import THRESHOLDS_DB, batch_size, compare_layers
from pipeline.verification.layers.engines import NOTE, FedEngine, open_builder
from pipeline.verification.layers.keras_layers import KerasLayers
from pipeline.verification.layers.mapping import Mapping
from pipeline.verification.layers.subject import Subject

log = logging.getLogger(__name__)

IMAGES = 4  # each layer's output of each is copied from the GPU


def open_subject(artifacts: Artifacts, name: str, run: str, precision: Precision) -> Subject:
    """Return an ONNX file as what layers are compared of.

    Args:
        artifacts: The file, and what INT8's tensors hold in place of Keras' values.
        name: The file.
        run: Name of the run: the file's, or that of an engine that was built from it.
        precision: "fp32", "fp16" or "int8".
    """
    known = precision == "int8" and artifacts.has(TENSORS)
    changes = read_changes(artifacts.path(TENSORS)) if known else {}
    return Subject(run, precision, load_model(artifacts.path(name)), changes)


def built_from(artifacts: Artifacts, plan: str) -> str:
    """Return the ONNX file that an engine was built from.

    Raises:
        ProjectError: It is not here, or the engine is not what its sidecar says, or the sidecar is damaged.
    """
    read_sidecar(artifacts.path(plan))
    file = check_engine_file(artifacts, plan, sha256_file(artifacts.path(plan)))
    if file.source is None:
        raise ProjectError(f"Expected the ONNX file that {plan} was built from. Received: {file.why_not}")
    return file.source


def compare_engines(
    artifacts: Artifacts,
    keras_layers: KerasLayers,
    mappings: Table[str, Mapping],
    pixels: np.ndarray,
    options: RuntimeOptions,
    out: Path,
) -> list[LayerRun]:
    """Compare every engine with Keras, layer by layer; one that is not compared is a run without rows, which says why.

    Args:
        artifacts: The engines, and the files that they were built from.
        keras_layers: The reference.
        mappings: Tensors of the layers by name of the ONNX file.
        pixels: uint8 (N, height, width, 3) RGB; the first `IMAGES` are taken.
        options: Which GPU and CUDA.
        out: The stage's folder.
    """
    runs = []
    for plan in engines(artifacts):
        precision = plan_precision(plan)
        try:
            source = built_from(artifacts, plan)
            if source not in mappings:
                raise ProjectError(
                    f"Expected the layers of {source}, which {plan} was built from. Received: none were found. "
                    "See why at that file."
                )
            builder = open_builder(plan_flavour(plan), options, out / "engine")
            subject = open_subject(artifacts, source, plan, precision)
            session = partial(FedEngine, builder, precision)
            few = pixels[: min(IMAGES, batch_size(keras_layers, subject))]
            run = compare_layers(keras_layers, mappings[source], subject, few, NOTE, open_session=session)
        except DeviceUnavailableError as error:
            run = _not_run(plan, precision, f"not run: {error.reason}")
        except ProjectError as error:
            log.warning("the layers of %s are not compared: %s", plan, error)
            run = _not_run(plan, precision, str(error))
        runs.append(run)
    return runs


def _not_run(plan: str, precision: Precision, why: str) -> LayerRun:
    return LayerRun(plan, precision, THRESHOLDS_DB[precision], (), "", 0.0, why)
