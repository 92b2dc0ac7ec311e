"""Layers of an INT8 file whose activations are lowered are compared as Keras has them, and in Keras' ranges."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.onnx_passes.cut import given
from pipeline.artifacts.layer_report import LayerRow
from pipeline.verification.layers.compare import THRESHOLDS_DB, compare_layers, layer_values
from pipeline.verification.layers.failing import keras_values
from pipeline.verification.layers.mapping import map_layers
from pipeline.verification.layers.subject import Subject
from tests.pipeline.verification.bottleneck import LAYERS, LOWERED, PIXELS, Made, made_int8


@pytest.fixture(scope="module", params=[("fp16", "fp32"), ("fp16", "fp16"), ("fp32", "fp32")], ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_int8(tmp_path_factory.mktemp("made"), *request.param)


def compared(made: Made, subject: Subject) -> dict[str, LayerRow]:
    keras = made.keras
    return {
        row.layer: row for row in compare_layers(keras, map_layers(keras, subject, PIXELS[:2]), subject, PIXELS).rows
    }


def test_each_layer_has_its_tensor_though_relus_are_clips(made: Made) -> None:
    mapping = map_layers(made.keras, made.subject(), PIXELS[:2])
    assert [layer.name for layer in mapping.layers] == [*LAYERS]
    writers = {name: node for node in made.model.graph.node for name in node.output}
    tensors = {layer.name: layer.tensor for layer in mapping.layers}
    assert {writers[tensors[name]].op_type for name in LOWERED} == {"Clip"}
    assert {writers[tensors[name]].name for name in LOWERED} == {f"{name}/Relu" for name in LOWERED}


def test_no_layer_is_wrong_and_ranges_are_those_before_values_are_lowered(made: Made) -> None:
    rows, outputs = compared(made, made.subject()), made.keras.outputs(PIXELS)
    for name, row in rows.items():
        assert row.own_sqnr_db is None or row.own_sqnr_db > THRESHOLDS_DB["int8"] + 20, name
        assert row.sqnr_db is None or row.sqnr_db > 40, name
        assert row.largest == pytest.approx(np.abs(outputs[name]).max(), rel=1e-5)
    for name in LOWERED:
        assert rows[name].range_used == pytest.approx(1, abs=0.03)
        assert rows[name].saturated == 0


def test_without_the_offsets_lowered_layers_are_wrong(made: Made) -> None:
    rows = compared(made, Subject("model.int8.onnx", "int8", made.model))
    assert any(row.own_sqnr_db is not None and row.own_sqnr_db < THRESHOLDS_DB["int8"] for row in rows.values())


def test_values_of_a_layer_are_keras_and_its_inputs_the_file_s(made: Made) -> None:
    keras, subject = made.keras, made.subject()
    mapping = map_layers(keras, subject, PIXELS[:2])
    values, outputs = layer_values(keras, mapping, subject, "tail", PIXELS[:4]), keras.outputs(PIXELS[:4])
    change = subject.changes["out"]
    before = np.moveaxis(outputs["out"], -1, 1) / change.factors.reshape(1, -1, 1, 1) - change.offsets
    np.testing.assert_allclose(values.inputs["out"], before, atol=1e-4 * np.abs(before).max())
    np.testing.assert_array_equal(values.reference, np.moveaxis(outputs["tail"], -1, 1))
    error = np.square(values.own - values.reference).sum() / np.square(values.reference).sum()
    assert error < 1e-3
    known = keras_values(keras, mapping, subject, PIXELS[:4])
    np.testing.assert_allclose(known["out"], before, atol=1e-4 * np.abs(before).max())
    assert given("out") not in known


def test_a_bias_that_does_not_make_up_for_the_offset_shows_in_its_layer_alone(made: Made) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "tail/b")
    sums = made.weights["tail/w"].values.sum(axis=(1, 2, 3))
    values = numpy_helper.to_array(bias)
    offset = made.subject().changes["out"].offsets.item()
    bias.CopyFrom(numpy_helper.from_array((values - offset * sums).astype(values.dtype), bias.name))
    rows = compared(made, made.subject(model))
    low = [name for name, row in rows.items() if row.own_sqnr_db is not None and row.own_sqnr_db < 20]
    assert low == ["tail"]
