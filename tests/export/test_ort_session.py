"""The one place that opens ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.ort_session import open_session

ROOT = Path(__file__).parents[2]


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


def test_nothing_else_opens_a_session() -> None:
    sources = [path for room in ("export", "pipeline", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    opening = [path.relative_to(ROOT) for path in sources if "InferenceSession(" in path.read_text(encoding="utf-8")]
    assert opening == [Path("export/ort_session.py")]
