"""Everything that quantising does, on graphs that are no ResNet: what has no rule stays in float and is named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.calibration import Ranges, collect_histograms, collect_statistics
from export.fp16.convert import to_half, unfit_for_fp16
from export.fp16.weight_rounding import rounded_weights, with_weights
from export.int8.bias_correction import bias_errors, collect_mean_maps, correct_biases
from export.int8.equalization import equalize
from export.int8.placement import measured_tensors, quantizable_tensors, quantized_edges
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.onnx_passes.folding import fold_affine
from export.onnx_passes.graph import constants
from export.onnx_passes.repairs import convert_to_float32
from tests.export.conftest import run_onnx
from tests.export.tiny_graphs import floats, operators, pixel_graph, pixels
from tests.export.tiny_graphs import graph as tiny

CONV = ("Conv", ["f", "w", "b"], "c", {"pads": [1, 1, 1, 1]})
WEIGHTS = {"w": floats(4, 4, 3, 3) / 100, "b": floats(4, seed=5)}
SCORES = ("MatMul", ["h", "v"], "y", {})
FLAT = [("Flatten", ["a"], "h", {}), SCORES]


def net(*nodes, constants=None, width=144):
    """A Conv (N, 4, 6, 6), then nodes that make ``a`` of its ``c``, and a classifier."""
    weights = WEIGHTS | (constants or {}) | {"v": floats(width, 5, seed=3) / 12}
    return pixel_graph([CONV, *nodes, *FLAT], weights, shapes={"y": ["batch", 5]})


INTS = {"one": np.int64([1]), "shape": np.int64([0, 4, 36]), "back": np.int64([0, 4, 6, 6])}
TOKENS = [("Reshape", ["c", "shape"], "s", {}), ("Transpose", ["s"], "t", {"perm": [0, 2, 1]})]
BANK = {"k": floats(4, 4, seed=7), "gamma": floats(4, seed=8), "beta": floats(4, seed=9)}

GRAPHS = {
    "layer norm": net(
        *TOKENS, ("LayerNormalization", ["t", "gamma", "beta"], "a", {"axis": -1}), constants=INTS | BANK
    ),
    "layer norm by hand": net(
        *TOKENS,
        ("ReduceMean", ["t"], "m", {"axes": [-1]}),
        ("Sub", ["t", "m"], "d", {}),
        ("Mul", ["d", "d"], "q", {}),
        ("ReduceMean", ["q"], "z", {"axes": [-1]}),
        ("Add", ["z", "eps"], "e", {}),
        ("Sqrt", ["e"], "r", {}),
        ("Div", ["d", "r"], "a", {}),
        constants=INTS | {"eps": np.float32(1e-3)},
    ),
    "attention": net(
        *TOKENS,
        ("MatMul", ["t", "k"], "q", {}),
        ("Transpose", ["t"], "u", {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "u"], "p", {}),
        ("Softmax", ["p"], "o", {"axis": -1}),
        ("MatMul", ["o", "t"], "a", {}),
        constants=INTS | BANK | {"k": BANK["k"] / 10},
    ),
    "einsum": net(("Einsum", ["c", "k"], "a", {"equation": "abcd,be->aecd"}), constants=BANK),
    "where": net(
        ("Sigmoid", ["c"], "g", {}),
        ("Greater", ["c", "g"], "q", {}),
        ("Where", ["q", "c", "g"], "a", {}),
    ),
    "reductions": net(
        ("ReduceMax", ["c"], "m", {"axes": [1]}),
        ("ReduceSum", ["c", "one"], "s", {}),
        ("Concat", ["m", "s"], "a", {"axis": 1}),
        constants=INTS,
        width=72,
    ),
    "shape arithmetic": net(
        ("Shape", ["c"], "s", {}),
        ("Mul", ["s", "one"], "n", {}),
        ("Add", ["n", "zero"], "m", {}),
        ("Reshape", ["c", "m"], "a", {}),
        constants=INTS | {"zero": np.int64([0])},
    ),
    "gate": net(
        ("GlobalAveragePool", ["c"], "m", {}),
        ("Sigmoid", ["m"], "s", {}),
        ("Mul", ["c", "s"], "a", {}),
    ),
    "min and max": net(
        ("Min", ["c", "high"], "l", {}),
        ("Max", ["l", "low"], "a", {}),
        constants={"high": np.float32(2), "low": np.float32(-1)},
    ),
    "transposed": net(("ConvTranspose", ["c", "u"], "a", {}), constants={"u": floats(4, 4, 1, 1, seed=8)}),
    "1-D Conv": net(
        ("Reshape", ["c", "shape"], "s", {}),
        ("Conv", ["s", "u", "b"], "a", {"pads": [1, 1], "dilations": [1]}),
        constants=INTS | {"u": floats(4, 4, 3, seed=8)},
    ),
    "3-D Conv": net(
        ("Reshape", ["c", "cube"], "s", {}),
        ("Conv", ["s", "u", "bias"], "a", {"dilations": [1, 1, 1], "pads": [1, 0, 0, 1, 0, 0]}),
        constants=INTS
        | {"cube": np.int64([0, 1, 4, 6, 6]), "u": floats(1, 1, 3, 1, 1, seed=8), "bias": floats(1, seed=9)},
    ),
    "Conv of a constant": net(
        ("Conv", ["picture", "u"], "p", {}),
        ("Add", ["c", "p"], "a", {}),
        constants={"picture": floats(1, 4, 6, 6, seed=4), "u": floats(4, 4, 1, 1, seed=8)},
    ),
    "a batch of products": net(("MatMul", ["c", "k"], "a", {}), constants={"k": floats(4, 6, 6, seed=4)}),
}


def quantised(model, batches):
    """The FP16 and the INT8 model by all the passes of the quantize stage, and the placement."""
    seen, statistics = collect_statistics(model, batches, measured_tensors(model))
    unfit = unfit_for_fp16(model, {name: found.limit for name, found in statistics.items()})
    half = to_half(with_weights(model, rounded_weights(model, statistics)), keep=unfit)
    base = equalize(model, statistics)
    ranges = Ranges({name: base.statistics[name].limit for name in quantizable_tensors(model)})
    scales = Scales.from_histograms(collect_histograms(base.model, batches, [ranges])[0], "minmax", images=seen)
    errors = bias_errors(base.model, collect_mean_maps(base.model, batches, scales))
    corrected, _ = correct_biases(base.model, errors)
    quantize(corrected, scales, base="fp32")
    int8 = quantize(corrected, scales)
    return half, int8.model, int8.placements


@pytest.mark.parametrize("name", GRAPHS)
def test_every_pass_takes_it(name):
    model = GRAPHS[name]
    batches = [pixels(8, seed=seed) for seed in (1, 2)]
    half, int8, rows = quantised(model, batches)
    expected = run_onnx(model, batches[0])[0]
    for candidate, most in ((half, 0.01), (int8, 0.1)):
        assert np.linalg.norm(run_onnx(candidate, batches[0], exact=True)[0] - expected) < most * np.linalg.norm(
            expected
        )
    assert [row.node for row in rows] == [node.name for node in model.graph.node]


@pytest.mark.parametrize("name", ["gate", "layer norm by hand"])
def test_a_mean_that_meets_its_map_again_is_no_pooling_before_the_head(name):
    assert [edge.node for edge in quantized_edges(GRAPHS[name])] == ["Conv_1"]


def test_two_poolings_side_by_side_are():
    nodes = [
        ("GlobalAveragePool", ["c"], "m", {}),
        ("GlobalMaxPool", ["c"], "n", {}),
        ("Concat", ["m", "n"], "a", {"axis": 1}),
    ]
    assert [edge.node for edge in quantized_edges(net(*nodes, width=8))] == ["Conv_1", "GlobalAveragePool_2"]


def test_whole_numbers_and_scalars_are_not_measured():
    measured = measured_tensors(GRAPHS["shape arithmetic"])
    assert "c" in measured
    assert not {"n", "m"} & set(measured)


def test_a_product_of_tokens_keeps_the_mean_of_no_other_axis():
    """Statistics of tokens are by token, which their MatMul does not sum over."""
    tokens = {"shape": np.int64([0, 4, 36]), "k": floats(36, 4, seed=7)}
    nodes = [("Reshape", ["c", "shape"], "t", {}), ("MatMul", ["t", "k"], "a", {})]
    model = net(*nodes, constants=tokens, width=16)
    _, statistics = collect_statistics(model, [pixels(8)], measured_tensors(model))
    kept = constants(with_weights(model, rounded_weights(model, statistics)).graph)["k"]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), tokens["k"])


@pytest.mark.parametrize(
    ("kernel", "constant", "folded"),
    [
        ((4, 4, 3), (4, 1), True),
        ((4, 4, 3), (1, 4, 1), True),
        ((4, 4, 3), (4, 1, 1), False),
        ((4, 4, 1, 1, 1), (4, 1, 1, 1), True),
        ((4, 4, 1, 1, 1), (1, 4, 1, 1), False),
    ],
)
def test_a_batch_norm_is_folded_by_the_rank_of_its_conv(kernel, constant, folded):
    rank = len(kernel)
    nodes = [("Conv", ["x", "w"], "c", {}), ("Mul", ["c", "g"], "y", {})]
    values = {"w": floats(*kernel), "g": floats(*constant, seed=1)}
    x = (4, 4, *[4] * (rank - 2))
    model = tiny(nodes, values, x=x, shapes={"y": [None] * rank})
    result = fold_affine(model)
    assert ("Mul" not in operators(result)) == folded
    np.testing.assert_allclose(run_onnx(result, floats(*x))[0], run_onnx(model, floats(*x))[0], atol=1e-5)


def halved(kind):
    """A graph as a SavedModel under a mixed policy leaves it: float32 in and out, half inside."""
    half = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        ("Cast", ["f"], "g", {"to": kind}),
        ("Mul", ["g", "s"], "m", {}),
        ("Conv", ["m", "w"], "c", {}),
        ("ReduceMean", ["c"], "p", {"axes": [2, 3], "keepdims": 1}),
        ("Cast", ["p"], "y", {"to": TensorProto.FLOAT}),
    ]
    made = [
        helper.make_node(op, inputs, [output], f"{op}_{i}", **attributes)
        for i, (op, inputs, output, attributes) in enumerate([("Cast", ["x"], "f", {"to": TensorProto.FLOAT}), *nodes])
    ]
    graph = helper.make_graph(
        made,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 1, 1])],
        [
            numpy_helper.from_array(np.asarray(value).astype(half), name)
            for name, value in (("w", floats(4, 4, 3, 3)), ("s", np.float32(1 / 255)))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.graph.value_info.append(helper.make_tensor_value_info("c", kind, ["batch", 4, 4, 4]))
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
def test_a_half_precision_graph_becomes_float32_and_is_quantised(kind):
    model = halved(kind)
    before = model.SerializeToString()
    result = convert_to_float32(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == ["Cast", "Mul", "Conv", "ReduceMean"]
    inferred = onnx.shape_inference.infer_shapes(result, strict_mode=True).graph
    assert {info.type.tensor_type.elem_type for info in inferred.value_info} == {TensorProto.FLOAT}
    batches = [pixels(8, seed=seed) for seed in (1, 2)]
    half, int8, _ = quantised(result, batches)
    weight, scale = (numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer)
    exact = tiny(
        [("Conv", ["x", "w"], "c", {}), ("ReduceMean", ["c"], "y", {"axes": [2, 3], "keepdims": 1})], {"w": weight}
    )
    expected = run_onnx(exact, batches[0].astype(np.float32) * scale)[0]
    np.testing.assert_allclose(run_onnx(result, batches[0])[0], expected, atol=1e-5)
    for candidate, most in ((half, 0.01), (int8, 0.1)):
        assert np.linalg.norm(run_onnx(candidate, batches[0])[0] - expected) < most * np.linalg.norm(expected)


def test_a_float32_graph_stays_as_it_is():
    model = GRAPHS["where"]
    assert convert_to_float32(model).SerializeToString() == model.SerializeToString()
