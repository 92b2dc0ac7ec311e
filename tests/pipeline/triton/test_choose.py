"""Only what passed goes into a repository, wherever it was verified; what cannot is named with the reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.errors import ProjectError
from pipeline.artifacts.fastest import Pair, Serves, engine_contender, make_contest
from pipeline.artifacts.paths import ONNX, PARITY, Artifacts
from pipeline.serving.select_model import Selection
from pipeline.triton.choose import choose
from pipeline.triton.model_file import Tensor, read_model_file
from pipeline.workflow.context import Context
from tests.made_records import make_card, make_hop, write_verdict
from tests.pipeline.inference.deployments import CARD
from tests.pipeline.triton.recipes import (
    ENGINE_CARD,
    FP32,
    make_context,
    make_recipe,
    write_benchmark,
    write_card,
    write_engine,
    write_onnx,
)

FP16, INT8 = (f"build/tensorrt/{precision}.plan" for precision in ("fp16", "int8"))


def chosen(context: Context, backend: str = "auto", precision: str = "auto") -> Selection:
    return choose(Artifacts(context.root), context.settings, backend, precision)


def refusal(context: Context, backend: str = "auto", precision: str = "auto") -> str:
    with pytest.raises(ProjectError) as caught:
        chosen(context, backend, precision)
    return str(caught.value)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """An ONNX file that passed on the CPU."""
    return make_recipe(tmp_path)


@pytest.fixture
def engines(tmp_path: Path) -> Context:
    """Two engines that passed on another machine, and an ONNX file that did on the CPU."""
    context = make_context(tmp_path)
    write_card(context, ENGINE_CARD)
    for name in (FP16, INT8):
        write_engine(context, name)
    write_onnx(context, "fp32", ENGINE_CARD)
    write_verdict(context.root, make_hop(FP16), make_hop(INT8), make_hop(FP32))
    return context


# --- verdicts ---


def test_what_passed_is_chosen(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    found = chosen(context)
    assert (found.name, found.backend, found.verdict) == (FP32, "onnxruntime", "pass")
    assert caplog.text == ""


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_what_did_not_pass_is_refused_by_name(context: Context, verdict: str) -> None:
    write_verdict(context.root, make_hop(FP32, verdict))
    assert (
        f"Expected a file that passed verification, for a server that others rely on. Received: {FP32}: {verdict}"
        in (refusal(context))
    )


def test_what_was_altered_or_never_verified_is_refused_by_name(context: Context) -> None:
    write_onnx(context, "fp16")
    assert f"{ONNX['fp16']} was never verified" in refusal(context, "onnxruntime", "fp16")
    (context.root / FP32).write_bytes(b"other")
    assert f"{FP32} was altered since it was verified" in refusal(context, precision="fp32")
    (context.root / PARITY).unlink()
    assert "there is no verdict" in refusal(context)
    assert "says why" not in refusal(context), "of a file that is not there"


def test_a_verdict_on_the_cpu_says_nothing_of_a_gpu(context: Context) -> None:
    assert f"{FP32} on CUDA was never verified" in refusal(context, "onnxruntime-cuda")
    write_verdict(context.root, make_hop(FP32), make_hop(FP32, backend="onnxruntime-cuda"))
    assert chosen(context).backend == "onnxruntime-cuda"  # though no GPU is here
    assert chosen(context, "onnxruntime").backend == "onnxruntime"
    write_verdict(context.root, make_hop(FP32), make_hop(FP32, "fail", backend="onnxruntime-cuda"))
    assert chosen(context).backend == "onnxruntime"


def test_what_was_passed_over_is_said(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    write_onnx(context, "fp16")
    write_verdict(context.root, make_hop(FP32, "fail"), make_hop(ONNX["fp16"]))
    assert chosen(context).name == ONNX["fp16"]
    (record,) = caplog.records
    assert record.getMessage() == f"{ONNX['fp16']} serves. Skipped: {FP32}: fail"


def test_what_is_not_there_is_asked_for_with_the_command(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_card(context, CARD)
    assert "Expected a built model for backend onnxruntime, precision int8" in refusal(context, "onnxruntime", "int8")


# --- engines ---


def test_an_engine_goes_first_although_no_gpu_is_here(engines: Context) -> None:
    assert chosen(engines).name == INT8
    assert chosen(engines, precision="fp16").name == FP16
    assert chosen(engines, "onnxruntime").name == FP32


def test_the_engine_that_was_measured_to_be_faster_goes_first(engines: Context) -> None:
    artifacts = Artifacts(engines.root)
    contenders = [engine_contender(artifacts, name) for name in (INT8, FP16)]
    slower = Pair(INT8, FP16, 9, ratio=0.5, interval=(0.49, 0.51))
    serves = Serves("Fake GPU", "8.9", {}, (make_contest(4, contenders, [slower]),))
    write_benchmark(engines, FP16, [], serves=serves)
    assert chosen(engines).name == FP16
    write_engine(engines, FP16, tensorrt_version="10.14.0")  # not the one that was measured
    write_verdict(engines.root, make_hop(FP16), make_hop(INT8))
    assert chosen(engines).name == INT8


def test_an_engine_without_its_sidecar_is_refused_by_name(engines: Context, caplog: pytest.LogCaptureFixture) -> None:
    (engines.root / INT8).with_suffix(".json").unlink()
    assert chosen(engines).name == FP16
    assert "int8.json. Received: No such file" in caplog.text


def test_an_engine_that_takes_no_single_image_is_refused(engines: Context) -> None:
    write_engine(engines, INT8, sizes=(4, 8, 8))
    write_verdict(engines.root, make_hop(INT8))
    assert "int8.plan takes batches from 4, and Triton sends single images too: build it with a profile of min 1" in (
        refusal(engines, "tensorrt", "int8")
    )


def test_an_engine_without_weights_is_refused(engines: Context) -> None:
    write_engine(engines, INT8, options={"strip_weights": True})
    write_verdict(engines.root, make_hop(INT8))
    assert "int8.plan has no weights, and Triton does not add them" in refusal(engines, "tensorrt", "int8")


def test_engines_of_tensorrt_rtx_are_passed_over(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rtx = write_engine(context, "build/rtx/int8.plan", flavour="rtx")
    write_verdict(context.root, make_hop(FP32), make_hop(rtx))
    assert chosen(context).name == FP32
    assert "passed over 1 engine of TensorRT-RTX, for which Triton has no backend" in caplog.text
    assert f"Received: {rtx} of TensorRT-RTX alone, for which Triton has no backend" in refusal(context, "tensorrt")


# --- the file and the card ---


def test_an_onnx_file_says_what_it_takes(context: Context) -> None:
    file = read_model_file(chosen(context), CARD)
    assert file.pixels == Tensor("images", "TYPE_UINT8", (16, 16, 3))
    assert file.answers == (Tensor("logits", "TYPE_FP32", (4,)), Tensor("probabilities", "TYPE_FP32", (4,)))
    assert (file.exact, file.sidecar) == (False, None)


def test_a_pad_is_computed_as_it_stands_since_an_optimizer_of_it_is_left_out_here(context: Context) -> None:
    path = context.root / FP32
    model = onnx.load(path)
    sides = numpy_helper.from_array(np.zeros(8, np.int64), "sides")
    model.graph.initializer.append(sides)
    conv = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Conv")
    model.graph.node[conv].input[0] = "padded"
    model.graph.node.insert(conv, onnx.helper.make_node("Pad", ["nchw", "sides"], ["padded"]))
    onnx.save(model, path)
    write_verdict(context.root, make_hop(FP32))
    assert read_model_file(chosen(context), CARD).exact


def test_an_engine_says_what_it_takes_in_its_sidecar(engines: Context) -> None:
    write_engine(engines, INT8, top=2)
    write_verdict(engines.root, make_hop(INT8))
    file = read_model_file(chosen(engines), ENGINE_CARD)
    assert file.pixels == Tensor("images", "TYPE_UINT8", (4, 5, 3))
    assert file.answers[2:] == (
        Tensor("top_probabilities", "TYPE_FP32", (2,)),
        Tensor("top_classes", "TYPE_INT32", (2,)),
    )
    assert file.sidecar is not None


def test_a_file_of_a_fixed_batch_is_refused(context: Context) -> None:
    write_onnx(context, "fp32", batch=4)
    write_verdict(context.root, make_hop(FP32))
    with pytest.raises(ProjectError, match=r"any batch size .* Received: images \[4, 16, 16, 3\]"):
        read_model_file(chosen(context), CARD)


def test_a_file_of_another_model_than_the_cards_is_refused(context: Context) -> None:
    with pytest.raises(ProjectError, match=r"Expected 4 class names, .* Received: 3 in train/model\.json"):
        read_model_file(chosen(context), make_card(size=(16, 16)))


def test_an_engine_of_another_model_than_the_cards_is_refused(engines: Context) -> None:
    other = make_card(("ant", "bee", "fly"), size=(4, 5))
    with pytest.raises(ProjectError, match=r"int8\.plan with the classes of train/model\.json: \['ant'"):
        read_model_file(chosen(engines, "tensorrt"), other)


def test_an_engine_of_another_size_is_refused(engines: Context) -> None:
    path = (engines.root / INT8).with_suffix(".json")
    tree = json.loads(path.read_text())
    tree["tensors"][0]["shape"] = [-1, 9, 9, 3]
    path.write_text(json.dumps(tree))
    write_verdict(engines.root, make_hop(INT8))
    with pytest.raises(ProjectError, match=r"images TYPE_UINT8 \[4, 5, 3\] in .* images TYPE_UINT8 \[9, 9, 3\]"):
        read_model_file(chosen(engines, "tensorrt"), ENGINE_CARD)
