"""The FP32 threshold follows what float32 itself leaves undecided in a model's answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.metrics.distances import CEILING, FACTOR, FLOOR, FloatNoise, measure_noise, read_noise
from export.preprocessing import PreprocessingSpec
from export.records import from_json, to_json
from pipeline.artifacts.parity_report import PASS, Hop, ParityReport
from pipeline.recipe.schema import Thresholds, VerifyThresholds
from pipeline.reporting.sections import parity_section
from pipeline.runners.keras import KerasRunner
from pipeline.verification.parity import Answer, Candidate, Reference, judge
from pipeline.verification.table import parity_table
from tests.conftest import Chain

LOGITS = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
INPUTS = np.random.default_rng(1).uniform(0.5, 2, size=(8, 3, 3, 3)).astype(np.float32)


def report(error: float, noise: FloatNoise | None, limits: VerifyThresholds | None = None) -> ParityReport:
    """Of a candidate with one logit that far off, relative to the largest."""
    logits = LOGITS.astype(np.float64)
    logits[7, 1] += error * np.abs(LOGITS).max()
    pixels = np.zeros((50, 1, 1, 3), np.uint8)
    reference = Reference("train/model.keras", "k" * 64, pixels, LOGITS.argmax(axis=1), LOGITS, noise)
    candidate = Candidate("export/model.onnx", "onnxruntime", "fp32", "a" * 64, None, lambda: None)  # type: ignore[arg-type, return-value]
    return judge([candidate], {"export/model.onnx": Answer(logits, PASS)}, reference, limits or VerifyThresholds())


@pytest.mark.parametrize(
    ("error", "precision", "limit"),
    [
        (0.0, "float32", FLOOR),
        (2e-6, "float32", FLOOR),
        (1e-5, "float32", FACTOR * 1e-5),
        (1e-2, "float32", CEILING["float32"]),
        (1e-4, "float16", FACTOR * 1e-4),
        (1.0, "float16", CEILING["float16"]),
    ],
)
def test_the_limit_follows_the_noise_between_a_floor_and_a_ceiling(error: float, precision: str, limit: float) -> None:
    assert FloatNoise(error, precision).limit == pytest.approx(limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "noise", "verdict"),
    [
        (2.9e-5, None, "fail"),
        (2.9e-5, FloatNoise(1e-6, "float32"), "fail"),
        (2.9e-5, FloatNoise(1e-5, "float32"), "pass"),
        (9e-6, None, "pass"),
        (1e-3, FloatNoise(1e-5, "float32"), "fail"),
        (1e-3, FloatNoise(1.0, "float32"), "fail"),
    ],
)
def test_what_is_within_the_models_own_noise_passes_and_a_fault_fails(
    error: float, noise: FloatNoise | None, verdict: str
) -> None:
    found = report(error, noise)
    (hop,) = found.hops
    assert hop.verdict == verdict
    assert hop.noise == noise
    assert hop.relative_limit == (FLOOR if noise is None else noise.limit)
    assert from_json(ParityReport, json.loads(json.dumps(to_json(found))), "p", remedy="") == found


def test_a_number_in_the_recipe_is_obeyed_as_it_is() -> None:
    asked = VerifyThresholds(fp32=Thresholds(relative_error=1e-5))
    (hop,) = report(2.9e-5, FloatNoise(1e-3, "float32"), asked).hops
    assert (hop.verdict, hop.relative_limit, hop.noise) == ("fail", 1e-5, None)
    (hop,) = report(2.9e-5, None, VerifyThresholds(fp32=Thresholds())).hops
    assert (hop.verdict, hop.relative_limit) == ("pass", None)


def test_table_and_report_say_it_in_words() -> None:
    found = report(2.9e-5, FloatNoise(1e-5, "float32"))
    moves = "Keras itself moves by 1.0e-05 when each pixel does by a unit in the last place of float32"
    assert found.hops[0].certainty == f"relative error 2.90e-05, at most 4.00e-05 allowed, as {moves}"
    assert f"relative error of at most 4.0e-05 allowed in FP32: {moves}" in parity_table(found)
    assert f"Relative error of at most 4.0e-05 allowed in FP32: {moves}." in parity_section(found).html
    assert "allowed" not in parity_table(report(0.0, None))
    assert report(0.0, FloatNoise(1e-5, "float32")).hops[0].certainty == ""


def test_noise_is_what_a_unit_in_the_last_place_does() -> None:
    def amplifying(values: np.ndarray) -> np.ndarray:
        return 1000 * values.astype(np.float64).reshape(8, -1)[:, :4]

    noise = measure_noise(amplifying, INPUTS, largest=500.0)
    units = np.spacing(INPUTS.reshape(8, -1)[:, :4])
    assert noise == FloatNoise(pytest.approx(1000 * units.max() / 500, rel=1e-3), "float32")  # type: ignore[arg-type]


def test_a_model_that_rounds_its_input_is_measured_by_units_of_half_precision() -> None:
    def halving(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16).astype(np.float32).reshape(8, -1)[:, :4]

    grid = INPUTS.astype(np.float16).astype(np.float32)
    noise = measure_noise(halving, grid, largest=2.0)
    assert noise.precision == "float16"
    assert 2e-4 < noise.relative_error < 1e-3


def test_a_model_that_does_not_look_has_no_noise() -> None:
    assert measure_noise(lambda values: np.ones((8, 4), np.float32), INPUTS, 1.0) == FloatNoise(0.0, "float32")
    assert measure_noise(lambda values: np.zeros((8, 4), np.float32), INPUTS, 0.0).limit == FLOOR


@pytest.mark.parametrize(
    "noise", [{}, {"relative_error": -1, "precision": "float32"}, {"relative_error": 1, "precision": "int8"}, 3]
)
def test_a_damaged_noise_is_refused(noise: object) -> None:
    with pytest.raises(ValueError, match="its noise is"):
        read_noise({"noise": noise})


def test_an_earlier_reference_has_none() -> None:
    assert read_noise({"model_sha256": "0"}) is None
    assert read_noise({"noise": {"relative_error": 1e-6, "precision": "float32"}}) == FloatNoise(1e-6, "float32")


def test_keras_is_asked_behind_the_preprocessing(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((6, 6, 3), name="images_in")
    steep = keras.layers.Conv2D(4, 3, name="steep", kernel_initializer=keras.initializers.RandomNormal(seed=1))(inputs)
    outputs = keras.layers.Dense(4, name="scores")(keras.layers.Flatten(name="flat")(steep))
    path = tmp_path / "model.keras"
    keras.Model(inputs, outputs, name="steep_model").save(path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    with KerasRunner(path, PreprocessingSpec.from_mode("tf"), output="logits", max_batch=3) as runner:
        noise = runner.noise(pixels, float(np.abs(runner.infer(pixels).logits).max()))
    assert noise.precision == "float32"
    assert 1e-9 < noise.relative_error < 1e-6


def test_the_verdict_of_a_chain_is_given_by_the_noise(chain: Chain) -> None:
    assert chain.run("verify", "--set", "verify.thresholds.fp32.relative_error=auto") == 0
    parity = json.loads((chain.root / "verify" / "parity.json").read_text())
    hop = Hop(**{**parity["hops"][0], "noise": FloatNoise(**parity["hops"][0]["noise"])})
    assert hop.noise is not None
    assert 0 < hop.noise.relative_error < 1e-3
    assert hop.relative_limit == hop.noise.limit
    with np.load(chain.root / "verify" / "reference.npz") as file:
        assert json.loads(file["meta"].tobytes())["noise"] == to_json(hop.noise)
