"""Graphs of about five nodes for the tests of the passes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.export.conftest import run_onnx


def graph(nodes, constants=None, x=("batch", 4, 6, 6), outputs=("y",), shapes=None, opset=17, dtype=TensorProto.FLOAT):
    """A model with the input ``x``; `nodes` are ``(op, inputs, output, attributes)``."""
    made = [
        helper.make_node(op, list(inputs), [output], name=f"{op}_{i}", **attributes)
        for i, (op, inputs, output, attributes) in enumerate(nodes)
    ]
    shapes = shapes or {}
    model = helper.make_model(
        helper.make_graph(
            made,
            "tiny",
            [helper.make_tensor_value_info("x", dtype, list(x))],
            [
                helper.make_tensor_value_info(o, TensorProto.FLOAT, shapes.get(o, ["batch", *[None] * 3]))
                for o in outputs
            ],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def operators(model):
    return [node.op_type for node in model.graph.node]


def pixel_graph(nodes, constants=None, x=("batch", 4, 6, 6), outputs=("y",), shapes=None, opset=17):
    """A model that takes uint8 (N, 4, 6, 6) as a calibration batch; `nodes` read it as the float32 tensor ``f``."""
    cast = ("Cast", ["x"], "f", {"to": TensorProto.FLOAT})
    return graph([cast, *nodes], constants, x, outputs, shapes, opset, TensorProto.UINT8)


def pixels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (4, 6, 6))), np.uint8)


X = floats(3, 4, 6, 6, seed=1)  # for the input of `graph`


def unchanged(function, model, *args):
    """Runs a pass and asserts that the model passed in is what it was."""
    before = model.SerializeToString()
    result = function(model, *args)
    assert model.SerializeToString() == before
    return result


def same(before, after, x=X, tolerance=1e-5):
    """Asserts that two models give the same answers in ONNX Runtime."""
    for a, b in zip(run_onnx(before, x), run_onnx(after, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
