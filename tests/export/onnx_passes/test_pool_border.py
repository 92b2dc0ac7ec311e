"""A Pad before a MaxPool whose values may be negative: plain ONNX Runtime must not forget the border."""

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from export.fp16.convert import FP16_MAX, to_half, unfit_for_fp16
from export.from_keras.logits import logits_model
from export.int8.placement import quantized_edges
from export.int8.qdq import quantize
from export.onnx_passes.folding import LOWEST, fold_pad_into_maxpool
from export.onnx_passes.graph import constants
from tests.export.conftest import calibrate, run_onnx
from tests.export.keras_models import images
from tests.export.tiny_graphs import floats, operators, pixel_graph, pixels
from tests.export.tiny_graphs import graph as tiny

AROUND = (0, 0, 1, 1, 0, 0, 1, 1)


def plain(model, x):
    """The first output of ONNX Runtime with its default options, Pad_Fusion among them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {model.graph.input[0].name: x})[0]


def pool(around=AROUND, value=0.0, before="Neg", side=(7, 9), **attributes):
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2]} | attributes
    nodes = [(before, ["x"], "r", {}), ("Pad", ["r", "pads", "value"], "p", {}), ("MaxPool", ["p"], "y", attributes)]
    return tiny(nodes, {"pads": np.array(around), "value": np.float32(value)}, x=("batch", 2, *side))


@pytest.mark.parametrize(
    "model",
    [
        pool(),
        pool((0, 0, 0, 1, 0, 0, 2, 0)),
        pool((0, 0, 1, 0, 0, 0, 0, 1), strides=[1, 3]),
        pool(value=1.5),
        pool(value=-0.5),
        pool(kernel_shape=[2, 5], strides=[1, 1]),
        pool(dilations=[2, 2], side=(11, 12)),
        pool(before="Relu", kernel_shape=[2, 2], strides=[1, 1], dilations=[4, 4], side=(3, 3)),
        pool(kernel_shape=[5, 5], pads=[1, 0, 2, 1]),
        pool(kernel_shape=[4, 4], auto_pad="SAME_UPPER"),
        pool(auto_pad="VALID"),
        pool(before="Relu", value=1.0),
    ],
    ids=[
        *("even", "one side", "odd strides", "pads with 1.5", "pads with -0.5", "flat windows", "dilated"),
        *("a dilated window of padding alone", "own pads", "own SAME", "VALID", "ones behind a Relu"),
    ],
)
@pytest.mark.parametrize("offset", [-3.0, 0.0, 3.0])
def test_the_border_counts_in_plain_onnx_runtime(model, offset):
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = floats(3, *shape) - offset
    result = fold_pad_into_maxpool(model)
    assert "Pad" not in operators(result)
    expected = run_onnx(model, x, exact=True)[0]
    np.testing.assert_array_equal(plain(result, x), expected)
    np.testing.assert_array_equal(run_onnx(result, x)[0], expected)


def test_plain_onnx_runtime_needs_it():
    """The fault in ONNX Runtime that the pass is for; once this fails, Pad_Fusion need not be disabled any more."""
    x = floats(3, 2, 7, 9) + 3
    assert np.abs(plain(pool(), x) - run_onnx(pool(), x, exact=True)[0]).max() > 0.1


def test_two_pools_share_one_pad():
    nodes = [
        ("Neg", ["x"], "r", {}),
        ("Pad", ["r", "pads"], "p", {}),
        ("MaxPool", ["p"], "a", {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("MaxPool", ["p"], "b", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", ["p"], "y", {"kernel_shape": [3, 3]}),
    ]
    model = tiny(nodes, {"pads": np.array(AROUND)}, x=("batch", 2, 7, 9), outputs=("a", "b", "y"))
    result = fold_pad_into_maxpool(model)
    x = floats(2, 2, 7, 9) + 2
    for expected, seen in zip(run_onnx(model, x, exact=True), run_onnx(result, x)):
        np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert operators(result).count("Pad") == 1  # the average still reads it


@pytest.mark.parametrize(
    "model",
    [
        pool((0, 1, 1, 1, 0, 0, 1, 1)),
        pool((0, 0, 2, 2, 0, 0, 2, 2), kernel_shape=[2, 2]),
        pool((0, 0, 2, 2, 0, 0, 2, 2), kernel_shape=[2, 2], pads=[0, 0, 0, 0]),
        pool((0, 0, 2, 2, 0, 0, 2, 2), kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        pool((0, 0, -1, 1, 0, 0, 1, 1)),
        pool(side=("height", 9)),
    ],
    ids=["pads channels", "windows of padding alone", "and no pads said", "and SAME", "cuts", "an unknown size"],
)
def test_a_pad_that_no_pool_can_take_stays_and_counts(model):
    result = fold_pad_into_maxpool(model)
    assert "Pad" in operators(result)
    x = floats(3, 2, 7, 9) + 3
    np.testing.assert_array_equal(plain(result, x), run_onnx(model, x, exact=True)[0])


def pooled_conv():
    """A Conv, a pool with a border and a second Conv, as a ResNetV2 begins."""
    nodes = [
        ("Conv", ["f", "w"], "c", {}),
        ("Pad", ["c", "pads"], "p", {}),
        ("MaxPool", ["p"], "m", {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("Conv", ["m", "v"], "y", {}),
    ]
    weights = {"w": floats(4, 4, 1, 1), "v": floats(4, 4, 1, 1, seed=1) / 100}
    return pixel_graph(nodes, {"pads": np.array(AROUND), **weights})


@pytest.mark.parametrize(
    ("kind", "number", "lowest"),
    [("fp16", TensorProto.FLOAT16, -FP16_MAX), ("bf16", TensorProto.BFLOAT16, -3.3895313892515355e38)],
)
def test_the_border_is_the_lowest_finite_value_of_its_type(kind, number, lowest):
    folded = fold_pad_into_maxpool(pooled_conv())
    (name,) = [node.input[1] for node in folded.graph.node if node.op_type == "Max"]
    assert set(np.unique(numpy_helper.to_array(constants(folded.graph)[name]))) == {LOWEST, 0.0}
    assert not unfit_for_fp16(folded, {})
    half = to_half(folded, kind)
    border = constants(half.graph)[name]
    assert border.data_type == number
    assert set(np.unique(numpy_helper.to_array(border).astype(np.float64))) == {lowest, 0.0}
    assert operators(half).count("Cast") == 3  # the pixels, before the first Conv, the answer: Max is in the trunk


def test_fp16_keeps_the_border():
    folded = fold_pad_into_maxpool(pooled_conv())
    x = pixels(4)
    expected = run_onnx(pooled_conv(), x, exact=True)[0]
    np.testing.assert_allclose(plain(to_half(folded), x), expected, atol=2e-3 * np.abs(expected).max())


def test_int8_is_placed_and_computed_as_with_the_pad():
    before = pooled_conv()
    after = fold_pad_into_maxpool(before)
    assert [(edge.node, edge.index) for edge in quantized_edges(after)] == [
        (edge.node, edge.index) for edge in quantized_edges(before)
    ]
    batches = [pixels(8, seed=seed) for seed in (1, 2)]
    models = [quantize(model, calibrate(model, batches), base="fp32").model for model in (before, after)]
    old, new = (run_onnx(model, batches[0], exact=True)[0] for model in models)
    np.testing.assert_array_equal(new, old)


def test_a_resnet_v2_is_right_in_plain_onnx_runtime(v2):
    x = images(4, seed=5)
    expected = logits_model(v2.keras_model).predict(v2.spec.apply(x), verbose=0)
    seen = plain(v2.model, x)
    assert np.abs(seen - expected).max() <= 1e-5 * np.abs(expected).max()
