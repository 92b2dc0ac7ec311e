"""Own and total error of each layer against a network written out in NumPy, float64, with faults in two layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.verification.layers.compare import compare_layers
from pipeline.verification.layers.mapping import map_layers
from pipeline.verification.layers.subject import Subject
from tests.fakes.keras_layers import FakeKerasLayers
from tests.pipeline.verification.layers.test_reduce import changed
from tests.tiny_onnx import classifier, pixels

IMAGES = pixels(3)
Weights = Mapping[str, np.ndarray]


def weights_of(model: onnx.ModelProto) -> Weights:
    return {one.name: numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer}


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None]


# In the order of the network; each takes what the one before it gives.
LAYERS: Mapping[str, Callable[[np.ndarray, Weights], np.ndarray]] = {
    "conv": lambda x, w: convolve(np.moveaxis(x, -1, 1), w["kernel"], w["bias"]),
    "relu": lambda x, w: np.maximum(x, 0),
    "conv1": lambda x, w: convolve(x, w["kernel1"], w["bias"]),
    "relu1": lambda x, w: np.maximum(x, 0),
    "pool": lambda x, w: x.mean((2, 3)),
    "dense": lambda x, w: x @ w["dense"] + w["dense_bias"],
}


def expected(good: Weights, faulty: Weights) -> dict[str, tuple[float, float]]:
    """Own and total SQNR of each layer in dB."""
    reference = total = IMAGES.astype(np.float64)
    found = {}
    with np.errstate(divide="ignore"):
        for name, layer in LAYERS.items():
            own = layer(reference, faulty)
            reference, total = layer(reference, good), layer(total, faulty)
            signal = np.sum(reference**2)
            found[name] = (
                10 * np.log10(signal / np.sum((own - reference) ** 2)),
                10 * np.log10(signal / np.sum((total - reference) ** 2)),
            )
    return found


def test_own_and_total_errors_are_those_of_a_network_in_numpy() -> None:
    good = classifier(more_convolutions=1)
    faulty = changed(
        changed(good, "kernel", lambda kernel: kernel * np.float32(1.02)), "dense", lambda w: w * np.float32(0.99)
    )
    keras = FakeKerasLayers(good)
    subject = Subject("export/model.onnx", "fp32", faulty)
    rows = {row.layer: row for row in compare_layers(keras, map_layers(keras, subject, IMAGES), subject, IMAGES).rows}
    for name, (own, total) in expected(weights_of(good), weights_of(faulty)).items():
        assert rows[name].sqnr_db == pytest.approx(total, abs=0.01), name
        if name in ("conv", "dense"):
            assert rows[name].own_sqnr_db == pytest.approx(own, abs=0.01), name
        else:
            assert own == np.inf
            assert rows[name].own_sqnr_db is None or rows[name].own_sqnr_db > 120, name
