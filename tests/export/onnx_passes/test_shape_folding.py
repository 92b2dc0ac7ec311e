import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx_passes.graph import constants
from export.onnx_passes.shape_folding import evaluate_shapes, fold_shapes, nodes_with_data_shapes
from tests.export.conftest import run_onnx
from tests.export.tiny_graphs import floats, graph, operators

INT = np.int64


def folded(nodes, values=None, shape=("batch", None), outputs=("y",)):
    """Folds a graph and asserts that the one passed in stays, and that the answers do at several batches."""
    model = graph(nodes, values, shapes={name: list(shape) for name in outputs}, outputs=outputs)
    before = model.SerializeToString()
    result = fold_shapes(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    for batch in (1, 2, 7, 33):
        x = floats(batch, 4, 6, 6, seed=batch)
        for a, b in zip(run_onnx(model, x), run_onnx(result, x), strict=True):
            np.testing.assert_array_equal(a, b)
    return result


def target(model):
    """The targets of the Reshapes, as lists."""
    table = constants(model.graph)
    return [numpy_helper.to_array(table[n.input[1]]).tolist() for n in model.graph.node if n.op_type == "Reshape"]


BATCH = [("Shape", ["x"], "s", {}), ("Gather", ["s", "zero"], "b", {})]
ZERO = {"zero": np.array([0], INT)}


def test_a_flatten_keeps_the_batch_in_its_place():
    nodes = [
        ("Shape", ["x"], "s", {}),
        ("Slice", ["s", "one", "four"], "rest", {}),
        ("ReduceProd", ["rest"], "count", {"axes": [0], "keepdims": 1}),
        ("Slice", ["s", "zero", "one"], "b", {}),
        ("Concat", ["b", "count"], "t", {"axis": 0}),
        ("Reshape", ["x", "t"], "y", {}),
    ]
    result = folded(nodes, ZERO | {"one": np.array([1], INT), "four": np.array([4], INT)})
    assert operators(result) == ["Reshape"]
    assert target(result) == [[0, 144]]


def test_a_multiple_of_the_batch_is_what_is_left_over():
    """A Dense on a map: its rows are the batch times the places."""
    nodes = [
        ("Shape", ["x"], "s", {}),
        ("Gather", ["s", "front"], "f", {}),
        ("ReduceProd", ["f"], "rows", {"axes": [0], "keepdims": 1}),
        ("Cast", ["rows"], "rows32", {"to": TensorProto.INT32}),
        ("Cast", ["rows32"], "rows64", {"to": TensorProto.INT64}),
        ("Concat", ["rows64", "six"], "t", {"axis": 0}),
        ("Reshape", ["x", "t"], "flat", {}),
        ("MatMul", ["flat", "w"], "m", {}),
        ("Gather", ["s", "zero"], "b", {}),
        ("Concat", ["b", "map"], "t2", {"axis": 0}),
        ("Reshape", ["m", "t2"], "y", {}),
    ]
    values = ZERO | {"front": np.arange(3), "six": np.array([6], INT), "map": np.array([4, 6, 3]), "w": floats(6, 3)}
    result = folded(nodes, values, ("batch", 4, 6, 3))
    assert operators(result) == ["Reshape", "MatMul", "Reshape"]
    assert target(result) == [[-1, 6], [-1, 4, 6, 3]]


def test_two_dimensions_that_follow_the_batch():
    nodes = [
        *BATCH,
        ("Reshape", ["x", "flat"], "f", {}),
        ("Transpose", ["f"], "g", {"perm": [1, 0]}),
        ("MatMul", ["f", "g"], "gram", {}),
        ("Concat", ["b", "one", "b"], "t", {"axis": 0}),
        ("Reshape", ["gram", "t"], "y", {}),
    ]
    result = folded(nodes, ZERO | {"flat": np.array([0, 144]), "one": np.array([1], INT)}, ("batch", 1, None))
    assert target(result) == [[0, 144], [0, 1, -1]]


def test_what_truly_needs_the_batch_stays():
    """A class token for each picture."""
    nodes = [
        *BATCH,
        ("Concat", ["b", "rest"], "t", {"axis": 0}),
        ("Expand", ["token", "t"], "tokens", {}),
        ("Reshape", ["x", "words"], "w", {}),
        ("Concat", ["tokens", "w"], "y", {"axis": 1}),
    ]
    values = ZERO | {"rest": np.array([1, 36]), "token": floats(1, 1, 36), "words": np.array([0, 4, 36])}
    result = folded(nodes, values, ("batch", 5, 36))
    assert operators(result).count("Shape") == 1
    assert nodes_with_data_shapes(result) == []


@pytest.mark.parametrize("special", [1, 2])
def test_a_number_that_is_another_at_one_batch_is_no_constant(special):
    nodes = [
        *BATCH,
        ("Equal", ["b", "special"], "e", {}),
        ("Where", ["e", "two", "four"], "end", {}),
        ("Slice", ["x", "zero", "end", "one"], "part", {}),
        ("ReduceSum", ["part", "axes"], "y", {"keepdims": 0}),
    ]
    values = ZERO | {"special": np.array([special], INT), "two": np.array([2], INT), "four": np.array([4], INT)}
    values |= {"one": np.array([1], INT), "axes": np.array([1, 2], INT)}
    assert "Where" in operators(folded(nodes, values, ("batch", 6)))


def test_a_slice_up_to_the_end_of_the_batch():
    nodes = [
        *BATCH,
        ("Concat", ["b", "three"], "ends", {"axis": 0}),
        ("Slice", ["x", "starts", "ends", "axes"], "part", {}),
        ("ReduceSum", ["part", "sum"], "y", {"keepdims": 0}),
    ]
    values = ZERO | {"three": np.array([3], INT), "starts": np.array([0, 1]), "axes": np.array([0, 2])}
    result = folded(nodes, values | {"sum": np.array([1, 2])}, ("batch", 6))
    assert operators(result) == ["Slice", "ReduceSum"]


def if_model(condition_nodes):
    """Doubles or halves the sum of the pixels; both branches read it from around them."""
    info = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    half, two = numpy_helper.from_array(np.float32(0.5), "k"), numpy_helper.from_array(np.float32(2), "k")
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node("Mul", ["sum", "k"], ["r"], "m")], name, [], [info], [k])
        for name, k in (("then", half), ("else", two))
    }
    nodes = [
        ("ReduceSum", ["x", "axes"], "sum", {"keepdims": 0}),
        *condition_nodes,
        ("If", ["c"], "z", branches),
        ("Add", ["z", "sum"], "y", {}),
    ]
    values = ZERO | {"axes": np.array([2, 3]), "second": np.array(1, INT), "limit": np.array(5, INT)}
    return nodes, values | {"nothing": np.float32(0)}


@pytest.mark.parametrize("operator", ["Less", "Greater"])
def test_a_condition_that_shapes_decide_leaves_one_branch(operator):
    condition = [
        ("Shape", ["x"], "s", {}),
        ("Gather", ["s", "second"], "channels", {}),
        (operator, ["channels", "limit"], "c", {}),
    ]
    result = folded(*if_model(condition), ("batch", 4))
    assert "If" not in operators(result)
    assert "Mul" in operators(result)


def test_a_condition_that_pixels_decide_stays():
    condition = [("ReduceMax", ["x"], "max", {"keepdims": 0}), ("Greater", ["max", "nothing"], "c", {})]
    assert "If" in operators(folded(*if_model(condition), ("batch", 4)))


def test_a_shape_that_pixels_decide_is_named():
    nodes = [("NonZero", ["x"], "n", {}), ("Cast", ["n"], "f", {"to": TensorProto.FLOAT})]
    model = graph([*nodes, ("ReduceSum", ["f"], "y", {"keepdims": 1})], shapes={"y": [1, 1]})
    assert nodes_with_data_shapes(model)[:2] == ["NonZero_0", "Cast_1"]
    known = evaluate_shapes(model, 3)
    assert known.shapes["n"] == (4, None)


def test_a_graph_without_shapes_is_left_alone():
    model = graph([("Relu", ["x"], "r", {}), ("Add", ["r", "c"], "y", {})], {"c": floats(1)})
    assert fold_shapes(model) == model
