"""Constant nodes, which raising the opset leaves, and nodes without any input."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.fp16.convert import to_half
from export.int8.qdq import quantize
from export.onnx_passes.graph import constants, convert_opset, lift_constants
from tests.export.conftest import calibrate, run_onnx
from tests.export.tiny_graphs import floats, operators, pixel_graph, pixels
from tests.export.tiny_graphs import graph as tiny


def gated():
    """Squeeze-and-excite behind a Conv; the mean of the squeeze is a ReduceMean."""
    nodes = [
        ("Conv", ["f", "w"], "c", {}),
        ("ReduceMean", ["c"], "m", {"axes": [2, 3], "keepdims": 1}),
        ("Sigmoid", ["m"], "s", {}),
        ("Mul", ["c", "s"], "g", {}),
        ("Conv", ["g", "v"], "y", {}),
    ]
    return pixel_graph(nodes, {"w": floats(4, 4, 3, 3) / 100, "v": floats(4, 4, 1, 1, seed=1)})


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_mean_that_stays_is_converted(kind):
    half = to_half(gated(), kind)
    assert "ReduceMean" in operators(half)
    assert "Constant" not in operators(half)
    assert all(node.input for node in half.graph.node)
    if kind == "fp16":
        x = pixels(3)
        expected = run_onnx(gated(), x)[0]
        np.testing.assert_allclose(run_onnx(half, x)[0], expected, atol=3e-3 * np.abs(expected).max())


def test_a_mean_that_stays_is_quantised_around():
    model, batch = gated(), pixels(16, seed=1)
    made = quantize(model, calibrate(model, [batch]))
    expected = run_onnx(model, batch)[0]
    noise = run_onnx(made.model, batch, exact=True)[0] - expected
    assert np.linalg.norm(noise) < 0.05 * np.linalg.norm(expected)
    assert {row.op: row.precision for row in made.placements}["ReduceMean"] == "fp16"


@pytest.mark.parametrize("version", [18, 19, 21])
def test_raising_the_opset_leaves_no_constant_node(version):
    result = convert_opset(gated(), version)
    assert "Constant" not in operators(result)
    x = pixels(2)
    np.testing.assert_array_equal(run_onnx(result, x)[0], run_onnx(gated(), x)[0])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ({"value": numpy_helper.from_array(np.float32([[1, 2]]))}, np.float32([[1, 2]])),
        ({"value_float": 0.5}, np.float32(0.5)),
        ({"value_floats": [0.5, 2.0]}, np.float32([0.5, 2])),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.int64([3, 4])),
    ],
)
def test_each_kind_of_constant_becomes_an_initializer(attribute, value):
    nodes = [
        ("Constant", [], "c", attribute),
        ("Cast", ["c"], "d", {"to": TensorProto.FLOAT}),
        ("Add", ["x", "d"], "y", {}),
    ]
    model = tiny(nodes, x=("batch", 4, 6, 2))
    before = model.SerializeToString()
    result = lift_constants(model)
    assert model.SerializeToString() == before
    assert operators(result) == ["Cast", "Add"]
    seen = numpy_helper.to_array(constants(result.graph)["c"])
    np.testing.assert_array_equal(seen, value)
    assert seen.dtype == value.dtype
    onnx.checker.check_model(result, full_check=True)


def test_a_string_stays_a_node():
    model = tiny([("Identity", ["x"], "y", {})])
    model.graph.node.append(helper.make_node("Constant", [], ["text"], "text", value_string=b"a"))
    assert operators(lift_constants(model)) == ["Identity", "Constant"]
