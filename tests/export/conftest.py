from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from export.calibration import Ranges, collect_histograms, collect_statistics
from export.int8.placement import quantizable_tensors
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.preprocessing import PreprocessingSpec


@dataclass(frozen=True)
class Exported:
    """A Keras model and what the export made of it."""

    keras_model: Any
    spec: PreprocessingSpec
    path: Any
    summary: Any
    model: onnx.ModelProto


def run_onnx(model: onnx.ModelProto, pixels: np.ndarray, exact: bool = False) -> list[np.ndarray]:
    """All outputs; `exact` runs without any fusion, which is honest fake quantisation."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=["Pad_Fusion"]
    )
    return session.run(None, {model.graph.input[0].name: pixels})


def calibrate(model: onnx.ModelProto, batches: Sequence[np.ndarray], method: str = "minmax") -> Scales:
    """The scales of all activations that will be quantised."""
    seen, statistics = collect_statistics(model, batches, quantizable_tensors(model))
    ranges = Ranges({name: found.limit for name, found in statistics.items()})
    return Scales.from_histograms(collect_histograms(model, batches, [ranges])[0], method, images=seen)


def _export(folder, version: int, mode: str) -> Exported:
    from export.from_keras.convert import export_keras
    from tests.export import keras_models

    keras_model = keras_models.classifier(version, pooling="gap" if version == 1 else "flatten", nested=version == 1)
    spec = PreprocessingSpec.from_mode(mode)
    path = folder / "model.onnx"
    summary = export_keras(keras_model, path, preprocessing=spec, classes=keras_models.CLASSES)
    return Exported(keras_model, spec, path, summary, onnx.load(path))


@pytest.fixture(scope="session")
def v1(tmp_path_factory) -> Exported:
    """A nested ResNet with caffe preprocessing and global average pooling."""
    return _export(tmp_path_factory.mktemp("v1"), 1, "caffe")


@pytest.fixture(scope="session")
def v2(tmp_path_factory) -> Exported:
    """A pre-activation ResNet with tf preprocessing and a Flatten head."""
    return _export(tmp_path_factory.mktemp("v2"), 2, "tf")


@pytest.fixture(scope="session", params=["v1", "v2"])
def exported(request) -> Exported:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def quantized(exported):
    """The exported model, its scales, the INT8 model and the placement."""
    from tests.export import keras_models

    scales = calibrate(exported.model, [keras_models.images(16, seed=seed) for seed in (1, 2)])
    made = quantize(exported.model, scales)
    return exported, scales, made.model, made.placements
