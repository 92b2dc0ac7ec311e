"""Run where PyTorch is: in the peer's environment, see benchmarks/peers/README.md."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="PyTorch is in the peer's environment, not in the project's")

from benchmarks.peers.pytorch.convert import load_onnx  # noqa: E402
from benchmarks.peers.pytorch.operators import HANDLERS  # noqa: E402
from export.errors import ProjectError, RunnerError  # noqa: E402
from tests import tiny_onnx  # noqa: E402
from tests.benchmarks import torch_graphs as graphs  # noqa: E402
from tests.benchmarks.torch_graphs import node, save  # noqa: E402

FLATTEN = [node("Flatten", "pooled", "flat")]
PICK = helper.make_node("TopK", ["probabilities", "three"], ["best", "places"], "top", axis=-1)
CASES: dict[str, dict[str, Any]] = {
    "order": {"prepared": [node("Gather", "pixels order", "prepared", axis=3)]},
    "divided": {"prepared": [node("Div", "pixels deviation", "prepared")]},
    "scaled": {"prepared": [node("Sub", "pixels mean", "centred"), node("Mul", "centred scale", "prepared")]},
    "pad": {"body": [node("Pad", "x around minus", "y")]},
    "no pad": {"body": [node("Pad", "x nothing", "y")]},
    "strided": {"body": [node("Conv", "x kernel", "y", strides=[2, 2], dilations=[2, 2], pads=[2, 2, 2, 2])]},
    "asymmetric": {"body": [node("Conv", "x kernel bias", "y", strides=[2, 2], pads=[0, 0, 1, 1])]},
    "grouped": {"body": [node("Conv", "x grouped bias", "y", group=2)]},
    "max pool": {"body": [node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]},
    "corner": {"body": [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])]},
    "ceiling": {"body": [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)]},
    "mean": {"body": [node("AveragePool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]},
    "mean, padded": {
        "body": [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)]
    },
    "norm": {"body": [node("Mul", "x gamma", "scaled"), node("Add", "scaled beta", "y")]},
    "norm, turned round": {"body": [node("Mul", "gamma x", "scaled"), node("Add", "beta scaled", "y")]},
    "gate": {"body": [node("Sigmoid", "x", "gate"), node("Mul", "x gate", "y")]},
    "residual": {"body": [node("Relu", "x", "active"), node("Add", "active x", "y")]},
    "squeezed": {"pool": [node("GlobalAveragePool", "y", "pooled"), node("Squeeze", "pooled axes", "flat")]},
    "reduced": {"pool": [node("ReduceMean", "y", "pooled", axes=[2, 3]), *FLATTEN]},
    "reduced, opset 18": {"pool": [node("ReduceMean", "y axes", "flat", keepdims=0)], "opset": 18},
    "reshaped": {"pool": [node("GlobalAveragePool", "y", "pooled"), node("Reshape", "pooled rows", "flat")]},
    "product": {"dense": [node("MatMul", "flat dense", "logits")]},
    "product, bias": {"dense": [node("MatMul", "flat dense", "product"), node("Add", "product dense_bias", "logits")]},
    "transposed": {"dense": [node("Gemm", "flat flipped", "logits", transB=1)]},
    "top": {
        "end": [*graphs.SOFTMAX, PICK, node("Cast", "places", "classes", to=TensorProto.INT32)],
        "more": {"best": (TensorProto.FLOAT, 3), "classes": (TensorProto.INT32, 3)},
    },
}


def reference(path: Path, pixels: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime computes, without its optimizations."""
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is the reference of the peer")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"images": pixels})


def run(module: Any, pixels: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [one.numpy() for one in module(torch.from_numpy(pixels))]


def distance(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def test_the_cases_cover_every_operator(tmp_path: Path) -> None:
    models = [onnx.load(save(tmp_path / f"{one}.onnx", **CASES[one])) for one in CASES]
    assert {one.op_type for model in models for one in model.graph.node} == set(HANDLERS)


@pytest.mark.parametrize("case", CASES)
def test_fp32_gives_the_values_of_onnx_runtime(tmp_path: Path, case: str) -> None:
    path = save(tmp_path / "model.onnx", **CASES[case])
    module, pixels = load_onnx(path), graphs.pixels(3)
    results, expected = run(module, pixels), reference(path, pixels)
    assert len(results) == len(expected) == len(module.output_names)
    for value, wanted in zip(results, expected):
        assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape)
        assert distance(value, wanted) <= 1e-5


def test_blocks_of_a_resnet(tmp_path: Path) -> None:
    path, pixels = graphs.bottleneck(tmp_path / "model.onnx"), graphs.pixels(3)
    for value, wanted in zip(run(load_onnx(path), pixels), reference(path, pixels)):
        assert distance(value, wanted) <= 1e-5


@pytest.mark.parametrize("case", ["scaled", "norm", "product, bias", "top"])
def test_fp16_rounds_the_weights_and_no_output(tmp_path: Path, case: str) -> None:
    path = save(tmp_path / "model.onnx", **CASES[case])
    module, pixels = load_onnx(path, "fp16"), graphs.pixels(3)
    results, expected = run(module, pixels), reference(path, pixels)
    assert all(one.dtype == torch.float16 for one in module.parameters())
    assert [one.dtype for one in results] == [one.dtype for one in expected]
    assert 0 < distance(results[0], expected[0]) < 1e-2


def test_preprocessing_stays_fp32_in_fp16(tmp_path: Path) -> None:
    module = load_onnx(save(tmp_path / "model.onnx"), "fp16")
    mean = torch.from_numpy(graphs.CONSTANTS["mean"])
    assert [one.dtype for one in module.buffers() if one.shape == mean.shape and torch.equal(one, mean)] == [
        torch.float32
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_convolution_reads_channels_last(tmp_path: Path, precision: Any) -> None:
    module, seen = load_onnx(graphs.bottleneck(tmp_path / "model.onnx"), precision), []

    def look(layer: Any, inputs: Any) -> None:
        seen.append([one.is_contiguous(memory_format=torch.channels_last) for one in (inputs[0], layer.weight)])

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(look)
    run(module, graphs.pixels(2))
    assert seen == [[True, True]] * 3


def test_layers_are_those_of_an_engineer(tmp_path: Path) -> None:
    module = load_onnx(save(tmp_path / "model.onnx", **CASES["norm"], dense=CASES["product, bias"]["dense"]))
    assert [type(one).__name__ for one in module.children()] == ["Conv2d", "Linear"]
    assert not module.training
    assert not any(one.requires_grad for one in module.parameters())
    called = [one.target for one in module.graph.nodes if one.op == "call_function"]
    assert torch.addcmul in called
    assert torch.mul not in called


def test_the_tiny_classifier(tmp_path: Path) -> None:
    path, pixels = tiny_onnx.write(tmp_path / "model.onnx"), tiny_onnx.pixels(3)
    module = load_onnx(path)
    assert (module.input_size, module.output_names) == ((16, 16), ("logits", "probabilities"))
    assert module.output_widths == (len(tiny_onnx.CLASSES),) * 2
    for value, wanted in zip(run(module, pixels), reference(path, pixels)):
        assert distance(value, wanted) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": [node("Erf", "x", "y")]}, r"Expected operators of Add, .*Received: Erf in node 'layer/y'"),
        ({"body": [node("Conv", "x kernel", "y", auto_pad="SAME_UPPER")]}, "explicit padding.*SAME_UPPER"),
        ({"body": [node("Conv", "x kernel_", "y")], "stem": [*graphs.STEM, node("Sin", "kernel", "kernel_")]}, "Sin"),
        ({"body": [node("Pad", "x around", "y", mode="reflect")]}, "a Pad with a constant"),
        ({"body": [node("AveragePool", "x", "y", kernel_shape=[2, 2], pads=[0, 0, 1, 1])]}, "equal padding"),
        ({"dense": [node("Gemm", "flat dense", "logits", alpha=0.5)]}, "a Gemm that is"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "model.onnx", **options)
    with pytest.raises(RunnerError, match=message):
        load_onnx(path)


def test_a_quantised_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="Received: QuantizeLinear"):
        load_onnx(tiny_onnx.write(tmp_path / "model.onnx", "int8"))


def test_an_fp16_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="Received: FLOAT16"):
        load_onnx(tiny_onnx.write(tmp_path / "model.onnx", "fp16"))


def test_another_input_is_refused(tmp_path: Path) -> None:
    model = tiny_onnx.classifier()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RunnerError, match="Expected one uint8 input"):
        load_onnx(tmp_path / "model.onnx")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"no\.onnx"):
        load_onnx(tmp_path / "no.onnx")
