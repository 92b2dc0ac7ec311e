"""The engine inspector's answer in the forms of TensorRT 8.6, 10 and 11, hand-made after NVIDIA's documentation."""

import json
import re
import types
from pathlib import Path
from typing import Any

import pytest

from export.records import from_json, to_json
from export.tensorrt import build, driver
from export.tensorrt.build import build_engine
from export.tensorrt.layers import differences, inspect_engine, summarize_layers
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from export.tensorrt.network import convolution_types, network_flags, parse
from export.tensorrt.sidecar import BatchProfile, EngineLayers
from tests import tiny_onnx
from tests.fakes.cuda import FakeRuntime
from tests.fakes.gpu import FakeDriver, FakeTensorRT

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Channel major FP16 format where channel % 8 == 0"
DYNAMIC = "N/A due to dynamic shapes"


def layer_8(name: str, kind: str, form: str, weights: str | None = None, **more: Any) -> dict[str, Any]:
    """As TensorRT 8.6 writes it: ONNX names in the name, no metadata."""
    tensors = {"Inputs": [{"Name": "x", "Format/Datatype": form}], "Outputs": [{"Name": "y", "Format/Datatype": HALF}]}
    given = {"Weights": {"Type": weights, "Count": 9}} if weights else {}
    return {"Name": name, "LayerType": kind, **tensors, **given, **more}


V8 = [
    layer_8("Reformatting CopyNode for Input Tensor 0 to stem/Conv + stem_relu/Relu", "Reformat", HALF),
    layer_8("stem/Conv + stem_relu/Relu", "CaskConvolution", HALF, "Half"),
    layer_8("b1_conv/Conv/weight + b1_conv/QuantizeLinear + b1_conv/Conv", "CaskConvolution", INT8, "Int8"),
    layer_8("b2_conv/Conv + add/Add || b3_conv/Conv", "CaskConvolution", DYNAMIC, "Int8"),
    layer_8("PWN(add2/Add)", "PointWise", DYNAMIC),
]
# TensorRT 10: the same keys, and the ONNX nodes in the metadata.
V10 = [
    {
        "Name": "__myl_CastMulTran_myl0_0",
        "LayerType": "kgen",
        "Inputs": [{"Name": "images", "Format/Datatype": "UInt8"}],
        "Outputs": [{"Name": "t", "Format/Datatype": "Half"}],
        "Metadata": "[ONNX Layer: preprocessing/Cast]\x1e[ONNX Layer: stem/Conv]",
    },
    {
        "Name": "sm80_xmma_fprop_myl0_1",
        "LayerType": "cask_conv",
        "Inputs": [{"Name": "t", "Format/Datatype": "Half"}],
        "Outputs": [],
        "Metadata": "[ONNX Layer: stem/Conv]\x1f[ONNX Layer: stem_relu/Relu]",
    },
    {
        "Name": "b1_conv/Conv",
        "LayerType": "CaskGemmConvolution",
        "Inputs": [{"Name": "q", "Format/Datatype": "Int8"}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
        "Metadata": "[ONNX Layer: b1_conv/Conv]",
    },
]
# TensorRT 11: type and format apart.
V11 = [
    {
        "Name": "b1_conv/Conv",
        "LayerType": "Convolution",
        "Inputs": [{"Name": "q", "Format": "Row major linear FP16 format (kLINEAR)", "DataType": "Half"}],
        "Outputs": [{"Name": "y", "Format": "Row major linear FP16 format (kLINEAR)", "DataType": "Half"}],
        "Metadata": "[ONNX Layer: b1_conv/Conv]",
    },
    {
        "Name": "copy",
        "LayerType": "NoOp",
        "Origin": "REFORMAT",
        "Inputs": [{"Name": "q", "DataType": "BFloat16"}],
        "Outputs": [],
        "Metadata": "[ONNX Layer: b1_conv/Conv]",
    },
]


def summary(layers: list[Any], asked: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return to_json(summarize_layers(json.dumps({"Layers": layers, **more}), asked))


def as_found(found: dict[str, Any]) -> EngineLayers:
    return from_json(EngineLayers, found, "a test", remedy="")


def test_the_form_of_8_6() -> None:
    asked = {"stem/Conv": "any", "b1_conv/Conv": "int8", "b2_conv/Conv": "int8", "b3_conv/Conv": "int8"}
    found = summary(V8, asked, Bindings=["images"])
    assert found["count"] == 5
    assert found["convolutions"] == {"int8": 3, "fp16": 1}
    assert found["convolution_layers"] == {
        "stem/Conv": "fp16",
        "b1_conv/Conv": "int8",
        "b2_conv/Conv": "int8",  # the format depends on the batch size, the type of the weights tells
        "b3_conv/Conv": "int8",
    }
    assert found["reformats"] == [V8[0]["Name"]]
    assert found["by_kind"] == {"CaskConvolution": 3, "Reformat": 1, "PointWise": 1}
    assert found["layers"][1] == {
        "name": "stem/Conv + stem_relu/Relu",
        "layers": ["stem", "stem_relu"],
        "kind": "CaskConvolution",
        "precision": "fp16",
    }
    assert differences(asked, as_found(found)) == []


def test_the_form_of_10() -> None:
    asked = {"stem/Conv": "fp16", "b1_conv/Conv": "int8"}
    found = summary(V10, asked)
    assert found["convolution_layers"] == {"stem/Conv": "fp16", "b1_conv/Conv": "int8"}, "the kernel, not its cast"
    assert found["by_precision"] == {"uint8": 1, "fp16": 1, "int8": 1}
    assert found["layers"][1]["layers"] == ["stem", "stem_relu"]
    assert differences(asked, as_found(found)) == []


def test_the_form_of_11() -> None:
    asked = {"b1_conv/Conv": "int8"}
    found = summary(V11, asked, **{"I/O Tensors": []})
    assert found["convolution_layers"] == {"b1_conv/Conv": "fp16"}
    assert found["reformats"] == ["copy"]
    assert found["by_precision"] == {"fp16": 1, "bf16": 1}
    assert differences(asked, as_found(found)) == [
        "1 of 1 convolution that the ONNX file quantised does not run in INT8: b1_conv (fp16)"
    ]


def test_names_alone_and_layers_that_nobody_asked_for() -> None:
    found = summary(["stem/Conv + stem_relu/Relu", "a reformat"])
    assert found["convolutions"] == {"unknown": 1}
    assert found["by_precision"] == {"unknown": 2}
    assert summary([V8[0], V8[1]])["convolutions"] == {"fp16": 1}, "a reformat before a convolution is none"


def test_a_compiled_part_of_the_network_does_not_pretend_to_be_its_first_layer() -> None:
    found = summary([layer_8("{ForeignNode[stem/Conv...b_relu/Relu]}", "Myelin", HALF)], {"stem/Conv": "fp16"})
    assert found["layers"][0]["layers"] == []
    assert found["convolutions"] == {"unknown": 1}


def test_what_cannot_be_told_is_no_difference() -> None:
    asked = {"gone/Conv": "int8", "stem/Conv": "int8"}
    found = summary([layer_8("stem/Conv", "CaskConvolution", DYNAMIC, Outputs=[])], asked)
    assert found["convolutions"] == {"unknown": 2}
    assert differences(asked, as_found(found)) == []
    assert differences(asked, None) == []


def test_fp32_convolutions_of_an_fp16_engine_are_named_a_few_of_many() -> None:
    asked = {f"c{index}/Conv": "fp16" for index in range(12)}
    found = summary([layer_8(name, "CaskConvolution", "Row major linear FP32") for name in asked], asked)
    (warning,) = differences(asked, as_found(found))
    assert warning.startswith("12 of 12 convolutions that were asked for in FP16 do not run in FP16: c0 (fp32), c1 ")
    assert warning.endswith("c4 (fp32) and 7 more")


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"Layers": null}'])
def test_an_unreadable_inspector_is_a_reason(text: str) -> None:
    found = to_json(summarize_layers(text, {"c/Conv": "int8"}))
    assert found["count"] is None
    assert "not understood" in found["reason"]
    assert differences({"c/Conv": "int8"}, as_found(found)) == []


def test_control_characters_between_nodes_are_read() -> None:
    """TensorRT puts them between the nodes in the metadata; whether as JSON wants them is up to the version."""
    information = json.dumps({"Layers": V10}).replace("\\u001e", "\x1e").replace("\\u001f", "\x1f")
    assert "\x1e" in information
    assert summarize_layers(information) == summarize_layers(json.dumps({"Layers": V10}))


def loaded(kind: str, fail: str = "") -> tuple[FakeTensorRT, Any]:
    """An engine whose layers show their types only once a batch size is set."""
    gpu = FakeTensorRT(FakeRuntime(), (2, 2), (1, 2, 4), kind)
    engine = gpu.trt.module.Runtime(gpu.trt.logger()).deserialize_cuda_engine(b"plan")
    gpu.information = lambda context: json.dumps(
        {"Layers": [layer_8("b/Conv", "Conv", INT8 if context and context.batch else DYNAMIC, Outputs=[])]}
    )
    gpu.fail = fail
    return gpu, engine


IMAGE = ("images", [4, 2, 2, 3])
EVERY = pytest.mark.parametrize("kind", ["8", "10", "rtx"])


@EVERY
def test_types_that_depend_on_the_batch_are_asked_for_one(kind: str) -> None:
    gpu, engine = loaded(kind)
    found = inspect_engine(gpu.trt, engine, {"b/Conv": "int8"}, IMAGE)
    assert (found.convolution_layers, found.reason) == ({"b/Conv": "int8"}, None)
    found = inspect_engine(gpu.trt, engine, {"b/Conv": "int8"}, None)
    assert (found.convolution_layers, found.reason) == ({"b/Conv": "unknown"}, None), "nobody asked for them"


def test_an_engine_with_memory_from_its_user_refuses_the_default_context() -> None:
    gpu, engine = loaded("rtx")
    assert engine.create_execution_context() is None
    assert "USER_MANAGED" in gpu.logger.lines()


@EVERY
@pytest.mark.parametrize(
    ("fail", "image", "words"),
    [
        ("create_execution_context", IMAGE, "no execution context was made: create_execution_context said no"),
        ("set_input_shape", IMAGE, r"the shape \[4, 2, 2, 3\] was refused: set_input_shape said no"),
        ("", ("images", [5, 2, 2, 3]), r"the shape \[5, 2, 2, 3\] was refused"),
    ],
)
def test_a_context_that_cannot_be_had_is_a_reason(kind: str, fail: str, image: Any, words: str) -> None:
    gpu, engine = loaded(kind, fail)
    found = inspect_engine(gpu.trt, engine, {"b/Conv": "int8"}, image)
    assert (found.count, found.convolution_layers) == (1, {"b/Conv": "unknown"})
    assert re.match(f"types that depend on the batch are not known: {words}", str(found.reason))


def test_an_exception_of_the_bindings_is_a_reason() -> None:
    gpu, engine = loaded("10")

    def refuse(how: Any) -> Any:
        raise RuntimeError("no allocation")

    engine.create_execution_context = refuse
    assert "no execution context was made: no allocation" in str(inspect_engine(gpu.trt, engine, {}, IMAGE).reason)


# --- what is asked for, and the sidecar ---


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "get_engine_information"])
def test_an_engine_is_not_lost_because_its_layers_cannot_be_listed(
    tmp_path: Path, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any) -> Any:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, call)

    runtime = FakeTensorRT(FakeRuntime(), kind="rtx").trt.module.Runtime
    if call == "get_engine_information":
        monkeypatch.setattr(build, "inspect_engine", fail)
    else:
        monkeypatch.setattr(runtime, call, fail)
    monkeypatch.setattr(rtx.module, "Runtime", runtime)
    monkeypatch.setattr(build, "driver_status", lambda: driver._query(FakeDriver()))
    source = tiny_onnx.write(tmp_path / "fp16.onnx", "fp16")
    plan = tmp_path / "a" / "fp16.plan"
    made = build_engine(source, plan, precision="fp16", profile=BatchProfile(1, 8, 32), trt=rtx)
    assert plan.stat().st_size == made.plan_bytes
    assert made.layers_reason is not None
    assert made.layers_reason.startswith("the engine's layers cannot be listed here: UnicodeDecodeError: ")


@pytest.fixture
def rtx() -> TensorRT:
    found = find_tensorrt("rtx")
    if found is None:
        pytest.skip(why_missing()["rtx"])
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_the_graph_asks_of_its_convolutions(tmp_path: Path, rtx: TensorRT, precision: str) -> None:
    source = tiny_onnx.write(tmp_path / "model.onnx", precision)
    logger = rtx.logger()
    network = rtx.module.Builder(logger).create_network(network_flags(rtx))
    parser = parse(rtx, network, logger, source)
    assert convolution_types(rtx, network, precision) == {"conv": precision}
    weak = TensorRT(types.SimpleNamespace(), "tensorrt", "8.x")
    assert convolution_types(weak, network, precision) == {"conv": precision}
    if precision == "fp32":  # as a convolution that quantization left alone
        assert convolution_types(weak, network, "int8") == {"conv": "any"}
    del parser


def test_a_difference_is_said_and_written(
    tmp_path: Path, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "driver_status", lambda: driver._query(FakeDriver()))
    information = json.dumps({"Layers": [layer_8("conv + relu", "CaskConvolution", HALF)]})
    monkeypatch.setattr(build, "_inspect", lambda *given, **_: (summarize_layers(information, given[4]), None))
    source = tiny_onnx.write(tmp_path / "int8.onnx", "int8")
    made = build_engine(source, tmp_path / "a" / "int8.plan", precision="int8", profile=BatchProfile(1, 8, 32), trt=rtx)
    assert made.asked.convolutions == {"int8": 1}
    assert made.found.convolutions == {"fp16": 1}
    said = "1 of 1 convolution that the ONNX file quantised does not run in INT8: conv (fp16)"
    assert made.warnings == (said,)
    assert f"int8.plan: {said}" in caplog.text
    assert made.layers_reason is None
