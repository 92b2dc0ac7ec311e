"""INT8 scales and FP16's range are explained from a file, shown by repair."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.preprocessing import PreprocessingSpec
from pipeline.verification.checks.overflow import Extreme
from pipeline.verification.explain.half import explain_overflow, explain_weights_beyond, first_not_finite
from pipeline.verification.explain.inputs import hypotheses
from pipeline.verification.explain.quantized import explain_scales, raw_pixels, with_values
from pipeline.verification.explain.twin import quantized_tensors, run, without_rounding
from tests import tiny_onnx

PIXELS = tiny_onnx.pixels(8)
SPEC = PreprocessingSpec("RGB", (0.0,) * 3, (1.0,) * 3)


def logits(model: onnx.ModelProto) -> np.ndarray:
    return run(model, PIXELS)["logits"]


def quantized() -> onnx.ModelProto:
    """An INT8 file with scales that fit."""
    model = tiny_onnx.classifier("int8", more_convolutions=2)
    for index, tensor in enumerate(quantized_tensors(model)):  # one scale for all in this model: give each its own
        name = f"scale{index}"
        values = run(without_rounding(model), PIXELS, [tensor.tensor])[tensor.tensor]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(np.abs(values).max() / 127), name))
        for node in model.graph.node:
            if tensor.output in node.output or (node.op_type == "QuantizeLinear" and node.input[0] == tensor.tensor):
                node.input[1] = name
    return model


EXPECTED = logits(without_rounding(quantized()))


def scaled(by: dict[int, float], only: str = "") -> onnx.ModelProto:
    model = quantized()
    pairs = quantized_tensors(model)
    if only:
        for node in model.graph.node:
            if node.output[0] == pairs[next(iter(by))].output:
                model.graph.initializer.append(
                    numpy_helper.from_array(np.float32(pairs[next(iter(by))].scale * next(iter(by.values()))), "other")
                )
                node.input[1] = "other"
        return model
    return with_values(model, {pairs[index].scale_name: pairs[index].scale * factor for index, factor in by.items()})


def test_the_twin_has_no_rounding_left() -> None:
    model = quantized()
    assert len(quantized_tensors(model)) == 3
    assert np.abs(logits(model) - EXPECTED).max() > 1e-4
    kinds = {node.op_type for node in without_rounding(model).graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}
    assert quantized_tensors(without_rounding(model)) == []


@pytest.mark.parametrize(
    ("by", "only", "cause", "words"),
    [
        ({1: 1 / 16}, "", "saturation", "too small"),
        ({2: 64.0}, "", "layer scale", "too large"),
        ({1: 2.0}, "back", "layer scale", "multiplied by another"),
        ({0: 1 / 8, 1: 1 / 8, 2: 1 / 8}, "", "calibration", "do not fit"),
        ({0: 48.0, 1: 48.0, 2: 48.0}, "", "calibration", "far larger"),
    ],
)
def test_scales_are_blamed_for_what_they_do(by: dict[int, float], only: str, cause: str, words: str) -> None:
    model = scaled(by, only)
    (found,) = explain_scales(model, PIXELS, EXPECTED, logits(model), SPEC)
    assert found.cause == cause
    assert words in found.text
    assert (found.layer != "") == (cause != "calibration")


@pytest.mark.parametrize("by", [{}, {1: 0.9}, {0: 1.5, 1: 1.5, 2: 1.5}])
def test_scales_that_cost_little_are_not_blamed(by: dict[int, float]) -> None:
    model = scaled(by)
    assert explain_scales(model, PIXELS, EXPECTED, logits(model), SPEC) == []


def test_scales_are_not_blamed_where_the_rest_is_wrong_too() -> None:
    model = scaled({1: 1 / 16})
    assert explain_scales(model, PIXELS, EXPECTED[:, ::-1], logits(model), SPEC) == []


def test_calibration_on_pixels_from_0_to_1_is_named() -> None:
    model = quantized()
    twin = without_rounding(model)
    for pair in quantized_tensors(model):
        largest = np.abs(run(twin, PIXELS, [pair.tensor])[pair.tensor]).max()
        model = with_values(model, {pair.scale_name: float(largest) / 127 / 255})
    (found,) = explain_scales(model, PIXELS, EXPECTED, logits(model), SPEC)
    assert found.cause == "calibration"


def test_raw_pixels_lead_back_to_the_inputs_of_every_hypothesis() -> None:
    for mode in ("caffe", "tf", "torch"):
        spec = PreprocessingSpec.from_mode(mode)
        for hypothesis in hypotheses(spec):
            inputs = hypothesis.inputs(PIXELS)
            pixels = raw_pixels(inputs, spec)
            mean, scale = np.float32(spec.mean), np.float32(spec.scale)
            back = (pixels[..., list(spec.order)] - mean) * scale
            assert np.allclose(back, inputs, rtol=1e-4, atol=1e-3 * np.abs(inputs).max())


def test_values_beyond_fp16_are_named_with_their_layer() -> None:
    extreme, expected = Extreme("conv", "conv/Conv", 120_000.0, 16, 5), np.eye(4, dtype=np.float32)
    found = explain_overflow(extreme, expected, expected * np.float32(1.0001), "fp16")
    assert (found.cause, found.layer, found.settles) == ("overflow", "conv", True)
    assert "65,504" in found.text
    assert "120,000 on 16 images, of whose answers 5 change" in found.evidence
    assert "In FP32" in found.evidence
    found = explain_overflow(extreme, expected, expected[::-1], "fp16")
    assert not found.settles, "something else is wrong too"
    assert "In FP32" not in found.evidence


def test_weights_beyond_fp16_are_named() -> None:
    model = tiny_onnx.classifier("fp16")
    assert explain_weights_beyond(model) == []
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, "kernel"))
    (found,) = explain_weights_beyond(model)
    assert (found.cause, found.layer) == ("overflow", "conv")
    assert "1 of 216 values" in found.evidence


def test_the_layer_where_values_stop_being_finite_is_found() -> None:
    model = tiny_onnx.classifier(more_convolutions=2)
    assert first_not_finite(model, PIXELS) == ""
    for node in model.graph.node:
        node.input[:] = ["broken" if name == "relu1" else name for name in node.input]
    place = next(index for index, node in enumerate(model.graph.node) if node.name == "conv2")
    model.graph.initializer.append(helper.make_tensor("minus", TensorProto.FLOAT, [], [-1e9]))
    model.graph.node.insert(place, helper.make_node("Sub", ["relu1", "minus"], ["large"], "bad/Sub"))
    model.graph.node.insert(place + 1, helper.make_node("Exp", ["large"], ["broken"], "bad/Exp"))
    assert first_not_finite(model, PIXELS) == "bad"
