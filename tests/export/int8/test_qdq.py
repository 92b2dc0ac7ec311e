from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.errors import ProjectError
from export.fp16.convert import preprocessing_nodes
from export.int8.placement import (
    Kept,
    int8_convs,
    measured_tensors,
    placement_table,
    quantizable_tensors,
    quantized_edges,
    skip_input,
)
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.int8.weights import weight_scales
from export.metrics.distances import compare
from export.onnx_passes import graph
from tests.export.conftest import calibrate, run_onnx
from tests.export.keras_models import images
from tests.export.tiny_graphs import floats
from tests.export.tiny_graphs import graph as tiny


def dequantizer(model, name):
    """The QuantizeLinear (None for the codes of a weight) and DequantizeLinear before a tensor, None without them."""
    made = graph.producers(model.graph)
    after = made.get(name)
    if after is None or after.op_type != "DequantizeLinear":
        return None
    if after.input[0] in graph.constants(model.graph):
        return None, after
    before = made[after.input[0]]
    assert before.op_type == "QuantizeLinear"
    assert list(before.input[1:]) == list(after.input[1:])
    return before, after


def test_sqnr(quantized):
    exported, _, model, _ = quantized
    pixels = images(32, seed=11)
    result = compare(run_onnx(exported.model, pixels)[0], run_onnx(model, pixels, exact=True)[0])
    assert result.finite
    assert result.sqnr_db >= 20
    assert result.sqnr_db < 60  # eight bits cannot be better: something is not quantised


def test_every_conv_reads_int8_and_keeps_its_bias_in_float(quantized):
    """Its weight is stored as codes, and its bias is FP32, as the trunk is by default."""
    exported, _, model, _ = quantized
    exact = {t.name: numpy_helper.to_array(t) for t in exported.model.graph.initializer}
    table = graph.constants(model.graph)
    values = {name: numpy_helper.to_array(tensor) for name, tensor in table.items()}
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    assert convs
    for conv in convs:
        assert dequantizer(model, conv.input[0]) is not None, conv.name
        before, after = dequantizer(model, conv.input[1])
        assert before is None
        assert graph.attribute(after, "axis") == 0
        weight = exact[after.input[0].removesuffix("/quantized")]
        largest = np.abs(weight).max(axis=(1, 2, 3))
        np.testing.assert_allclose(values[after.input[1]], np.maximum(largest / 127, 2.0**-14), rtol=1e-7)
        codes = values[after.input[0]]
        assert codes.dtype == np.int8
        assert np.abs(codes * values[after.input[1]][:, None, None, None] - weight).max() <= largest.max() / 254 * 1.001
        if len(conv.input) > 2:
            assert table[conv.input[2]].data_type == TensorProto.FLOAT


def test_scales_and_zero_points(quantized):
    _, scales, model, _ = quantized
    table = graph.constants(model.graph)
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    counts = graph.op_counts(model)
    assert counts["QuantizeLinear"] == len(scales.scales)  # one pair an activation
    assert counts["DequantizeLinear"] == len(scales.scales) + counts["Conv"]  # a weight is stored as codes
    for node in pairs:
        scale, zero = table[node.input[1]], table[node.input[2]]
        assert scale.data_type == TensorProto.FLOAT  # as the trunk
        assert zero.data_type == TensorProto.INT8
        assert numpy_helper.to_array(scale).min() >= 2.0**-14
        assert not numpy_helper.to_array(zero).any()
        assert list(zero.dims) == list(scale.dims)
    for tensor, scale in scales.scales.items():
        assert numpy_helper.to_array(table[f"{tensor.replace(':', '_')}/scale"]) == np.float32(scale)
    assert graph.opset(model) >= 19
    onnx.checker.check_model(model, full_check=True)


def test_only_the_skip_branch_of_an_add_is_quantized(quantized):
    _, _, model, _ = quantized
    adds = [n for n in model.graph.node if n.op_type == "Add" and "bn/" not in n.name and "predictions" not in n.name]
    assert len(adds) == 4
    made = graph.producers(model.graph)
    for add in adds:
        pairs = [dequantizer(model, name) for name in add.input]
        assert sum(p is not None for p in pairs) == 1, add.name
        main = next(name for name, pair in zip(add.input, pairs) if pair is None)
        assert made[main].op_type == "Conv"
        assert made[main].name.split("/")[0].endswith("_3_conv"), "the main branch ends in the third convolution"
        skip = made[next(pair for pair in pairs if pair)[0].input[0]]
        if "block1" in add.name:
            assert skip.name.split("/")[0].endswith("_0_conv"), "a projection is the skip branch"
        else:
            assert skip.op_type in ("Relu", "Add", "MaxPool")


def test_what_stays_in_float(quantized):
    _, _, model, rows = quantized
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Softmax", "Relu", "Reshape", "Squeeze"):
            assert all(dequantizer(model, name) is None for name in node.input), node.name
    precisions = {(row.keras_layer, row.op): row.precision for row in rows}
    assert precisions["predictions", "MatMul"] == "fp16"
    assert precisions["probabilities", "Softmax"] == "fp32"
    assert precisions["preprocessing", "Cast"] == "fp32"
    assert precisions["conv1_conv", "Conv"] == "int8"


def test_pools(quantized):
    _, _, model, _ = quantized
    for node in model.graph.node:
        if node.op_type in ("GlobalAveragePool", "AveragePool"):
            assert dequantizer(model, node.input[0]) is not None
        if node.op_type == "MaxPool":
            pair = dequantizer(model, node.input[0])
            border = any(n.op_type == "Max" for n in model.graph.node) and "pool1" in node.name
            assert (pair is not None) == border, node.name


def test_one_pair_serves_all_readers(v1, quantized):
    exported, _, model, _ = quantized
    sources = Counter(n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear")
    assert set(sources.values()) == {1}
    if exported is v1:
        # A block's input feeds its first Conv and, in an identity block, the Add.
        readers = graph.consumers(model.graph)["conv2_block1_out/Relu_0/dequantized"]
        assert sorted(n.op_type for n in readers) == ["Add", "Conv"]


def test_placement_rows_are_what_the_graph_says(quantized):
    exported, _, model, rows = quantized
    nodes = {n.name: n for n in model.graph.node}
    assert [r.node for r in rows] == [n.name for n in exported.model.graph.node]
    for row in rows:
        quantized_inputs = [dequantizer(model, name) is not None for name in nodes[row.node].input]
        assert (row.precision == "int8") == (bool(quantized_inputs) and all(quantized_inputs[:2])), row
    table = placement_table(rows)
    assert len(table.splitlines()) == len(rows) + 2
    assert table.splitlines()[-1] == "15 of 15 convolutions in INT8"


def test_the_first_conv_is_quantized_behind_the_preprocessing(quantized):
    _, _, model, _ = quantized
    conv = next(n for n in model.graph.node if n.name == "conv1_conv/Conv")
    before, _ = dequantizer(model, conv.input[0])
    # Preprocessing is FP32, as the trunk is: no cast rounds the pixels before they are quantized.
    assert before.input[0] == "conv1_conv/Transpose:0"
    assert graph.producers(model.graph)[before.input[0]].op_type == "Transpose"


def test_weights_survive_within_half_a_step(v1):
    weight = floats(6, 4, 3, 3)
    weight[2] = 0
    weight[3] *= 1e-9
    scale = weight_scales(weight)
    assert scale.shape == (6,)
    assert scale.dtype == np.float32
    assert (scale[2:4] == 2.0**-14).all()
    steps = np.round(weight / scale.reshape(-1, 1, 1, 1))
    assert np.abs(steps).max() == 127
    assert np.abs(steps * scale.reshape(-1, 1, 1, 1) - weight).max() <= scale.max() / 2 * 1.001


def test_quantize_does_not_change_its_input_and_is_deterministic(v1, quantized):
    exported, scales, model, _ = quantized
    before = exported.model.SerializeToString()
    again = quantize(exported.model, scales).model
    assert exported.model.SerializeToString() == before
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_dead_tensor_gets_the_smallest_scale(v1):
    model = graph.copy_model(v1.model)
    for tensor in model.graph.initializer:
        if tensor.name == "conv2_block1_1_conv/Conv/bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims[0], -1e4, np.float32), tensor.name))
    scales = calibrate(model, [images(4)])
    assert "conv2_block1_1_relu/Relu:0" in scales.smallest
    quantized_model = quantize(model, scales).model
    assert np.isfinite(run_onnx(quantized_model, images(2), exact=True)[0]).all()


def test_what_has_no_rule_stays_float_and_is_named():
    nodes = [("Flatten", ["x"], "f", {"axis": 1}), ("MatMul", ["f", "w"], "y", {})]
    model = tiny(nodes, {"w": floats(144, 3)}, shapes={"y": ["batch", 3]})
    made = quantize(model, Scales({}, "minmax", 1), base="fp32")
    assert {row.node: row.precision for row in made.placements} == {"Flatten_0": "fp32", "MatMul_1": "fp32"}
    assert made.model.graph.node == model.graph.node


def test_errors(v1, quantized):
    exported, scales, model, _ = quantized
    with pytest.raises(ProjectError, match="QuantizeLinear"):
        quantize(model, scales)
    lacking = Scales(dict(list(scales.scales.items())[1:]), "minmax", 1)
    with pytest.raises(ProjectError, match=next(iter(scales.scales))):
        quantize(exported.model, lacking)
    unnamed = graph.copy_model(exported.model)
    unnamed.graph.node[0].name = ""
    with pytest.raises(ProjectError, match="name of its own"):
        quantize(unnamed, scales)


# --- which input of an Add is the skip --------------------------------------------------------------------------------

W = {"w": floats(4, 4, 1, 1)}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("before", "main", "skip"),
    [
        ([("Conv", ["x", "w"], "m", {})], "m", "x"),
        ([("Conv", ["x", "w"], "c", {}), ("Conv", ["c", "w"], "m", {}), ("Conv", ["x", "w"], "s", {})], "m", "s"),
        ([("Conv", ["x", "w"], "m", {}), ("Relu", ["x"], "s", {})], "m", "s"),
        # The projection reads the same tensor as the main branch, behind a pre-activation.
        (
            [
                ("Relu", ["x"], "r", {}),
                ("Conv", ["r", "w"], "s", {}),
                ("Conv", ["r", "w"], "c", {}),
                ("Relu", ["c"], "a", {}),
                ("Conv", ["a", "w"], "m", {}),
            ],
            "m",
            "s",
        ),
    ],
    ids=["identity", "projection", "pooled", "pre-activation projection"],
)
def test_skip_by_structure(before, main, skip, swap):
    inputs = [skip, main] if swap else [main, skip]
    model = tiny([*before, ("Add", inputs, "y", {})], W)
    add = model.graph.node[-1]
    assert add.input[skip_input(add, graph.Index.of(model.graph))] == skip


def test_adds_that_are_not_residual():
    bias = tiny([("Conv", ["x", "w"], "c", {}), ("Add", ["c", "k"], "y", {})], {**W, "k": floats(4, 1, 1)})
    assert skip_input(bias.graph.node[-1], graph.Index.of(bias.graph)) is None
    no_conv = tiny([("Relu", ["x"], "a", {}), ("Abs", ["x"], "b", {}), ("Add", ["a", "b"], "y", {})])
    assert skip_input(no_conv.graph.node[-1], graph.Index.of(no_conv.graph)) is None
    # Nothing may fuse into a Conv whose result is read elsewhere as well.
    shared = tiny(
        [("Conv", ["x", "w"], "c", {}), ("Relu", ["c"], "r", {}), ("Add", ["c", "r"], "y", {})],
        W,
    )
    assert skip_input(shared.graph.node[-1], graph.Index.of(shared.graph)) is None


def test_a_tie_makes_the_second_input_the_skip():
    model = tiny([("Conv", ["x", "w"], "a", {}), ("Conv", ["x", "w"], "b", {}), ("Add", ["a", "b"], "y", {})], W)
    assert skip_input(model.graph.node[-1], graph.Index.of(model.graph)) == 1


def test_an_average_pool_in_the_middle_is_not_the_head():
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("AveragePool", ["a"], "p", {"kernel_shape": [2, 2]}),
        ("Conv", ["p", "w"], "c", {}),
        ("GlobalAveragePool", ["c"], "y", {}),
    ]
    edges = quantized_edges(tiny(nodes, W))
    assert [(e.node, e.tensor) for e in edges] == [("Conv_0", "x"), ("Conv_2", "p"), ("GlobalAveragePool_3", "c")]


# --- the base FP32, for TensorRT 8.6 ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_fp32(quantized):
    exported, scales, int8, rows = quantized
    made = quantize(exported.model, scales, base="fp32")
    return exported, scales, int8, rows, made.model, made.placements


def test_an_fp32_base_stays_at_opset_17(on_fp32):
    exported, scales, _, _, model, _ = on_fp32
    assert graph.opset(model) == graph.opset(exported.model) == 17
    assert model.ir_version == exported.model.ir_version
    onnx.checker.check_model(model, full_check=True)
    table = graph.constants(model.graph)
    assert {t.data_type for t in table.values()} <= {TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64}
    for tensor, scale in scales.scales.items():
        stored = numpy_helper.to_array(table[f"{tensor.replace(':', '_')}/scale"])
        assert (stored.dtype, stored) == (np.float32, np.float32(scale))
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    assert [n.name for n in casts] == [n.name for n in exported.model.graph.node if n.op_type == "Cast"]


def test_both_bases_have_the_same_pairs(on_fp32):
    _, _, int8, rows, model, fp32_rows = on_fp32

    def sources(proto):
        return sorted(n.input[0] for n in proto.graph.node if n.op_type == "QuantizeLinear")

    weights = {n.input[1].removesuffix("/dequantized") for n in int8.graph.node if n.op_type == "Conv"}
    assert len(weights) == 15
    # TensorRT 8.6 reads a weight behind a pair, later ones read its codes.
    assert sources(int8) == [name for name in sources(model) if name not in weights]
    assert set(sources(model)) > weights
    assert [(r.node, r.why) for r in rows] == [(r.node, r.why) for r in fp32_rows]
    precision = {"int8": "int8", "fp16": "fp32", "fp32": "fp32"}
    assert [precision[r.precision] for r in rows] == [r.precision for r in fp32_rows]


def test_both_bases_agree(on_fp32):
    exported, _, int8, _, model, _ = on_fp32
    pixels = images(32, seed=11)
    exact = run_onnx(exported.model, pixels)[0]
    logits = [run_onnx(m, pixels, exact=True)[0] for m in (int8, model)]
    assert compare(logits[1], logits[0]).sqnr_db > 30
    noise = [compare(exact, found).sqnr_db for found in logits]
    assert noise[1] == pytest.approx(noise[0], abs=1.5)


# --- nodes that stay in float -----------------------------------------------------------------------------------------

STAYS = {
    "conv2_block1_2_conv/Conv": Kept("fp16", "kept: 40% of the INT8 noise"),
    "conv3_block1_1_conv/Conv": Kept("fp32", "values up to 60,000"),
}


@pytest.mark.parametrize("base", ["fp16", "fp32"])
def test_kept_nodes_have_no_pairs_and_say_why(quantized, base):
    exported, scales, _, plain = quantized
    made = quantize(exported.model, scales, base=base, kept=STAYS)
    model, rows = made.model, made.placements
    nodes = {node.name: node for node in model.graph.node}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type.elem_type for info in inferred.value_info}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for name, kept in STAYS.items():
        assert [dequantizer(model, i) for i in nodes[name].input] == [None] * len(nodes[name].input)
        row = next(r for r in rows if r.node == name)
        precision = kept.precision if base == "fp16" else "fp32"
        assert (row.precision, row.why) == (precision, kept.why)
        element = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        assert {types[i] for i in nodes[name].input} == {element}
    assert int8_convs(plain) == (15, 15)
    assert int8_convs(rows) == (13, 15)
    assert placement_table(rows).splitlines()[-1] == "13 of 15 convolutions in INT8"
    others = {r.node: r.precision for r in rows if r.node not in STAYS}
    expected = {r.node: r.precision if base == "fp16" or r.precision == "int8" else "fp32" for r in plain}
    if base == "fp16":  # what reads a Conv in FP16 is no part of the trunk
        expected["conv2_block1_2_relu/Relu"] = "fp16"
    assert others == {name: precision for name, precision in expected.items() if name not in STAYS}
    pixels = images(16, seed=11)
    exact = run_onnx(exported.model, pixels)[0]
    assert compare(exact, run_onnx(model, pixels, exact=True)[0]).sqnr_db > 20


def test_everything_kept_is_the_float_model(v1):
    scales = calibrate(v1.model, [images(4)])
    kept = {edge.node: Kept("fp32", "all") for edge in quantized_edges(v1.model)}
    made = quantize(v1.model, Scales({}, "minmax", 1), base="fp32", kept=kept)
    model, rows = made.model, made.placements
    assert "QuantizeLinear" not in graph.op_counts(model)
    assert int8_convs(rows) == (0, 15)
    pixels = images(4, seed=2)
    np.testing.assert_array_equal(run_onnx(model, pixels)[0], run_onnx(v1.model, pixels)[0])
    assert scales.scales.keys() == {edge.tensor for edge in quantized_edges(v1.model)}


def test_a_scale_that_only_kept_nodes_need_may_be_missing(quantized):
    exported, scales, _, _ = quantized
    tensor = next(e.tensor for e in quantized_edges(exported.model) if e.node == "conv2_block1_2_conv/Conv")
    rest = Scales({name: scale for name, scale in scales.scales.items() if name != tensor}, "minmax", 1)
    with pytest.raises(ProjectError, match=tensor):
        quantize(exported.model, rest)
    model = quantize(exported.model, rest, kept={"conv2_block1_2_conv/Conv": Kept("fp16", "")}).model
    assert f"{tensor.replace(':', '_')}/scale" not in graph.constants(model.graph)


def test_an_operator_without_a_rule_is_named():
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Elu", ["a"], "b", {}),
        ("Conv", ["b", "w"], "c", {}),
        ("Relu", ["c"], "y", {}),
    ]
    model = tiny(nodes, W)
    rows = quantize(model, Scales({"x": 0.1, "b": 0.1}, "minmax", 1)).placements
    why = {row.op: row.why for row in rows}
    assert why["Elu"] == "no rule quantizes Elu; it stays in float"
    assert "no rule quantizes it" in why["Relu"]
    assert "Elu" in placement_table(rows)
    # The Relu belongs to the trunk, which is FP32; Elu is no operator that fuses into a Conv.
    assert {row.op: row.precision for row in rows} == {"Conv": "int8", "Elu": "fp16", "Relu": "fp32"}


def test_measured_tensors_are_what_decides_something(exported):
    names = measured_tensors(exported.model)
    assert len(set(names)) == len(names)
    made = graph.producers(exported.model.graph)
    assert set(quantizable_tensors(exported.model)) <= set(names)
    for node in exported.model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            assert {node.input[0], node.output[0]} <= set(names)
    prepared = {node.output[0] for node in preprocessing_nodes(exported.model)}
    first = next(n for n in exported.model.graph.node if n.op_type == "Conv").input[0]
    assert prepared & set(names) == {first}
    order = [name for node in exported.model.graph.node for name in node.output]
    assert names == sorted(names, key=order.index)
    assert "Softmax" not in {made[name].op_type for name in names}


def test_a_mean_over_stacked_models_is_no_pooling():
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Unsqueeze", ["a", "zero"], "one", {}),
        ("Concat", ["one", "one"], "two", {"axis": 0}),
        ("ReduceMean", ["two"], "mean", {"axes": [0], "keepdims": 0}),
        ("GlobalAveragePool", ["mean"], "y", {}),
    ]
    model = tiny(nodes, {"w": floats(4, 4, 1, 1), "zero": np.array([0])})
    assert {edge.node for edge in quantized_edges(model)} == {"Conv_0", "GlobalAveragePool_4"}
    assert not {"one", "two"} & set(measured_tensors(model)), "their axis 1 is the batch"
