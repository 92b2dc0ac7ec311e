"""The one place that opens ONNX Runtime sessions."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.files import ROOT
from export.onnx_passes.file import check_model
from export.ort_session import open_session, skeleton


def pad_before_pool() -> bytes:
    """A border of zeros, which wins over negative values, and a MaxPool of it."""
    graph = helper.make_graph(
        [
            helper.make_node("Pad", ["x", "pads"], ["padded"]),
            helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("exact", [True, False])
def test_the_border_of_a_pool_is_kept(exact: bool) -> None:
    session = open_session(pad_before_pool(), exact=exact)
    values = session.run(None, {"x": np.full((1, 1, 4, 4), -1.0, np.float32)})[0]
    assert values[0, 0].tolist() == [[0.0, 0.0], [0.0, -1.0]]


def large_weight() -> ModelProto:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["product"], "m"), helper.make_node("Relu", ["product"], ["y"], "r")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("exact", [True, False])
def test_a_model_in_memory_gives_what_its_bytes_give(exact: bool) -> None:
    model = large_weight()
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    expected = open_session(model.SerializeToString(), exact=exact).run(None, {"x": x})[0]
    session = open_session(model, exact=exact)
    del model
    gc.collect()
    assert session.run(None, {"x": x})[0].tobytes() == expected.tobytes()


def test_large_weights_are_taken_out_and_the_model_stays() -> None:
    model = large_weight()
    before = model.SerializeToString()
    rest, weights = skeleton(model)
    assert [tensor.name for tensor in weights] == ["w"]
    assert len(rest.SerializeToString()) < 1000
    assert model.SerializeToString() == before


def test_a_large_weight_is_checked_as_well() -> None:
    model = large_weight()
    check_model(model)
    model.graph.initializer[0].raw_data = b"short"
    with pytest.raises(ProjectError, match="valid ONNX"):
        check_model(model)


def opens_a_session(source: str) -> bool:
    """Whether code names the class, also where it is imported by another name or taken by `getattr`."""
    name = "InferenceSession"
    return any(
        (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.alias) and node.name == name)
        or (isinstance(node, ast.Constant) and node.value == name)
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize(
    ("source", "opens"),
    [
        ("session = onnxruntime.InferenceSession(path)", True),
        ("from onnxruntime import InferenceSession as Session", True),
        ("make = onnxruntime.InferenceSession", True),
        ("getattr(onnxruntime, 'InferenceSession')", True),
        ("def f():\n    'Return an ``InferenceSession``.'", False),
    ],
)
def test_another_way_to_a_session_is_seen(source: str, opens: bool) -> None:
    assert opens_a_session(source) is opens


def test_nothing_else_opens_a_session() -> None:
    sources = [path for room in ("export", "pipeline", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    opening = [path.relative_to(ROOT) for path in sources if opens_a_session(path.read_text(encoding="utf-8"))]
    strangers = {
        Path("benchmarks/inference/threaded.py"),
        Path("benchmarks/inference/first_answer.py"),
    }  # as they write it
    assert set(opening) - strangers == {Path("export/ort_session.py")}
