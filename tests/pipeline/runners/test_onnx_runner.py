from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.errors import RunnerError
from export.int8.placement import quantizable_tensors
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.metrics.distances import compare
from pipeline.runners.onnxruntime import OnnxRunner
from tests import tiny_onnx


@pytest.fixture
def small_scales(tmp_path: Path) -> Path:
    """INT8 with FP16 scales whose product, the scale of a quantised bias, FP16 holds only roughly."""
    model = tiny_onnx.classifier()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, factor in (("kernel", 0.02), ("bias", 0.01)):
        weights[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[name]) * np.float32(factor), name))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 255), "unit"))
    index = list(model.graph.node).index(conv)
    model.graph.node.insert(index, helper.make_node("Mul", [conv.input[0], "unit"], ["scaled"], "preprocessing/Mul"))
    conv.input[0] = "scaled"
    scales = dict(zip(quantizable_tensors(model), (1.5e-3, 0.03 / 127)))
    int8 = quantize(model, Scales(scales, "minmax", images=1), trunk="fp16").model
    onnx.save(int8, tmp_path / "model.int8.onnx")
    return tmp_path / "model.int8.onnx"


def test_what_serves_int8_on_a_cpu_gives_the_answers_that_were_verified(small_scales: Path) -> None:
    pixels = tiny_onnx.pixels(64, seed=2)
    with OnnxRunner(small_scales, precision="int8", exact=True) as exact:
        verified = exact.infer(pixels).logits
    with OnnxRunner(small_scales, precision="int8") as runner:
        served = runner.infer(pixels).logits
    with OnnxRunner(small_scales, precision="int8", fuse_int8=True) as fused:
        other = fused.infer(pixels).logits
    np.testing.assert_array_equal(served, verified)
    assert compare(verified, other).sqnr_db < 45, "ONNX Runtime forms bias scales well now: fusing may be allowed"


def test_a_closed_runner_says_so(small_scales: Path) -> None:
    with pytest.raises(RunnerError, match="with block"):
        OnnxRunner(small_scales).infer(tiny_onnx.pixels(1))
