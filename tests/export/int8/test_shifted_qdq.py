"""The quantized graph with shifted tensors, codes of weights and a trunk: it computes what the float graph with
rounded activations and weights does, in the forms for TensorRT 8.6 and for later ones.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from export.fp16.convert import to_half
from export.int8.placement import Kept, quantizable_tensors
from export.int8.qdq import insert_lowered_pair, quantize
from export.int8.regions import allowed, find_regions
from export.int8.scales import Scales
from export.int8.simulate import simulate
from export.int8.weights import RoundedWeight, round_to_nearest
from export.metrics.distances import sqnr_db
from export.onnx_passes import graph
from export.onnx_passes.file import save_model
from export.onnx_passes.folding import LOWEST
from export.tensorrt.build import build_engine
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.sidecar import BatchProfile
from tests.export.conftest import calibrate, run_onnx
from tests.export.tiny_graphs import floats, pixel_graph, pixels

SAME = {"pads": [1, 1, 1, 1]}
NODES = [
    ("Mul", ["f", "unit"], "u", {}),
    ("Conv", ["u", "w0", "b0"], "c0", SAME),
    ("Relu", ["c0"], "r0", {}),
    ("Conv", ["r0", "w1", "b1"], "c1", {}),
    ("Relu", ["c1"], "r1", {}),
    ("Conv", ["r1", "w2", "b2"], "c2", SAME),
    ("Relu", ["c2"], "r2", {}),
    ("Conv", ["r2", "w1"], "c3", {}),  # shares its weight with an earlier one, and has no bias
    ("Add", ["c3", "r0"], "a", {}),
    ("Relu", ["a"], "r3", {}),
    ("Conv", ["r3", "w3", "b0"], "c4", {}),  # shares its bias with the first
    ("Clip", ["c4", "zero", "six"], "r4", {}),
    ("GlobalAveragePool", ["r4"], "p", {}),
    ("Flatten", ["p"], "h", {}),
    ("MatMul", ["h", "v"], "m", {}),
    ("Add", ["m", "k"], "y", {}),
]
CONVS = [f"Conv_{i + 1}" for i, node in enumerate(NODES) if node[0] == "Conv"]
SHIFTED = ("r0", "r2", "r3", "r4")


@pytest.fixture(scope="module")
def net():
    values = {
        **{f"w{i}": floats(4, 4, 1, 1, seed=i) for i in (1, 3)},
        **{f"w{i}": floats(4, 4, 3, 3, seed=i) / 3 for i in (0, 2)},
        **{f"b{i}": floats(4, seed=10 + i) / 2 for i in range(3)},
        **{"unit": np.float32(1 / 64), "zero": np.float32(0), "six": np.float32(6)},
        **{"v": floats(4, 5, seed=20) + 0.5, "k": floats(5, seed=21)},
    }
    model = pixel_graph(NODES, values, shapes={"y": ["batch", 5]})
    plain = calibrate(model, [pixels(64)])
    found = allowed(find_regions(model), "always")
    assert found == SHIFTED
    scales = {name: scale * (127 / 255 if name in found else 1) for name, scale in plain.scales.items()}
    return model, replace(plain, scales={n: float(np.float32(s)) for n, s in scales.items()}, shifted=found)


def reference(model, scales, kept=(), weights=None, halves=()):
    """The float graph whose activations go through a pair between a Sub and an Add, with rounded weights."""
    result = graph.copy_model(model)
    read = {}
    for tensor in quantizable_tensors(model):
        read[tensor] = insert_lowered_pair(result.graph, tensor, scales)
    table = graph.constants(model.graph)
    for node in result.graph.node[: len(model.graph.node)]:
        if node.op_type == "Conv":
            weight = numpy_helper.to_array(table[node.input[1]])
            if node.name not in kept:
                weight = (weights or {}).get(node.input[1], round_to_nearest(weight)).values
                node.input[0] = read[node.input[0]]
            elif node.name in halves:
                weight = weight.astype(np.float16).astype(np.float32)
            node.input[1] = f"{node.name}/own"
            result.graph.initializer.append(numpy_helper.from_array(weight, node.input[1]))
        elif node.op_type == "GlobalAveragePool":
            node.input[0] = read[node.input[0]]
        elif node.name == "Add_9":
            node.input[1] = read[node.input[1]]
    return graph.topological_sort(result)


def db(expected, found):
    """SQNR of what differs between images."""
    return sqnr_db(expected - expected.mean(axis=0), found - expected.mean(axis=0))


def assert_equal_but_ties(found, expected):
    """A value next to the middle of two codes may be rounded the other way."""
    error = np.abs(found - expected)
    assert np.median(error) <= 2e-6 * np.abs(expected).max()
    assert db(expected, found) > 60


def test_it_is_the_float_graph_with_lowered_pairs(net):
    model, scales = net
    x = pixels(200, seed=3)
    expected = run_onnx(reference(model, scales), x)[0]
    made = quantize(model, scales, base="fp32")
    assert_equal_but_ties(simulate(made.model, x), expected)
    assert_equal_but_ties(run_onnx(made.model, x, exact=True)[0], expected)
    noise = db(run_onnx(model, x)[0], expected)
    assert noise < 25, "the graph is quantized"
    plain = quantize(model, replace(calibrate(model, [pixels(64)]), shifted=()), base="fp32").model
    assert noise > db(run_onnx(model, x)[0], simulate(plain, x)) + 0.5, "the eighth bit is worth something"


def test_offsets_are_those_of_the_quantized_graph(net):
    model, scales = net
    made = quantize(model, scales, base="fp32")
    assert set(made.offsets) == {"c0", "r0", "c2", "r2", "c3", "a", "r3", "c4", "r4"}
    x = pixels(50, seed=4)
    probes = []
    for proto, source in ((reference(model, scales), "r0"), (made.model, "r0")):
        probe = graph.copy_model(proto)
        probe.graph.output.append(onnx.helper.make_tensor_value_info(source, TensorProto.FLOAT, None))
        probes.append(run_onnx(probe, x, exact=True)[-1])
    np.testing.assert_allclose(probes[1] + made.offsets["r0"], probes[0], atol=1e-5)
    assert made.offsets["r0"] == scales.scales["r0"] * 128


KEPT = [
    *[{name: precision} for name in CONVS for precision in ("fp16", "fp32")],
    {"Conv_4": "fp32", "Conv_8": "fp16"},
    {"Add_9": "fp16"},
    {"GlobalAveragePool_13": "fp32"},
]


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: ",".join(f"{k}={v}" for k, v in kept.items()))
def test_kept_nodes_read_and_write_shifted_tensors(net, kept):
    model, scales = net
    x = pixels(200, seed=5)
    reasons = {name: Kept(precision, "kept") for name, precision in kept.items()}
    exact = run_onnx(model, x)[0]
    if kept.keys() <= set(CONVS):
        halves = [name for name, precision in kept.items() if precision == "fp16"]
        expected = run_onnx(reference(model, scales, kept), x)[0]
        assert_equal_but_ties(simulate(quantize(model, scales, base="fp32", kept=reasons).model, x), expected)
        expected = run_onnx(reference(model, scales, kept, halves=halves), x)[0]
        half = run_onnx(quantize(model, scales, kept=reasons).model, x, exact=True)[0]
        assert db(expected, half) > 27, "FP16 of the head alone is 40 dB"
    for base in ("fp16", "fp32"):
        found = run_onnx(quantize(model, scales, base=base, kept=reasons).model, x, exact=True)[0]
        assert db(exact, found) > 18


@pytest.mark.parametrize(("precision", "left"), [("fp16", 0.0), ("fp32", 64 * 2.0**-12), ("int8", 0.0)])
def test_a_bias_is_made_with_the_weights_that_its_conv_computes_with(precision, left):
    """FP16 and INT8 round the weights to 1, so that m times their sum is minus the bias."""
    nodes = [
        ("Conv", ["f", "w0"], "c", {}),
        ("Relu", ["c"], "r", {}),
        ("Conv", ["r", "w0"], "d", {}),  # stays INT8: the tensor has a scale
        ("Conv", ["r", "w1", "b"], "e", {}),
        ("Add", ["d", "e"], "y", {}),
    ]
    values = {"w0": np.ones((64, 64, 1, 1), np.float32), "w1": np.full((64, 64, 1, 1), 1 + 2.0**-12, np.float32)}
    model = pixel_graph(nodes, values | {"b": np.full(64, -8192, np.float32)}, x=("batch", 64, 4, 4))
    scales = Scales({"f": 1.0, "r": 1.0, "d": 1.0, "e": 1.0}, "minmax", 1, shifted=("r",))
    one = RoundedWeight(np.full((64, 64, 1, 1), 127, np.int8), np.full(64, 1 / 127, np.float32))
    kept = {} if precision == "int8" else {"Conv_4": Kept(precision, "")}
    made = quantize(model, scales, weights={"w1": one}, kept=kept).model
    node = next(n for n in made.graph.node if n.name == "Conv_4")
    bias = numpy_helper.to_array(graph.constants(made.graph)[node.input[2]])
    assert bias.dtype == (np.float16 if precision == "fp16" else np.float32)
    np.testing.assert_allclose(bias, 128 * left, atol=1e-3)


WIDE = "FP16 cannot hold its bias, which makes up for a shift"


@pytest.mark.parametrize(
    ("trunk", "kept", "precision", "why"),
    [
        ("fp16", None, "int8", "input of a Conv"),
        ("fp32", "fp16", "fp32", f"kept; {WIDE}"),
        ("fp16", "fp16", "fp32", f"kept; {WIDE}"),
        ("fp16", "fp32", "fp32", "kept"),
    ],
)
def test_a_conv_whose_bias_fp16_cannot_hold_is_fp32(trunk, kept, precision, why):
    """Channels that are large one at a time: no value nears 65,504, but m times the sum of the weights is above it."""
    nodes = [
        ("Conv", ["f", "w0"], "c", {}),
        ("Relu", ["c"], "r", {}),
        ("Conv", ["r", "w0"], "d", {}),  # stays INT8: the tensor has a scale
        ("Conv", ["r", "w1"], "e", {}),
        ("Add", ["d", "e"], "y", {}),
    ]
    values = {"w0": np.eye(16, dtype=np.float32), "w1": np.full((16, 16), 2.0 + 2**-12, np.float32)}
    values = {name: value.reshape(16, 16, 1, 1) for name, value in values.items()}
    model = pixel_graph(nodes, values, x=("batch", 16, 4, 4))
    x = np.zeros((4, 16, 4, 4), np.uint8)
    x[:, 0], x[0, 1] = 10, 255
    scales = Scales({"f": 2.0, "r": 64.0, "d": 2.0, "e": 20.0}, "minmax", 1, shifted=("r",))
    reasons = {} if kept is None else {"Conv_4": Kept(kept, "kept")}
    made = quantize(model, scales, trunk=trunk, kept=reasons)
    row = next(row for row in made.placements if row.node == "Conv_4")
    assert (row.precision, row.why) == (precision, why)
    node = next(n for n in made.model.graph.node if n.name == "Conv_4")
    bias = numpy_helper.to_array(graph.constants(made.model.graph)[node.input[2]])
    assert bias.dtype == np.float32
    assert bias.max() > 128 * 64 * 16 * 1.99
    assert reasons == ({} if kept is None else {"Conv_4": Kept(kept, "kept")})
    if kept is not None:
        np.testing.assert_allclose(bias, 128 * 64 * 16 * (2 + 2.0**-12), rtol=1e-6)  # of weights that stay as they are
        rows = quantize(model, scales, base="fp32", kept=reasons).placements
        assert [row.why for row in rows if row.node == "Conv_4"] == ["kept"], "float32 holds any bias"
    older = quantize(model, scales, base="fp32", kept={name: Kept("fp32", "") for name in reasons}).model
    expected = run_onnx(older, x, exact=True)[0]
    np.testing.assert_allclose(run_onnx(made.model, x, exact=True)[0], expected, atol=70)  # FP16 behind 262,208


def test_both_forms_compute_the_same(net):
    model, scales = net
    x = pixels(200, seed=6)
    older = run_onnx(quantize(model, scales, base="fp32").model, x, exact=True)[0]
    newer = quantize(model, scales).model
    assert db(older, run_onnx(newer, x, exact=True)[0]) > 37
    fused = run_onnx(newer, x)[0]
    assert db(older, fused) > 25, "in INT8 kernels of ONNX Runtime"


def test_weights_that_are_given_are_those_of_the_shift(net):
    model, scales = net
    random = np.random.default_rng(0)
    weights = {}
    for name in ("w0", "w1", "w2", "w3"):
        near = round_to_nearest(numpy_helper.to_array(graph.constants(model.graph)[name]))
        codes = np.clip(near.codes + random.integers(-9, 10, near.codes.shape), -127, 127).astype(np.int8)
        weights[name] = RoundedWeight(codes, near.scales)
    x = pixels(200, seed=7)
    expected = run_onnx(reference(model, scales, weights=weights), x)[0]
    made = quantize(model, scales, weights=weights, base="fp32").model
    assert_equal_but_ties(simulate(made, x), expected)
    assert db(expected, simulate(quantize(model, scales, base="fp32").model, x)) < 10, "other weights"


# --- codes ------------------------------------------------------------------------------------------------------------


def codes_in(model, name):
    """A weight's codes and scales in a file; behind a pair, those that QuantizeLinear makes."""
    table = graph.constants(model.graph)
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == f"{name}/dequantized")
    scales = numpy_helper.to_array(table[node.input[1]])
    if node.input[0] in table:
        return numpy_helper.to_array(table[node.input[0]]), scales
    probe = graph.copy_model(model)
    probe.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], TensorProto.INT8, None))
    return run_onnx(probe, pixels(1), exact=True)[-1], scales


@given(
    exponents=st.lists(st.floats(-14, 6), min_size=4, max_size=4),
    trunk=st.sampled_from(["fp32", "fp16"]),
    base=st.sampled_from(["fp16", "fp32"]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_all_codes_survive(exponents, trunk, base):
    scales = np.maximum(np.float32(2) ** np.array(exponents, np.float32), np.float32(2**-14))
    scales = scales.astype(np.float16).astype(np.float32) if trunk == "fp16" else scales
    codes = np.resize(np.arange(-127, 128), (4, 4, 8, 8)).astype(np.int8)
    assert len(np.unique(codes)) == 255
    given_weight = RoundedWeight(codes, scales)
    model = pixel_graph([("Conv", ["f", "w"], "y", {})], {"w": floats(4, 4, 8, 8)}, x=("batch", 4, 8, 8))
    made = quantize(model, Scales({"f": 2.0}, "minmax", 1), weights={"w": given_weight}, base=base, trunk=trunk).model
    table = graph.constants(made.graph)
    node = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == "w/dequantized")
    stored = numpy_helper.to_array(table[node.input[1]])
    assert stored.dtype == (np.float16 if (base, trunk) == ("fp16", "fp16") else np.float32)
    np.testing.assert_array_equal(stored.astype(np.float32), scales)
    if base == "fp16":
        np.testing.assert_array_equal(numpy_helper.to_array(table[node.input[0]]), codes)
    else:
        probe = graph.copy_model(made)
        probe.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], TensorProto.INT8, None))
        found = run_onnx(probe, pixels(1, 4, 8, 8), exact=True)[-1]
        np.testing.assert_array_equal(found, codes)
        values = numpy_helper.to_array(table["w"])
        np.testing.assert_array_equal(np.rint(values.astype(np.float64) / scales[:, None, None, None]), codes)


def test_a_weight_of_a_kept_and_of_a_quantized_conv_stays_both(net):
    model, scales = net
    for base, kind in (("fp16", np.float16), ("fp32", np.float32)):
        made = quantize(model, scales, base=base, kept={"Conv_8": Kept("fp16", "")}).model
        nodes, table = {n.name: n for n in made.graph.node}, graph.constants(made.graph)
        weight = numpy_helper.to_array(graph.constants(model.graph)["w1"])
        np.testing.assert_array_equal(numpy_helper.to_array(table[nodes["Conv_8"].input[1]]), weight.astype(kind))
        near = round_to_nearest(weight)
        found = codes_in(made, nodes["Conv_4"].input[1].removesuffix("/dequantized"))
        np.testing.assert_array_equal(found[0], near.codes)
        np.testing.assert_array_equal(found[1], near.scales)


# --- the trunk --------------------------------------------------------------------------------------------------------


def types_of(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    return types | {t.name: t.data_type for t in inferred.initializer}


def precision_of(model, name):
    """The float types that a node reads and writes."""
    node = next(n for n in model.graph.node if n.name == name)
    types = types_of(model)
    return {types[i] for i in (*node.input, *node.output)} & {TensorProto.FLOAT, TensorProto.FLOAT16}


def test_the_trunk_is_fp32_and_the_head_fp16(net):
    model, scales = net
    made = quantize(model, scales)
    head = {"Flatten_14", "MatMul_15", "Add_16"}
    for node in made.model.graph.node:
        if node.op_type != "Cast":
            half = node.name in head
            assert precision_of(made.model, node.name) == {TensorProto.FLOAT16 if half else TensorProto.FLOAT}, node
    assert "GlobalAveragePool_13/lifted" in {n.name for n in made.model.graph.node}
    rows = {row.node: row.precision for row in made.placements}
    assert {name for name, precision in rows.items() if precision == "fp16"} == head
    casts = [n for n in made.model.graph.node if n.op_type == "Cast" and n.output[0] != "f"]
    assert len(casts) == 2, "to the head, and from it"


def test_a_trunk_in_fp16_has_scales_in_fp16_and_is_made_with_them(net):
    model, scales = net
    made = quantize(model, scales, trunk="fp16")
    table = graph.constants(made.model.graph)
    rounded = scales.of_type("fp16")
    for tensor, scale in rounded.scales.items():
        stored = numpy_helper.to_array(table[f"{tensor}/scale"])
        assert stored == scale
        if tensor in SHIFTED:
            assert made.offsets[tensor] == 128 * scale
            assert scale != scales.scales[tensor], "rounding a scale changes it"
    for name in ("w0", "w1", "w2", "w3"):
        near = round_to_nearest(numpy_helper.to_array(graph.constants(model.graph)[name]), "fp16")
        codes, stored = codes_in(made.model, name)
        np.testing.assert_array_equal(codes, near.codes)
        np.testing.assert_array_equal(stored, near.scales)
    for name in ("Conv_4", "Add_9", "Relu_10", "MatMul_15"):
        assert precision_of(made.model, name) == {TensorProto.FLOAT16}
    # A mean that is lower by 128 scales would be rounded to the grid of those.
    for name in ("GlobalAveragePool_13", "GlobalAveragePool_13/lifted"):
        assert precision_of(made.model, name) == {TensorProto.FLOAT}
    x = pixels(200, seed=8)
    assert db(run_onnx(reference(model, rounded), x)[0], run_onnx(made.model, x, exact=True)[0]) > 24


GATED = {
    "a Swish": [("Sigmoid", ["c"], "s", {}), ("Mul", ["c", "s"], "a", {})],
    "squeeze and excitation": [
        ("GlobalAveragePool", ["c"], "q", {}),
        ("Sigmoid", ["q"], "s", {}),
        ("Mul", ["c", "s"], "a", {}),
    ],
}


@pytest.mark.parametrize("name", GATED)
def test_what_is_no_part_of_an_int8_kernel_is_fp16(name):
    nodes = [("Conv", ["f", "w"], "c", {}), *GATED[name], ("Conv", ["a", "w"], "y", {})]
    model = pixel_graph(nodes, {"w": floats(4, 4, 1, 1)})
    made = quantize(model, calibrate(model, [pixels(8)]))
    rows = {row.op: row.precision for row in made.placements}
    assert (rows["Sigmoid"], rows["Mul"]) == ("fp16", "fp16")
    for node in made.model.graph.node:
        if node.op_type in ("Sigmoid", "Mul"):
            assert precision_of(made.model, node.name) == {TensorProto.FLOAT16}


def test_only_clips_in_fp16_get_its_bounds(net):
    model, scales = net
    for trunk, highest in (("fp32", -LOWEST), ("fp16", 65504)):
        made = quantize(model, scales, trunk=trunk).model
        table = graph.constants(made.graph)
        clips = [n for n in made.graph.node if n.op_type == "Clip"]
        assert [n.name for n in clips] == ["Relu_3", "Relu_7", "Relu_10", "Clip_12"]
        assert [numpy_helper.to_array(table[n.input[2]]) for n in clips[:3]] == [highest] * 3
    kept = {"Conv_4": Kept("fp16", ""), "Conv_2": Kept("fp16", "")}
    made = quantize(model, scales, kept=kept).model
    table = graph.constants(made.graph)
    bounds = {n.name: numpy_helper.to_array(table[n.input[2]]) for n in made.graph.node if n.op_type == "Clip"}
    assert bounds["Relu_3"] == 65504, "behind a Conv in FP16"
    assert bounds["Relu_10"] == -LOWEST


def test_to_half_narrows_no_bound_of_a_node_in_fp32():
    nodes = [("Clip", ["f", "low", "high"], "a", {}), ("Clip", ["a", "low", "top"], "y", {})]
    values = {"low": np.float32(-1), "high": np.float32(-LOWEST), "top": np.float32(-LOWEST)}
    made = to_half(pixel_graph(nodes, values), keep=["Clip_1"])
    table = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert (table["high"].dtype, table["high"]) == (np.float32, -LOWEST)
    assert (table["top"].dtype, table["top"]) == (np.float16, 65504)


# --- placement and TensorRT -------------------------------------------------------------------------------------------


def test_the_placement_names_what_is_shifted_and_what_is_not(net):
    model, scales = net
    why = {row.node: row.why for row in quantize(model, scales).placements}
    for name in ("Relu_3", "Relu_7", "Relu_10", "Clip_12"):
        assert why[name].endswith("; a Clip that lowers it by 128 scales: 255 levels instead of 128")
    assert why["Relu_5"].endswith(
        "; not shifted: Conv reads it with padding, whose zeros would stand for 128 scales ('Conv_6')"
    )


def test_a_tensor_that_only_kept_nodes_read_is_not_shifted(net):
    model, scales = net
    made = quantize(model, scales, kept={"Conv_8": Kept("fp16", "")})
    assert "r2" not in made.offsets
    assert {"r0", "r3", "r4"} < set(made.offsets)


def test_tensorrt_builds_the_same_kernels(quantized, tmp_path):
    rtx = find_tensorrt("rtx")
    if rtx is None:
        pytest.skip(why_missing()["rtx"])
    exported, scales, _, _ = quantized
    names = allowed(find_regions(exported.model), "always")
    assert len(names) >= 5
    plain, shifted = [], []
    for found, moved in ((plain, ()), (shifted, names)):
        path = save_model(
            quantize(exported.model, replace(scales, shifted=moved)).model, tmp_path / f"{len(moved)}.onnx"
        )
        plan = tmp_path / f"{len(moved)}.plan"
        found.append(build_engine(path, plan, precision="int8", profile=BatchProfile(1, 4, 8), trt=rtx).found)
    assert plain[0].convolutions == shifted[0].convolutions == {"int8": 15}
    assert plain[0].by_kind == shifted[0].by_kind
