"""INT8 convolutions that write float: counted from the inspector's answer or the builder's listing, and warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.tensorrt import build, driver
from export.tensorrt.build import build_engine
from export.tensorrt.layers import differences, summarize_listing, unfused
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import BatchProfile, read_sidecar
from tests import tiny_onnx
from tests.export.tensorrt.test_layers import DYNAMIC, HALF, as_found, layer_8, summary


def writing(kinds: list[str], form: str) -> dict[str, Any]:
    """INT8 convolutions that write these types, in the form of a version."""

    def tensor(kind: str) -> dict[str, str]:
        return {"DataType": kind, "Format": "NHWC"} if form == "11" else {"Format/Datatype": f"Channel major {kind}"}

    layers = [
        {
            "Name": f"c{index}/Conv",
            "LayerType": "correlation" if form == "rtx" else "CaskConvolution",
            "Inputs": [tensor("Int8")],
            "Outputs": [tensor(kind)],
            "Metadata": f"[ONNX Layer: c{index}/Conv]",
        }
        for index, kind in enumerate(kinds)
    ]
    return summary(layers, {f"c{index}/Conv": "int8" for index in range(len(kinds))})


@pytest.mark.parametrize("form", ["8", "10", "11", "rtx"])
def test_int8_convolutions_that_write_float_are_counted_and_said(form: str) -> None:
    found = writing(["Float"] * 3 + ["Half"] + ["Int8"], form)
    assert found["convolutions"] == {"int8": 5}
    assert found["int8_outputs"] == {"fp32": 3, "fp16": 1, "int8": 1}
    (warning,) = unfused(as_found(found))
    assert warning.startswith("4 of 5 INT8 convolutions write FP32 and FP16: they are not fused")
    assert "expect INT8 slower than FP16. This is about speed alone" in warning, "who has no GPU needs no worry"


@pytest.mark.parametrize(
    ("kinds", "int8_outputs"),
    [
        (["Int8", "Int8", "Half"], {"int8": 2, "fp16": 1}),
        (["Int8", "Half", "Half"], {"fp16": 2, "int8": 1}),
        (["Float"], {"fp32": 1}),  # the last one, before the head
        ([DYNAMIC, DYNAMIC], None),
        ([], {}),
    ],
)
def test_a_few_that_write_float_are_as_they_should_be(kinds: list[str], int8_outputs: Any) -> None:
    found = writing(kinds, "10")
    assert found["int8_outputs"] == int8_outputs
    assert unfused(as_found(found)) == []


def test_other_engines_have_no_int8_to_write() -> None:
    found = summary([layer_8("stem/Conv", "CaskConvolution", HALF)], {"stem/Conv": "fp16"})
    assert found["int8_outputs"] == {}
    assert unfused(as_found(found)) == unfused(None) == []


LISTING = """Layers:
Name: __mye500_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: c1/Conv_myl0_2, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,4,2,2], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [8,4,3,3], Datatype: Int8, Format: (NHWC) }], Outputs: [ { Name: y, Dimensions: [-1,8,2,2], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: c1/Conv][ONNX Layer: c1/Conv/weight/DequantizeLinear]
Name: __mye1_myl0_3, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata: 
Name: __myl_MulAddRelu_myl0_4, LayerType: kgen, Inputs: [ { Name: y, Dimensions: [-1,8,2,2], Datatype: Float, Format: (NHWC) }], Constants: [], Outputs: [ { Name: z, Datatype: Int8, Format: (NHWC) }], TacticName: __myl_MulAddRelu_0x1, StreamId: 0, Metadata: [ONNX Layer: c1/Conv][ONNX Layer: relu/Relu]

I/O Tensors:
 Name: images, IOMode: Input, DataType: UInt8
"""  # noqa: E501, W291


def test_the_builders_own_listing() -> None:
    found = summarize_listing(LISTING, {"c1/Conv": "int8"})
    assert found is not None
    assert (found.count, found.convolutions, found.int8_outputs) == (4, {"int8": 1}, {"fp32": 1})
    assert found.by_kind == {"shape_call": 1, "correlation": 1, "signal": 1, "kgen": 1}
    assert found.layers[3].layers == ("c1", "relu")
    assert differences({"c1/Conv": "int8"}, found) == []


@pytest.mark.parametrize("listing", ["", LISTING.replace("Outputs: [", "Results: ["), LISTING.replace("Layers:", "X:")])
def test_a_listing_of_another_form_is_not_guessed_at(listing: str) -> None:
    assert summarize_listing(listing, {"c1/Conv": "int8"}) is None


@pytest.mark.parametrize("targets", [(), ("SM86",)], ids=["default", "SM86"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_build_without_a_gpu_says_how_its_convolutions_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: str, targets: Any
) -> None:
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip(why_missing()["rtx"])
    absent = driver.DriverStatus(False, "no NVIDIA driver")
    monkeypatch.setattr(build, "driver_status", lambda: absent)
    source = tiny_onnx.write(tmp_path / "model.onnx", precision, more_convolutions=3)
    plan, profile = tmp_path / "a" / "x.plan", BatchProfile(1, 8, 32)
    build_engine(source, plan, precision=precision, profile=profile, trt=trt, options=BuildOptions(targets=targets))
    made = read_sidecar(plan)
    assert made.found is not None, "the listing has another form than that of TensorRT-RTX 1.7"
    assert made.found.convolutions == {precision: 4}
    assert set(made.found.convolution_layers) == {"conv", "conv1", "conv2", "conv3"}
    assert made.layers_reason == "the engine was not loaded here: no NVIDIA driver"
    if precision == "fp16":
        assert (made.found.int8_outputs, made.warnings) == ({}, ())
    else:
        assert made.found.int8_outputs == {"fp32": 4}
        (warning,) = made.warnings
        assert warning.startswith("4 of 4 INT8 convolutions write FP32: they are not fused")
        assert f"x.plan: {warning}" in caplog.text
