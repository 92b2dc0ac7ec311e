import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from export.errors import ProjectError
from export.fp16 import convert
from export.fp16.convert import preprocessing_nodes, to_half, unfit_for_fp16
from export.fp16.weight_rounding import rounded_first_conv
from export.metrics.distances import compare, sqnr_db
from export.onnx_passes import graph
from tests.export.conftest import run_onnx
from tests.export.keras_models import images
from tests.export.tiny_graphs import floats, pixel_graph
from tests.export.tiny_graphs import graph as tiny


def element_types(model):
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {t.name: t.data_type for t in inferred.initializer}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        types[info.name] = info.type.tensor_type.elem_type
    return types


@pytest.fixture(scope="module")
def halved(exported):
    before = exported.model.SerializeToString()
    model = to_half(exported.model)
    assert exported.model.SerializeToString() == before
    return exported, model


def test_agreement(halved):
    exported, model = halved
    pixels = images(16, seed=9)
    result = compare(run_onnx(exported.model, pixels)[0], run_onnx(model, pixels)[0])
    assert result.sqnr_db >= 50
    assert result.top1_agreement == 1
    assert result.max_abs > 0  # it really computed in another type


def test_types(halved):
    _, model = halved
    types = element_types(model)
    assert graph.opset(model) >= 19
    assert types["images"] == TensorProto.UINT8
    assert types["logits"] == types["probabilities"] == TensorProto.FLOAT
    seen = set()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Relu", "MatMul", "MaxPool", "GlobalAveragePool"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}, node.name
        if node.op_type == "Softmax":
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
        seen.add(node.op_type)
    assert {"Conv", "MatMul", "Softmax"} <= seen
    onnx.checker.check_model(model, full_check=True)


def test_preprocessing_is_fp32_until_right_before_the_first_conv(halved):
    _, model = halved
    types, made = element_types(model), graph.producers(model.graph)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    cast = made[conv.input[0]]
    assert cast.op_type == "Cast"
    assert types[cast.input[0]] == TensorProto.FLOAT
    for node in preprocessing_nodes(model)[:-1]:
        assert types[node.output[0]] == TensorProto.FLOAT, node.name
    assert preprocessing_nodes(model)[0].op_type == "Cast"


def test_no_more_casts_than_needed(halved):
    """uint8 -> FP32, FP32 -> FP16 before the first Conv, FP16 -> FP32 logits: the Softmax reads the logits."""
    exported, model = halved
    assert graph.op_counts(model)["Cast"] == 3
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    assert list(softmax.input) == ["logits"]
    rest = {k: v for k, v in graph.op_counts(model).items() if k != "Cast"}
    assert rest == {k: v for k, v in graph.op_counts(exported.model).items() if k != "Cast"}


def test_names_and_metadata_stay(halved):
    exported, model = halved
    assert {p.key: p.value for p in model.metadata_props} == {p.key: p.value for p in exported.model.metadata_props}
    names = [n.name for n in model.graph.node]
    assert {n.name for n in exported.model.graph.node} <= set(names)
    assert len(set(names)) == len(names)
    assert graph.tensor_shapes(model)["logits"] == ("batch", 5)


@pytest.mark.parametrize("value", [7e4, np.nan, -np.inf])
def test_a_weight_beyond_fp16_is_named(v1, value):
    model = graph.copy_model(v1.model)
    tensor = next(t for t in model.graph.initializer if t.name == "conv2_block1_2_conv/Conv/weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight[0, 0, 0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    with pytest.raises(ProjectError, match="conv2_block1_2_conv/Conv/weight"):
        to_half(model)


def test_a_constant_of_the_fp32_part_may_be_larger():
    nodes = [
        ("Cast", ["x"], "f", {"to": TensorProto.FLOAT}),
        ("Mul", ["f", "big"], "m", {}),
        ("Mul", ["m", "small"], "s", {}),
        ("Conv", ["s", "w"], "y", {}),
    ]
    constants = {"big": np.float32(1e6), "small": np.float32(1e-7), "w": floats(2, 4, 3, 3)}
    model = tiny(nodes, constants, dtype=TensorProto.UINT8)
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 6), dtype=np.uint8)
    expected, received = run_onnx(model, x)[0], run_onnx(to_half(model), x)[0]
    assert np.abs(received - expected).max() <= 2e-3 * np.abs(expected).max()


def test_rounding_errors_of_the_first_conv_cancel_over_the_channels():
    weight = floats(8, 3, 3, 3, seed=3)
    weight[:, 2] = -weight[:, 0] - weight[:, 1] + 0.01 * floats(8, 3, 3, seed=4)  # they nearly cancel on grey
    nodes = [("Cast", ["x"], "f", {"to": TensorProto.FLOAT}), ("Conv", ["f", "w"], "y", {})]
    model = tiny(nodes, {"w": weight}, x=("batch", 3, 6, 6), dtype=TensorProto.UINT8)
    (carried,) = rounded_first_conv(model).values()
    plain = weight.astype(np.float16).astype(np.float32)
    assert np.array_equal(carried, carried.astype(np.float16)), "already FP16 values: converting changes nothing more"
    unit = np.spacing(np.abs(weight).astype(np.float16)).astype(np.float64)
    assert np.all(np.abs(carried - weight) <= unit.max(axis=1, keepdims=True))
    sums = np.abs(carried.sum(axis=1, dtype=np.float64) - weight.sum(axis=1, dtype=np.float64))
    assert np.all(sums <= unit.min(axis=1))
    grey = np.repeat(np.random.default_rng(1).integers(0, 256, (4, 1, 6, 6), dtype=np.uint8), 3, axis=1)
    exact = run_onnx(model, grey)[0].astype(np.float64)

    def error(values):
        return np.abs(
            run_onnx(tiny(nodes, {"w": values}, ("batch", 3, 6, 6), dtype=TensorProto.UINT8), grey)[0] - exact
        )

    assert error(carried).max() < error(plain).max()
    assert np.square(error(carried)).mean() < 0.7 * np.square(error(plain)).mean()
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight), "the model passed in is as it was"


# --- what must stay FP32 ----------------------------------------------------------------------------------------------

CHAIN = [
    ("Cast", ["x"], "f", {"to": TensorProto.FLOAT}),
    ("Mul", ["f", "unit"], "p", {}),
    ("Conv", ["p", "a"], "s", {}),
    ("Relu", ["s"], "r", {}),
    ("MaxPool", ["r"], "m", {"kernel_shape": [2, 2]}),
    ("Conv", ["m", "b"], "t", {}),
    ("Relu", ["t"], "u", {}),
    ("Conv", ["u", "c"], "y", {}),
]


def chain(**weights):
    constants = {
        "unit": np.float32(1 / 255), "a": floats(4, 4, 1, 1, seed=1), "b": floats(4, 4, 1, 1, seed=2),
        "c": floats(2, 4, 1, 1, seed=3),
    }  # fmt: skip
    return tiny(CHAIN, constants | weights, dtype=TensorProto.UINT8)


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 6), dtype=np.uint8)


def test_nothing_is_unfit_without_a_reason(v1):
    assert unfit_for_fp16(v1.model, {"conv1_relu/Relu:0": 32_751.0}) == {}
    assert unfit_for_fp16(chain(), {"s": 32_751.9, "x": 1e9, "f": 1e9, "elsewhere": 1e9}) == {}


@pytest.mark.parametrize("limit", [32_752.0, 1e6, np.inf])
def test_nodes_around_a_large_activation_are_unfit(limit):
    """The Conv that writes it, and the next one behind Relu and MaxPool; not what follows that one."""
    found = unfit_for_fp16(chain(), {"s": limit})
    assert set(found) == {"Conv_2", "Relu_3", "MaxPool_4", "Conv_5"}
    assert all(f"{limit:,.0f}" in why for why in found.values())


@pytest.mark.parametrize(
    ("weight", "reason"),
    [(65_505.0, "65,505"), (-1e6, "1,000,000"), (np.nan, "nan")],
)
def test_a_node_with_a_weight_beyond_fp16_is_unfit(weight, reason):
    kernel = floats(4, 4, 1, 1, seed=2)
    kernel[3, 2] = weight
    found = unfit_for_fp16(chain(b=kernel), {})
    assert list(found) == ["Conv_5"]
    assert reason in found["Conv_5"]


def test_a_node_whose_weights_become_denormal_is_unfit():
    kernel = floats(4, 4, 1, 1, seed=2)
    found = unfit_for_fp16(chain(b=kernel * np.float32(1e-7)), {})
    assert list(found) == ["Conv_5"]
    assert "denormal" in found["Conv_5"]
    assert unfit_for_fp16(chain(b=kernel * np.float32(1e-2), c=np.zeros((2, 4, 1, 1), np.float32)), {}) == {}
    one = kernel.copy()
    one[0, 0] = 1e-9  # nothing beside the others
    assert unfit_for_fp16(chain(b=one), {}) == {}


def test_constants_of_the_preprocessing_are_not_judged():
    assert unfit_for_fp16(chain(unit=np.float32(1e6)), {"p": 1e9}).keys() == {"Conv_2"}
    assert unfit_for_fp16(chain(unit=np.float32(1e-8)), {}) == {}


def in_fp16(model):
    """ONNX Runtime's CPU computes FP16 nodes in FP32 and does not round in between, so that nothing overflows there."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"x": PIXELS})[0]


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("large", ["activation", "weight", "denormal"])
def test_a_kept_node_saves_what_fp16_loses(large):
    a, b = (floats(4, 4, 1, 1, seed=seed) for seed in (1, 2))
    if large == "denormal":
        model = chain(a=a * np.float32(5e3), b=b * np.float32(1e-7))
    elif large == "weight":
        model = chain(a=a / np.float32(1e4), b=b * np.float32(1e5))
    else:
        model = chain(unit=np.float32(1 / 4), a=a * np.float32(1e4), b=b * np.float32(1e-3))
    exact = run_onnx(model, PIXELS)[0]
    limits = {name: float(np.abs(values).max()) for name, values in activations(model, PIXELS).items()}
    unfit = unfit_for_fp16(model, limits)
    assert "Conv_5" in unfit
    assert "Conv_7" not in unfit
    kept = to_half(model, keep=unfit)
    assert sqnr_db(exact, in_fp16(kept)) > 50
    types = element_types(kept)
    for node in kept.graph.node:
        if node.name in unfit:
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
    if large == "weight":
        with pytest.raises(ProjectError, match="'b'"):
            to_half(model)
    else:
        assert not sqnr_db(exact, in_fp16(to_half(model))) > 40


def activations(model, pixels):
    """Every float32 tensor that a node makes."""
    probe = graph.copy_model(model)
    names = [name for node in model.graph.node for name in node.output if name != "y"]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    return dict(zip(["y", *names], run_onnx(probe, pixels)))


# --- BF16 -------------------------------------------------------------------------------------------------------------


def to_bf16(values):
    """Rounded to nearest even by integer arithmetic, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def test_bf16_weights_are_rounded_from_float32(v1):
    model = to_half(v1.model, "bf16")
    onnx.checker.check_model(model, full_check=True)
    types = element_types(model)
    assert types["images"] == TensorProto.UINT8
    assert types["logits"] == types["probabilities"] == TensorProto.FLOAT
    assert TensorProto.FLOAT16 not in types.values()
    exact, found = graph.constants(v1.model.graph), graph.constants(model.graph)
    halves = [name for name, tensor in found.items() if tensor.data_type == TensorProto.BFLOAT16]
    assert {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]} <= set(halves)
    for name in halves:
        received = numpy_helper.to_array(found[name]).astype(np.float32)
        np.testing.assert_array_equal(received, to_bf16(numpy_helper.to_array(exact[name])))


def test_bf16_holds_what_fp16_cannot():
    """By the reference evaluator, as ONNX Runtime has no BF16 Conv on a CPU."""
    from onnx.reference import ReferenceEvaluator

    a, b = (floats(4, 4, 1, 1, seed=seed) for seed in (1, 2))
    model = chain(a=a * np.float32(1e6), b=b * np.float32(1e-8))
    exact = run_onnx(model, PIXELS)[0]
    received = ReferenceEvaluator(to_half(model, "bf16")).run(None, {"x": PIXELS})[0]
    assert received.dtype == np.float32
    assert 30 < sqnr_db(exact, received) < 60  # eight bits of mantissa


def test_isinf_stays_fp32():
    nodes = [("Conv", ["x", "w"], "a", {}), ("IsInf", ["a"], "b", {}), ("Where", ["b", "zero", "a"], "y", {})]
    half = to_half(tiny(nodes, {"w": floats(4, 4, 1, 1), "zero": np.float32(0)}))
    x = floats(1, 4, 6, 6)
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": x})[0]).all()


@pytest.mark.parametrize("kept", [0, 1])
def test_weights_are_halved_as_the_converter_does(kept, monkeypatch):
    smallest = np.float32(2.0**-24)
    odd = [0.0, -0.0, 1e-30, -1e-30, smallest / 2, -smallest / 2, 0.6 * smallest, smallest, 65504.0, -65504.0, 0.1]
    weight = np.resize(np.float32(odd), (4, 3, 3, 3))
    nodes = [("Conv", ["f", "a"], "s", {}), ("Conv", ["s", "b"], "y", {})]
    model = pixel_graph(nodes, {"a": weight, "b": np.resize(np.float32(odd), (2, 4, 1, 1))})
    names = [node.name for node in model.graph.node if node.op_type == "Conv"][:kept]
    ours = to_half(model, keep=names)
    monkeypatch.setattr(convert, "_halve_weights", lambda graph, names: None)
    assert ours.SerializeToString() == to_half(model, keep=names).SerializeToString()
    halved = [t.name for t in ours.graph.initializer if t.data_type == TensorProto.FLOAT16 and t.name in "ab"]
    assert len(halved) == 2 - kept
