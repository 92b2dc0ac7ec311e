"""Activations that an engine computes with the convolution before them: a Relu, or the Clip of a shifted tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.fp16.convert import to_half
from export.int8.placement import quantizable_tensors
from export.int8.qdq import quantize
from export.int8.regions import allowed, find_regions
from export.int8.scales import Scales
from export.onnx_passes.file import save_model
from export.onnx_passes.graph import op_counts
from export.tensorrt import build, driver
from export.tensorrt.build import build_engine
from export.tensorrt.layers import summarize_layers, summarize_listing
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.sidecar import BatchProfile, Sidecar
from tests.export.tensorrt.test_layers import HALF, INT8, layer_8
from tests.residual_onnx import residual_classifier

ACTIVATIONS = {f"{name}/Conv": f"{name}_relu/Relu" for name in "abcd"}
CONVOLUTIONS = dict.fromkeys(ACTIVATIONS, "int8")


def test_a_clip_is_named_as_a_relu_is_in_the_form_of_8() -> None:
    layers = [
        layer_8("a/Conv + a_relu/Relu", "CaskConvolution", INT8),
        layer_8("b/Conv + PWN(b_relu/Relu)", "CaskConvolution", INT8),
        layer_8("c/Conv + c_add/Add + PWN(PWN(c_x/Mul), c_relu/Relu)", "CaskConvolution", INT8),
        layer_8("d/Conv", "CaskConvolution", INT8),
        layer_8("PWN(d_relu/Relu)", "PointWise", HALF),
    ]
    found = summarize_layers(json.dumps({"Layers": layers}), CONVOLUTIONS, ACTIVATIONS)
    assert found.fused_activations == ("a/Conv", "b/Conv", "c/Conv")
    assert [layer.layers for layer in found.layers] == [
        *(("a", "a_relu"), ("b", "b_relu"), ("c", "c_add", "c_x", "c_relu"), ("d",), ("d_relu",))
    ]


LISTING = """Layers:
Name: __myl_CastTran_myl0_1, LayerType: kgen, Inputs: [ { Name: images, Datatype: UInt8, Format: (x) }], Constants: [], Outputs: [ { Name: x, Datatype: Half, Format: (x) }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a/Conv][ONNX Layer: a_relu/Relu]
Name: __myl_CorrMaxMin_myl0_2, LayerType: runtime_fusion, Inputs: [ { Name: x, Datatype: Half, Format: (x) }], Constants: [], Outputs: [ { Name: y, Datatype: Half, Format: (x) }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: a/Conv][ONNX Layer: a_relu/Relu]
Name: b/Conv_myl0_3, LayerType: correlation, Inputs: [ { Name: y, Datatype: Half, Format: (x) }], Constants: [], Outputs: [ { Name: z, Datatype: Half, Format: (x) }], TacticName: s, StreamId: 0, Metadata: [ONNX Layer: b/Conv]
Name: __myl_MaxMin_myl0_4, LayerType: kgen, Inputs: [ { Name: z, Datatype: Half, Format: (x) }], Constants: [], Outputs: [ { Name: w, Datatype: Half, Format: (x) }], TacticName: u, StreamId: 0, Metadata: [ONNX Layer: b_relu/Relu]

I/O Tensors:
"""  # noqa: E501


def test_a_convolution_that_is_compiled_with_its_clip_is_a_convolution() -> None:
    """TensorRT-RTX 1.7 lists it as "runtime_fusion"; with a Relu it is a "correlation"."""
    asked = {"a/Conv": "fp16", "b/Conv": "fp16"}
    found = summarize_listing(LISTING, asked, ACTIVATIONS)
    assert found is not None
    assert found.convolution_layers == asked, "not the type of the pixels"
    assert found.fused_activations == ("a/Conv",)
    unknown = summarize_listing(LISTING.replace("CorrMaxMin", "New"), asked, ACTIVATIONS)
    assert unknown is not None
    assert unknown.fused_activations == (), "the kernel that prepares the pixels names both nodes, and computes neither"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip(why_missing()["rtx"])
    absent = driver.DriverStatus(False, "no NVIDIA driver")
    monkeypatch.setattr(build, "driver_status", lambda: absent)

    def of(model: onnx.ModelProto, precision: str) -> Sidecar:
        source = tmp_path / "model.onnx"
        save_model(model, source)
        return build_engine(source, tmp_path / "x.plan", precision=precision, profile=BatchProfile(1, 8, 32), trt=trt)

    return of


@pytest.mark.parametrize("trunk", ["fp32", "fp16"])
def test_a_shifted_graph_has_the_kernels_of_the_plain_one(built: Any, trunk: str) -> None:
    model = residual_classifier()
    tensors = allowed(find_regions(model), "always")
    assert len(tensors) == 5, "every Relu here can be shifted"
    plain = Scales(dict.fromkeys(quantizable_tensors(model), 0.1), "mse", 1)
    shifted = Scales(plain.scales, "mse", 1, shifted=tensors)
    graphs = [quantize(model, scales, trunk=trunk).model for scales in (plain, shifted)]
    assert [op_counts(graph).get("Clip", 0) for graph in graphs] == [0, 5]
    before, after = (built(graph, "int8") for graph in graphs)
    assert len(before.asked.activations) == 5, "behind a residual Add too"
    assert before.asked == after.asked
    for name in ("by_kind", "convolutions", "int8_outputs", "fused_activations", "reformats"):
        assert getattr(before.found, name) == getattr(after.found, name), name
    assert before.found.convolutions == {"int8": 5}


def test_a_clip_is_fused_as_a_relu_is_in_fp16(built: Any) -> None:
    """INT8 convolutions are fused with nothing by TensorRT-RTX 1.7; FP16 ones show that a Clip is told as a Relu is."""
    model = residual_classifier()
    before = built(to_half(model), "fp16")
    assert len(before.found.fused_activations) == 5
    bounds = {"low": np.float32(-1.5), "high": np.finfo(np.float32).max}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in bounds.items())
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(bounds)
    after = built(to_half(model), "fp16")
    assert after.found.convolutions == before.found.convolutions == {"fp16": 5}
    assert after.asked.activations == before.asked.activations
    assert {"stem/Conv", "onea/Conv", "oneb/Conv", "twoa/Conv"} <= set(after.found.fused_activations), "one behind Add"
