"""A layer's own error is told from what came in; scales, factors and FP16's range are those of the tensor."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.cut import given
from export.onnx_passes.graph import Index
from pipeline.artifacts.layer_report import LayerRow, LayerRun
from pipeline.artifacts.tensor_changes import TensorChange
from pipeline.verification.layers.compare import THRESHOLDS_DB, _range_of, compare_layers, layer_values
from pipeline.verification.layers.mapping import Mapping, map_layers
from pipeline.verification.layers.subject import Subject
from tests.fakes.keras_layers import FakeKerasLayers
from tests.pipeline.verification.layers.test_mapping import change
from tests.tiny_onnx import classifier, pixels

IMAGES = pixels(5)


@pytest.fixture(scope="module")
def keras() -> FakeKerasLayers:
    return FakeKerasLayers(classifier(more_convolutions=1))


def compared(keras: FakeKerasLayers, model: onnx.ModelProto, precision: str = "fp32", **more) -> dict[str, LayerRow]:
    return {row.layer: row for row in run(keras, model, precision, **more).rows}


def run(keras: FakeKerasLayers, model: onnx.ModelProto, precision: str = "fp32", **more) -> LayerRun:
    subject = Subject("model.onnx", precision, model, **more)
    return compare_layers(keras, map_layers(keras, subject, IMAGES[:2]), subject, IMAGES)


def test_a_file_without_a_fault_has_equal_layers(keras: FakeKerasLayers) -> None:
    made = run(keras, classifier(more_convolutions=1))
    assert [row.layer for row in made.rows] == ["input", "conv", "relu", "conv1", "relu1", "pool", "dense"]
    assert all(row.sqnr_db is None and row.own_sqnr_db is None and row.finite for row in made.rows)
    assert [row.cosine for row in made.rows] == pytest.approx([1.0] * 7)
    assert (made.first_below, made.threshold_db) == ("", THRESHOLDS_DB["fp32"])


def test_only_the_layer_at_fault_has_an_error_of_its_own(keras: FakeKerasLayers) -> None:
    made = run(keras, change(classifier(more_convolutions=1), "kernel1", lambda kernel: 1.01 * kernel))
    rows = {row.layer: row for row in made.rows}
    assert made.first_below == "conv1"
    assert rows["conv1"].own_sqnr_db == pytest.approx(40, abs=4)  # a hundredth, less the bias
    assert {name for name, row in rows.items() if row.own_sqnr_db is not None} == {"conv1"}
    assert {name for name, row in rows.items() if row.sqnr_db is not None} == {"conv1", "relu1", "pool", "dense"}


def test_numbers_do_not_depend_on_the_batches(keras: FakeKerasLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = change(classifier(more_convolutions=1), "kernel", lambda kernel: 1.1 * kernel)
    whole = compared(keras, faulty)
    monkeypatch.setattr("pipeline.verification.layers.compare._BATCH_BYTES", 2 * keras.bytes_per_image)
    seen: list[int] = []
    subject = Subject("model.onnx", "fp32", faulty)
    again = compare_layers(keras, map_layers(keras, subject, IMAGES[:2]), subject, IMAGES, advance=seen.append)
    assert seen == [2, 2, 1]
    for row in again.rows:
        assert row.sqnr_db == pytest.approx(whole[row.layer].sqnr_db, abs=1e-3)
        assert row.largest == whole[row.layer].largest


def test_the_sqnr_is_that_of_all_values(keras: FakeKerasLayers) -> None:
    faulty = change(classifier(more_convolutions=1), "dense", lambda weight: weight + 0.01)
    row = compared(keras, faulty)["dense"]
    outputs = keras.outputs(IMAGES)
    expected, pool = outputs["dense"].astype(np.float64), outputs["pool"].astype(np.float64)
    noise = 0.01 * pool.sum(axis=1, keepdims=True) * np.ones(4)
    assert row.sqnr_db == pytest.approx(10 * math.log10((expected**2).sum() / (noise**2).sum()), abs=0.01)
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(expected + noise, axis=1)
    assert row.cosine == pytest.approx(((expected * (expected + noise)).sum(axis=1) / lengths).mean())


def int8(relu_scale: float) -> onnx.ModelProto:
    """The INT8 classifier with a scale of its own for the activation between the convolutions."""
    model = classifier("int8", more_convolutions=1)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(relu_scale), "relu_scale"))
    for node in model.graph.node:
        if node.input[0] in ("relu", "relu_q"):
            node.input[1] = "relu_scale"
    return model


def test_a_scale_that_is_too_small_cuts_off(keras: FakeKerasLayers) -> None:
    rows = compared(keras, int8(2 / 40), "int8")
    relu, largest = keras.outputs(IMAGES)["relu"], 2 / 40 * 127.5
    assert rows["relu"].saturated == pytest.approx((relu > largest).mean())
    assert rows["relu"].range_used == pytest.approx(relu.max() / (2 / 40 * 128.5), rel=1e-5)
    assert rows["conv"].saturated is None  # no Q/DQ pair reads it
    assert rows["conv1"].own_sqnr_db < compared(keras, int8(0.1), "int8")["conv1"].own_sqnr_db - 3


def test_what_fp16_cannot_hold_is_counted_and_the_layer_named() -> None:
    def wide(model: onnx.ModelProto) -> onnx.ModelProto:
        return change(model, "bias", lambda bias: np.where(np.arange(8) == 3, 7e4, bias))

    keras = FakeKerasLayers(wide(classifier(more_convolutions=1)))
    half = classifier("fp16", more_convolutions=1)
    bias = next(t for t in half.graph.initializer if t.name == "bias")
    with np.errstate(over="ignore"):
        value = np.where(np.arange(8) == 3, 7e4, numpy_helper.to_array(bias)).astype(np.float16)
    bias.CopyFrom(numpy_helper.from_array(value, "bias"))
    made = run(keras, half, "fp16")
    rows = {row.layer: row for row in made.rows}
    assert made.first_below == "conv"
    assert (rows["conv"].finite, rows["conv"].own_finite, rows["conv"].own_sqnr_db) == (False, False, None)
    assert rows["conv"].saturated == pytest.approx(1 / 8)
    assert rows["conv"].range_used > 1
    assert rows["input"].finite


def test_equalized_channels_are_compared_as_keras_has_them(keras: FakeKerasLayers) -> None:
    factors = np.linspace(0.2, 5, 8)
    model = classifier(more_convolutions=1)
    bias = next(t for t in model.graph.initializer if t.name == "bias")
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(bias), "bias1"))
    next(node for node in model.graph.node if node.name == "conv1").input[2] = "bias1"
    change(model, "kernel", lambda kernel: kernel / factors[:, None, None, None])
    change(model, "bias", lambda bias: bias / factors)
    change(model, "kernel1", lambda kernel: kernel * factors[:, None, None])
    rows = compared(keras, model, changes=dict.fromkeys(("conv", "relu"), TensorChange(factors)))
    assert all(row.own_sqnr_db is None or row.own_sqnr_db > 120 for row in rows.values())
    assert rows["relu"].largest == pytest.approx(keras.outputs(IMAGES)["relu"].max())
    assert compared(keras, model)["conv"].own_sqnr_db < 20


def test_the_values_of_a_layer_are_those_that_its_nodes_read_and_write(keras: FakeKerasLayers) -> None:
    model = change(classifier(more_convolutions=1), "kernel", lambda kernel: 2 * kernel)
    subject = Subject("model.onnx", "fp32", model)
    mapping = map_layers(keras, subject, IMAGES[:2])
    outputs = keras.outputs(IMAGES)
    values = layer_values(keras, mapping, subject, "conv1", IMAGES)
    assert set(values.inputs) == {"relu"}
    np.testing.assert_array_equal(values.inputs["relu"], np.moveaxis(outputs["relu"], -1, 1))
    np.testing.assert_array_equal(values.reference, np.moveaxis(outputs["conv1"], -1, 1))
    np.testing.assert_allclose(values.own, values.reference, rtol=1e-5)
    assert np.abs(values.total - values.reference).max() > 0.1  # the layer before it is at fault
    first = layer_values(keras, mapping, subject, "input", IMAGES)
    assert set(first.inputs) == {"images"}
    assert given("relu") not in first.inputs


@pytest.mark.parametrize("batch", [2, 5])
def test_a_file_of_a_fixed_batch_gets_that_many(keras: FakeKerasLayers, batch: int) -> None:
    model = classifier(more_convolutions=1, batch=batch)
    subject = Subject("model.onnx", "fp32", model)
    made = compare_layers(keras, map_layers(keras, subject, IMAGES[:batch]), subject, IMAGES)
    assert all(row.sqnr_db is None for row in made.rows)


def test_too_few_images_for_a_fixed_batch_are_refused(keras: FakeKerasLayers) -> None:
    subject = Subject("model.onnx", "fp32", classifier(more_convolutions=1, batch=8))
    mapping = map_layers(keras, Subject("", "fp32", classifier(more_convolutions=1)), IMAGES[:2])
    with pytest.raises(ProjectError, match="Expected 8 images, its fixed batch"):
        compare_layers(keras, mapping, subject, IMAGES)


def test_a_file_without_a_layer_of_the_model_is_refused(keras: FakeKerasLayers) -> None:
    with pytest.raises(ProjectError, match=r"Expected a tensor for at least one layer.*Received: none"):
        compare_layers(keras, Mapping((), {}), Subject("other.onnx", "fp32", classifier()), IMAGES)


@pytest.mark.parametrize(
    ("zero", "low", "high"),
    [(np.uint8(255), -127.75, 0.25), (np.int8(127), -127.75, 0.25), (np.int8(0), -64.25, 63.75), (None, -0.25, 127.75)],
)
def test_the_range_of_a_scale_follows_from_its_zero_point_and_type(
    zero: np.generic | None, low: float, high: float
) -> None:
    constants = {"scale": np.float32(0.5)} | ({} if zero is None else {"zero": zero})
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", *constants], ["q"])], "one", [], [],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    found = _range_of(Index.of(graph), "x", np.zeros(1, np.float32))
    assert found is not None
    assert (found.low, found.high) == (low, high)


def test_the_total_error_is_that_of_values_times_their_factors(keras: FakeKerasLayers) -> None:
    factor = np.linspace(1, 2, 8).astype(np.float32)
    model = classifier(more_convolutions=1)
    change(model, "kernel1", lambda kernel: kernel / factor.reshape(-1, 1, 1, 1))
    row = compared(keras, model, changes={"conv1": TensorChange(factor)})["conv1"]
    plain = compared(keras, model)["conv1"]
    assert row.sqnr_db is not None
    assert plain.sqnr_db is not None
    assert row.sqnr_db > plain.sqnr_db
