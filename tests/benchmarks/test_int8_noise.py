"""What of an INT8 file makes the noise: each way of rounding rounds that and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.int8_noise import main, measure_noise, rounded_weights, with_float_sums
from export.calibration import collect_statistics
from export.int8.calibrated import Calibrated, calibrate
from export.int8.placement import measured_tensors
from export.int8.qdq import quantize, rounded_activations
from export.int8.regions import allowed, find_regions
from export.int8.simulate import HeldOut, simulate
from export.onnx_passes.graph import constants
from tests.conftest import Chain
from tests.residual_onnx import residual_classifier

PIXELS = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def base() -> Calibrated:
    model = residual_classifier()
    seen, statistics = collect_statistics(model, [PIXELS], measured_tensors(model))
    return calibrate(model, statistics, [PIXELS], seen, [None])[0]


def logits(model: onnx.ModelProto) -> np.ndarray:
    return simulate(model, PIXELS)


def distance(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Of the logits, relative to the largest."""
    return float(np.abs(logits(model) - logits(other)).max() / np.abs(logits(model)).max())


def test_activations_and_weights_are_rounded_apart_and_together_make_the_file(base: Calibrated) -> None:
    nearest, scales = base.nearest(), base.scales("mse", allowed(find_regions(base.model), "always"))
    assert scales.shifted
    weights = rounded_weights(base.model, nearest)
    activations = rounded_activations(base.model, scales)
    table, before = constants(activations.graph), constants(base.model.graph)
    for name, weight in nearest.items():
        np.testing.assert_array_equal(numpy_helper.to_array(constants(weights.graph)[name]), weight.values)
        np.testing.assert_array_equal(numpy_helper.to_array(table[name]), numpy_helper.to_array(before[name]))
    assert "QuantizeLinear" not in {node.op_type for node in weights.graph.node}
    whole = quantize(base.model, scales, base="fp32").model
    assert distance(whole, rounded_activations(weights, scales)) < 1e-5
    assert distance(whole, weights) > 1e-4
    assert distance(whole, activations) > 1e-4


def test_sums_of_float_weights_are_wrong_by_what_rounding_moves_them(base: Calibrated) -> None:
    nearest, scales = base.nearest(), base.scales("mse", allowed(find_regions(base.model), "always"))
    whole = quantize(base.model, scales, base="fp32").model
    assert distance(whole, with_float_sums(base.model, scales, nearest)) > 1e-3
    on_the_grid = rounded_weights(base.model, nearest)  # weights that rounding does not move
    assert distance(whole, with_float_sums(on_the_grid, scales, nearest)) < 1e-5


def test_there_is_a_row_for_each_way(base: Calibrated) -> None:
    rows = measure_noise(base, [PIXELS], HeldOut.of(base.model, PIXELS, np.zeros(8, np.int64)), 8)
    assert [(row.activations, row.weights, row.method) for row in rows] == [
        ("128 levels", "float", "lp_2.4"),
        ("255 levels", "float", "lp_2.4"),
        ("float", "nearest", None),
        ("float", "second_order", None),
        *(
            (levels, "nearest", method)
            for method in ("mse", "lp_2.4", "lp_3")
            for levels in ("128 levels", "255 levels")
        ),
        ("255 levels", "second_order", "lp_2.4"),
        ("255 levels, sums of float weights", "nearest", "lp_2.4"),
    ]
    plain, wide, nearest, second = (row.sqnr_db or 0.0 for row in rows[:4])
    assert wide > plain
    assert second > nearest
    assert all(1 / 8 <= row.noisiest <= 1 for row in rows)
    assert all((row.worst_db or 0.0) < (row.median_db or 0.0) for row in rows)


def test_the_command_writes_what_it_measured(finished_chain: Chain, tmp_path: Path) -> None:
    arguments = finished_chain.arguments("")[1:]
    assert main([*arguments, "--images", "4", "--output", str(tmp_path / "noise.json")]) == 0
    record = json.loads((tmp_path / "noise.json").read_text(encoding="utf-8"))
    assert (record["recipe"], record["images"], len(record["rows"])) == (finished_chain.recipe.stem, 4, 12)
    assert 0 < record["shifted"] < record["quantized"]


def test_no_images_are_refused(finished_chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*finished_chain.arguments("")[1:], "--images", "0"]) == 2
    assert "Expected --images of at least 1. Received: 0." in capsys.readouterr().err
