"""Other forms of an INT8 file: each undoes one choice of the quantize stage, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.int8_forms import with_half_trunk, without_shift, write_forms
from export.errors import ProjectError
from export.int8.placement import Kept, quantizable_tensors
from export.int8.qdq import quantize
from export.int8.regions import allowed, find_regions
from export.int8.scales import Scales
from export.onnx_passes.file import load_model, save_model
from export.onnx_passes.graph import constants, op_counts
from export.ort_session import open_session
from pipeline.artifacts.paths import FORMS, ONNX, TENSORRT8
from tests.residual_onnx import residual_classifier

PIXELS = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
KEPT = {"twoa/Conv": Kept("fp16", "a test"), "oneb/Conv": Kept("fp32", "a test")}


def capped() -> onnx.ModelProto:
    """A model with a ReLU6 in one place."""
    model = residual_classifier()
    bounds = {"zero": 0.0, "six": 6.0}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in bounds.items())
    node = next(node for node in model.graph.node if node.name == "onea_relu/Relu")
    node.op_type = "Clip"
    node.input.extend(bounds)
    return model


def int8(model: onnx.ModelProto, *, shifted: bool, **more: Any) -> onnx.ModelProto:
    """The INT8 graph; the scales cover the same range with and without shift."""
    tensors = allowed(find_regions(model), "always")
    scales = {
        name: 0.127 / (255 if shifted and name in tensors else 127) * (3 + number)
        for number, name in enumerate(quantizable_tensors(model))
    }
    return quantize(model, Scales(scales, "mse", 1, shifted=tensors if shifted else ()), **more).model


def logits(model: onnx.ModelProto) -> np.ndarray:
    return np.asarray(open_session(model, exact=True).run(["logits"], {"images": PIXELS})[0])


@pytest.mark.parametrize("make", [residual_classifier, capped])
@pytest.mark.parametrize(
    "more", [{}, {"trunk": "fp16"}, {"base": "fp32"}, {"kept": KEPT}], ids=["fp16", "trunk", "fp32", "kept"]
)
def test_without_its_shift_a_file_is_the_plain_one(make: Callable[[], onnx.ModelProto], more: dict[str, Any]) -> None:
    model = make()
    found, expected = without_shift(int8(model, shifted=True, **more)), int8(model, shifted=False, **more)
    casts = 2 if more.get("trunk") else 0  # the pooling before the head stays FP32
    assert op_counts(found) == {**op_counts(expected), "Cast": op_counts(expected)["Cast"] + casts}
    values, others = constants(found.graph), constants(expected.graph)
    close = {"rtol": 2e-3, "atol": 2e-2} if more.get("trunk") or "kept" in more else {"rtol": 1e-5, "atol": 1e-3}
    for name, tensor in others.items():
        if name in values:  # the bounds of a Clip have names of their own
            np.testing.assert_allclose(
                numpy_helper.to_array(values[name]), numpy_helper.to_array(tensor), err_msg=name, **close
            )
    np.testing.assert_allclose(logits(found), logits(expected), rtol=0, atol=0.05 * np.abs(logits(expected)).max())


@pytest.mark.parametrize("kept", [{}, KEPT], ids=["throughout", "kept"])
def test_a_trunk_of_fp16_is_that_of_the_quantize_stage(kept: dict[str, Kept]) -> None:
    model = residual_classifier()
    found = with_half_trunk(int8(model, shifted=True, kept=kept))
    expected = int8(model, shifted=True, kept=kept, trunk="fp16")
    assert op_counts(found) == op_counts(expected)
    types, others = ({name: tensor.data_type for name, tensor in constants(one.graph).items()} for one in
                     (found, expected))  # fmt: skip
    assert types == others


@pytest.mark.parametrize("conv", ["twoa", "oneb"])
def test_a_bias_that_fp16_cannot_hold_stays_fp32_in_a_trunk_of_fp16(conv: str) -> None:
    model = residual_classifier()
    bias = constants(model.graph)[f"{conv}_b"]
    bias.CopyFrom(numpy_helper.from_array(np.where(np.arange(16) == 0, np.float32(1e5), 1.0).astype("f"), bias.name))
    found = with_half_trunk(int8(model, shifted=True))
    expected = int8(model, shifted=True, trunk="fp16")
    assert constants(found.graph)[bias.name].data_type == onnx.TensorProto.FLOAT
    assert op_counts(found) == op_counts(expected)
    types, others = ({name: tensor.data_type for name, tensor in constants(one.graph).items()} for one in
                     (found, expected))  # fmt: skip
    assert types == others
    assert onnx.TensorProto.FLOAT16 in types.values()


@pytest.mark.parametrize(
    ("form", "more", "said"),
    [
        (without_shift, {"shifted": False}, "Expected shifted tensors in the INT8 file"),
        (with_half_trunk, {"shifted": True, "trunk": "fp16"}, "Received: one of FP16"),
        (with_half_trunk, {"shifted": True, "base": "fp32"}, "Received: a file without FP16"),
    ],
)
def test_a_form_that_would_be_the_file_itself_is_none(form: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ProjectError, match=said):
        form(int8(residual_classifier(), **more))


def test_the_forms_are_written_beside_the_artifacts(tmp_path: Path) -> None:
    model = residual_classifier()
    for name, more in ((ONNX["int8"], {}), (TENSORRT8["int8"], {"base": "fp32"})):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_model(int8(model, shifted=True, **more), tmp_path / name)
    assert write_forms(tmp_path) == dict.fromkeys(FORMS.values(), "")
    assert [op_counts(load_model(tmp_path / FORMS[form])).get("Clip", 0) for form in FORMS] == [0, 5, 0]
    save_model(int8(model, shifted=False), tmp_path / ONNX["int8"])
    assert "Received: none" in write_forms(tmp_path)[FORMS["plain"]]
    assert not (tmp_path / FORMS["plain"]).exists(), "that of the earlier file is no form of this one"
    assert (tmp_path / FORMS["trunk-fp16"]).is_file()


def test_a_file_that_is_not_int8_has_no_forms(tmp_path: Path) -> None:
    (tmp_path / "quantize").mkdir()
    save_model(residual_classifier(), tmp_path / ONNX["int8"])
    with pytest.raises(ProjectError, match="which has no Q/DQ pair"):
        write_forms(tmp_path)
