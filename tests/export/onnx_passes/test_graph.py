import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.errors import ProjectError
from export.onnx_passes import graph, signature
from export.onnx_passes.file import check_model, load_model, save_model
from export.onnx_passes.folding import fold_affine, fold_channel_order, fold_pad_into_maxpool, unfolded_convs
from export.onnx_passes.layer_names import find_layer, keras_layer, name_by_layer
from export.preprocessing import PreprocessingSpec
from tests.export.conftest import run_onnx
from tests.export.tiny_graphs import X, floats, operators, same, unchanged
from tests.export.tiny_graphs import graph as tiny

# --- tidying up -------------------------------------------------------------------------------------------------------


def test_noops_go_and_everything_else_stays():
    model = tiny(
        [
            ("Identity", ["x"], "a", {}),
            ("Reshape", ["a", "same"], "b", {}),
            ("Transpose", ["b"], "c", {"perm": [0, 1, 2, 3]}),
            ("Transpose", ["c"], "d", {"perm": [0, 2, 3, 1]}),
            ("Relu", ["d"], "e", {}),
            ("Identity", ["e"], "y", {}),
        ],
        {"same": np.array([-1, 4, 6, 6])},
    )
    result = unchanged(graph.strip_noops, model)
    assert operators(result) == ["Transpose", "Relu"]
    assert result.graph.output[0].name == "y"
    assert not result.graph.initializer
    same(model, result)


@pytest.mark.parametrize("shape", [[-1, 6, 6, 4], [-1, 144], [-1, 4, 36, 1]])
def test_a_reshape_that_does_something_stays(shape):
    outputs = {"y": ["batch", *[None] * (len(shape) - 1)]}
    model = tiny([("Reshape", ["x", "s"], "y", {})], {"s": np.array(shape)}, shapes=outputs)
    assert operators(graph.strip_noops(model)) == ["Reshape"]


def test_a_noop_between_input_and_output_stays():
    model = tiny([("Identity", ["x"], "y", {})])
    assert operators(graph.strip_noops(model)) == ["Identity"]


def test_casts_are_followed_up_to_what_is_known():
    half, single = {"to": TensorProto.FLOAT16}, {"to": TensorProto.FLOAT}
    model = tiny([("Relu", ["x"], "r", {}), ("Cast", ["r"], "a", half), ("Cast", ["a"], "y", single)])
    written = graph.producers(model.graph)
    assert [graph.before_casts(name, written) for name in ("y", "a", "r", "x", "absent")] == [
        *("r", "r", "r", "x", "absent")
    ]
    assert graph.before_casts("y", written, {"a", "r"}) == "a"
    assert graph.before_casts("y", written, {"y": 1}) == "y"


def test_a_node_without_inputs_stays():
    model = tiny([("RandomNormal", [], "r", {"shape": [1, 4, 6, 6]}), ("Add", ["x", "r"], "y", {})])
    assert sorted(operators(graph.strip_noops(model))) == ["Add", "RandomNormal"]


def test_a_shape_island_becomes_a_constant():
    model = tiny(
        [
            ("Shape", ["x"], "shape", {}),
            ("Gather", ["shape", "zero"], "n", {"axis": 0}),
            ("Concat", ["n", "rest"], "target", {"axis": 0}),
            ("Relu", ["x"], "r", {}),
            ("Reshape", ["r", "target"], "y", {}),
        ],
        {"zero": np.array([0]), "rest": np.array([-1])},
        shapes={"y": ["batch", None]},
    )
    result = unchanged(graph.constant_reshape, model)
    assert operators(result) == ["Relu", "Reshape"]
    target = onnx.numpy_helper.to_array(result.graph.initializer[0])
    assert target.tolist() == [0, 4 * 6 * 6]
    assert graph.tensor_shapes(graph.strip_noops(result))["y"] == ("batch", 144)
    for n in (1, 2, 7):
        same(model, result, floats(n, 4, 6, 6))


def test_a_constant_target_keeps_the_batch():
    model = tiny([("Reshape", ["x", "s"], "y", {})], {"s": np.array([-1, 144])}, shapes={"y": [None, None]})
    result = graph.constant_reshape(model)
    assert onnx.numpy_helper.to_array(result.graph.initializer[0]).tolist() == [0, 144]
    across = tiny([("Reshape", ["x", "s"], "y", {})], {"s": np.array([-1, 72])}, shapes={"y": [None, None]})
    assert graph.constant_reshape(across) == graph.topological_sort(across)


def test_sort_depends_on_the_graph_alone_and_drops_what_is_unused():
    nodes = [
        ("Relu", ["x"], "a", {}),
        ("Abs", ["x"], "b", {}),
        ("Add", ["a", "b"], "y", {}),
        ("Neg", ["b"], "unused", {}),
    ]
    model = tiny(nodes)
    shuffled = tiny(nodes)
    order = [shuffled.graph.node[i] for i in (1, 3, 0, 2)]
    shuffled.graph.ClearField("node")
    shuffled.graph.node.extend(order)
    first, second = unchanged(graph.topological_sort, model), graph.topological_sort(shuffled)
    assert [n.output[0] for n in first.graph.node] == [n.output[0] for n in second.graph.node] == ["a", "b", "y"]


def test_a_cycle_is_an_error():
    model = tiny([("Relu", ["x"], "a", {}), ("Add", ["a", "x"], "y", {})])
    model.graph.node[0].input[0] = "y"
    with pytest.raises(ProjectError, match="without cycles"):
        graph.topological_sort(model)


def test_convert_opset_keeps_names_metadata_and_answers():
    model = tiny([("Relu", ["x"], "a", {}), ("GlobalAveragePool", ["a"], "y", {})])
    onnx.helper.set_model_props(model, {"classes": "[]"})
    result = unchanged(graph.convert_opset, model, 19)
    assert (graph.opset(model), graph.opset(result)) == (17, 19)
    assert result.ir_version == 9
    assert [p.key for p in result.metadata_props] == ["classes"]
    assert [n.output[0] for n in result.graph.node] == ["a", "y"]
    same(model, result)


def test_convert_opset_refuses_what_it_cannot():
    model = tiny([("Relu", ["x"], "y", {})])
    with pytest.raises(ProjectError, match="opset 99"):
        graph.convert_opset(model, 99)


def test_counts():
    model = tiny(
        [("Relu", ["x"], "a", {}), ("Relu", ["a"], "b", {}), ("Mul", ["b", "k"], "y", {})], {"k": floats(4, 1, 1)}
    )
    assert graph.op_counts(model) == {"Mul": 1, "Relu": 2}
    assert graph.parameter_count(model) == 4


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def test_rename_batch():
    model = tiny([("Relu", ["x"], "y", {})], x=("unk__7", 4, 6, 6), shapes={"y": ["unk__8", 4, 6, 6]})
    result = unchanged(signature.rename_batch, model)
    assert graph.tensor_shapes(result) == {"x": ("batch", 4, 6, 6), "y": ("batch", 4, 6, 6)}


def test_a_fixed_batch_is_an_error():
    model = tiny([("Relu", ["x"], "y", {})], x=(1, 4, 6, 6), shapes={"y": [1, 4, 6, 6]})
    with pytest.raises(ProjectError, match="symbolic batch"):
        signature.rename_batch(model)


def test_rename_tensor_everywhere():
    model = tiny([("Relu", ["x"], "a", {}), ("Add", ["a", "a"], "y", {})])
    result = unchanged(signature.rename_tensor, model, "a", "z")
    assert [list(n.input) for n in result.graph.node] == [["x"], ["z", "z"]]
    assert signature.rename_tensor(model, "y", "logits").graph.output[0].name == "logits"
    with pytest.raises(ProjectError, match="free tensor name"):
        signature.rename_tensor(model, "a", "y")


def first_conv(*before):
    """An NHWC graph: what is in `before`, Transpose, Conv."""
    nodes = [*before, ("Transpose", [before[-1][2] if before else "x"], "t", {"perm": [0, 3, 1, 2]})]
    nodes.append(("Conv", ["t", "w"], "y", {"kernel_shape": [3, 3]}))
    return tiny(nodes, {"w": floats(5, 3, 3, 3), "two": np.float32(2)}, x=("batch", 6, 6, 3))


PIXELS = np.random.default_rng(5).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch", "unit", "none"])
@pytest.mark.parametrize("before", [(), (("Mul", ["x", "two"], "m", {}),)], ids=["conv first", "something before"])
def test_preprocessing_in_the_graph_is_the_reference(mode, before):
    model, spec = first_conv(*before), PreprocessingSpec.from_mode(mode)
    result = unchanged(signature.prepend_preprocessing, model, spec)
    assert result.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    expected, received = run_onnx(model, spec.apply(PIXELS))[0], run_onnx(result, PIXELS)[0]
    np.testing.assert_allclose(received, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    steps = operators(result)
    assert ("Gather" in steps) == (mode == "caffe" and bool(before))
    assert steps.count("Sub") == (mode in ("caffe", "tf", "torch"))
    assert steps.count("Mul") == (mode in ("tf", "torch", "unit")) + bool(before)


def test_channel_order_goes_into_the_first_conv_only_where_it_can():
    model = first_conv()
    folded = unchanged(fold_channel_order, model, (2, 1, 0))
    x = floats(2, 6, 6, 3)
    np.testing.assert_allclose(run_onnx(folded, x)[0], run_onnx(model, x[..., ::-1])[0], rtol=1e-4, atol=1e-5)
    assert fold_channel_order(first_conv(("Mul", ["x", "two"], "m", {})), (2, 1, 0)) is None
    two_readers = first_conv(("Relu", ["x"], "r", {}))
    assert fold_channel_order(two_readers, (2, 1, 0)) is None


def test_preprocessing_wants_a_float_nhwc_input():
    with pytest.raises(ProjectError, match="float32 input"):
        signature.prepend_preprocessing(tiny([("Relu", ["x"], "y", {})]), PreprocessingSpec.from_mode("tf"))


def test_softmax_is_a_second_output():
    model = tiny([("Relu", ["x"], "y", {})], x=("batch", 5), shapes={"y": ["batch", 5]})
    result = unchanged(signature.append_softmax, model, "y", "p")
    logits, probabilities = run_onnx(result, floats(3, 5))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    with pytest.raises(ProjectError, match="an output 'nope'"):
        signature.append_softmax(model, "nope", "p")


def scores(width=5):
    model = tiny([("Relu", ["x"], "y", {})], x=("batch", width), shapes={"y": ["batch", width]})
    return signature.append_softmax(model, "y", "p")


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_is_two_more_outputs(k):
    result = unchanged(signature.append_top_k, scores(), "p", k)
    assert [o.name for o in result.graph.output] == ["y", "p", "top_probabilities", "top_classes"]
    x = floats(4, 5)
    x[1] = 0.0  # all equal: ONNX Runtime puts the lower class first
    _, probabilities, values, classes = run_onnx(result, x)
    expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(probabilities, expected, axis=1))
    assert (values.dtype, classes.dtype) == (np.float32, np.int32)
    assert graph.tensor_shapes(result)["top_classes"] == ("batch", k)
    check_model(result)


@pytest.mark.parametrize("k", [-1, 0, 6])
def test_top_k_of_too_few_classes(k):
    with pytest.raises(ProjectError, match=f"export.top_k from 1 to 5, the number of classes. Received: {k} "):
        signature.append_top_k(scores(), "p", k)


def test_top_k_wants_an_output_of_classes():
    with pytest.raises(ProjectError, match=r"an output 'nope' of shape \(batch, classes\)"):
        signature.append_top_k(scores(), "nope", 1)
    with pytest.raises(ProjectError, match="an output 'x'"):
        signature.append_top_k(scores(), "x", 1)


# --- folding ----------------------------------------------------------------------------------------------------------

CHAIN = [
    ("Conv", ["x", "w", "b"], "c", {"kernel_shape": [3, 3]}),
    ("Mul", ["c", "gain"], "m", {}),
    ("Sub", ["m", "mean"], "s", {}),
    ("Div", ["s", "std"], "d", {}),
    ("Add", ["shift", "d"], "a", {}),
    ("Relu", ["a"], "y", {}),
]
WEIGHTS = {
    "w": floats(5, 4, 3, 3),
    "b": floats(5, seed=2),
    "gain": floats(1, 5, 1, 1, seed=3),
    "mean": floats(5, 1, 1, seed=4),
    "std": np.float32(1.7),
    "shift": floats(1, 5, 1, 1, seed=6),
}


def test_a_batch_norm_behind_a_conv_is_folded():
    model = tiny(CHAIN, WEIGHTS)
    assert unfolded_convs(model) == ["Conv_0 (Mul)"]
    result = unchanged(fold_affine, model)
    assert operators(result) == ["Conv", "Relu"]
    assert unfolded_convs(result) == []
    same(model, result)


def test_a_conv_without_bias_and_with_groups_gets_one():
    weights = {**WEIGHTS, "w": floats(4, 2, 3, 3), "gain": floats(1, 4, 1, 1), "shift": floats(4, 1, 1)}
    nodes = [("Conv", ["x", "w"], "c", {"group": 2}), ("Mul", ["c", "gain"], "m", {}), ("Add", ["m", "shift"], "y", {})]
    model = tiny(nodes, {k: weights[k] for k in ("w", "gain", "shift")})
    result = fold_affine(model)
    assert operators(result) == ["Conv"]
    assert len(result.graph.node[0].input) == 3
    same(model, result)


def test_two_convs_on_one_weight_stay_apart():
    nodes = [
        ("Conv", ["x", "w"], "c", {}),
        ("Conv", ["x", "w"], "e", {}),
        ("Mul", ["c", "gain"], "m", {}),
        ("Add", ["m", "e"], "y", {}),
    ]
    model = tiny(nodes, {k: WEIGHTS[k] for k in ("w", "gain")})
    result = fold_affine(model)
    assert sorted(operators(result)) == ["Add", "Conv", "Conv"]
    same(model, result)


@pytest.mark.parametrize(
    "other",
    [
        ("Relu", ["c"], "z", {}),  # the Conv has a second reader
        ("Identity", ["c"], "z", {}),
    ],
)
def test_a_conv_with_two_readers_is_reported_not_folded(other):
    nodes = [CHAIN[0], ("Mul", ["c", "gain"], "y", {}), other]
    model = tiny(nodes, {k: WEIGHTS[k] for k in ("w", "b", "gain")}, outputs=("y", "z"))
    result = fold_affine(model)
    assert "Mul" in operators(result)
    assert unfolded_convs(result) == ["Conv_0 (Mul)"]


def test_a_constant_that_is_not_per_channel_is_not_folded():
    nodes = [CHAIN[0], ("Mul", ["c", "plane"], "y", {})]
    model = tiny(nodes, {"w": WEIGHTS["w"], "b": WEIGHTS["b"], "plane": floats(4, 4)})
    assert operators(fold_affine(model)) == ["Conv", "Mul"]


def test_folding_into_infinity_is_an_error():
    nodes = [CHAIN[0], ("Div", ["c", "std"], "y", {})]
    model = tiny(nodes, {"w": WEIGHTS["w"], "b": WEIGHTS["b"], "std": np.zeros((1, 5, 1, 1), np.float32)})
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(ProjectError, match="Conv_0"):
        fold_affine(model)


def test_a_pad_behind_a_relu_becomes_the_pools_own():
    nodes = [
        ("Relu", ["x"], "r", {}),
        ("Pad", ["r", "pads", "value"], "p", {}),
        ("MaxPool", ["p"], "y", {"kernel_shape": [3, 3], "strides": [2, 2]}),
    ]
    model = tiny(nodes, {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.float32(0)})
    result = unchanged(fold_pad_into_maxpool, model)
    assert operators(result) == ["Relu", "MaxPool"]
    same(model, result, -np.abs(X), tolerance=0)
    same(model, result, tolerance=0)


# --- names ------------------------------------------------------------------------------------------------------------

TREE = {"conv": {}, "conv_1": {}, "inner": {"bn": {}, "add": {}}}


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("net_1/conv_1/convolution", "conv"),
        ("net_1/conv_1_2/convolution:0", "conv_1"),
        ("net/conv_1/convolution", "conv_1"),
        ("Partitioned/net_1/inner_1/bn_1/batchnorm/add_1", "bn"),
        ("net_1/inner_1/add_1/Add", "add"),
        ("net_1/inner_1/odd/Add", "inner"),
        ("Conv__12", None),
        ("other_1/conv_1/x", None),
    ],
)
def test_find_layer(path, layer):
    assert find_layer([path], "net", TREE) == layer


def test_names_carry_layers_and_stay_unique():
    model = tiny(
        [
            ("Conv", ["x", "net_1/conv_1/w:0"], "Conv__3:0", {}),
            ("Relu", ["Conv__3:0"], "net_1/inner_1/bn_1/Relu:0", {}),
            ("Relu", ["net_1/inner_1/bn_1/Relu:0"], "net_1/inner_1/bn_1/Relu_1:0", {}),
            ("Abs", ["net_1/inner_1/bn_1/Relu_1:0"], "y", {}),
        ],
        {"net_1/conv_1/w:0": floats(5, 4, 3, 3)},
    )
    result = unchanged(name_by_layer, model, "net", TREE)
    assert [n.name for n in result.graph.node] == ["conv/Conv", "bn/Relu", "bn/Relu_2", "bn/Abs"]
    assert [n.output[0] for n in result.graph.node] == ["conv/Conv:0", "bn/Relu:0", "bn/Relu_2:0", "y"]
    assert result.graph.initializer[0].name == "conv/Conv/weight"
    assert keras_layer("conv/Conv/weight") == "conv"
    same(model, result)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_round_trip_and_leave_nothing_behind(tmp_path):
    model = tiny(CHAIN, WEIGHTS)
    path = save_model(model, tmp_path / "new" / "model.onnx")
    assert load_model(path) == model
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = save_model(tiny(CHAIN, WEIGHTS), tmp_path / "model.onnx")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny([("Relu", ["x"], "y", {})]), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95, 0.999])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = save_model(tiny(CHAIN, WEIGHTS), tmp_path / "model.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ProjectError, match="truncated"):
        load_model(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not onnx", b"\x89HDF\r\n\x1a\n" + bytes(100), b"\n\x00" * 8])
def test_other_formats_are_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ProjectError, match="Expected an ONNX"):
        load_model(path)
    with pytest.raises(ProjectError, match="no file"):
        load_model(tmp_path / "missing.onnx")


def test_an_invalid_graph_is_an_export_error():
    model = tiny([("Relu", ["x"], "y", {})])
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ProjectError, match="valid ONNX"):
        check_model(model)
