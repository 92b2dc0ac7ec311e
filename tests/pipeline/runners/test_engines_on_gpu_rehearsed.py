"""The tests for a real GPU run on a fake one: what they ask, and how, is right before a GPU is at hand.

Plans and sidecars are TensorRT-RTX's own, built without a GPU; the fake GPU computes them by ONNX Runtime.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import checks
from export.tensorrt import build as building
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.layers import inspect_engine
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.sidecar import INPUT, EngineLayers
from tests import tiny_onnx
from tests.fakes.cuda import FakeRuntime
from tests.fakes.engine import install
from tests.fakes.gpu import FakeTensorRT
from tests.pipeline.runners import test_engines_on_gpu as on_gpu

SIZES = (on_gpu.PROFILE.min, on_gpu.PROFILE.opt, on_gpu.PROFILE.max)
TESTS = {name: function for name, function in vars(on_gpu).items() if name.startswith("test_")}
CASES = [
    pytest.param(name, given, id="-".join([name, *(check.__name__ for check in given.values())]))
    for name, function in TESTS.items()
    for given in (
        [{"check": check} for check in on_gpu.CHECKS] if "check" in inspect.signature(function).parameters else [{}]
    )
]
WORDS = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}


@pytest.fixture(scope="module", params=list(on_gpu.TOLERANCE))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> on_gpu.Built:
    """An engine with the sidecar that a machine with a GPU writes: loaded there, and its layers read."""
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip(why_missing()["rtx"])
    gpu = FakeTensorRT(FakeRuntime(), (tiny_onnx.SIZE, tiny_onnx.SIZE), SIZES, "rtx")
    gpu.information = lambda context: json.dumps(
        {
            "Layers": [
                {"Name": "conv", "LayerType": "correlation", "Inputs": [{"DataType": WORDS[request.param]}]}
                if context and context.batch
                else "conv"
            ]
        }
    )

    def load(
        _trt: Any,
        plan: Any,
        _driver: Any,
        _logger: Any,
        asked: Any,
        activations: Any,
        _options: Any,
        image: Sequence[int],
    ) -> tuple[EngineLayers, None]:
        loaded = gpu.trt.module.Runtime(gpu.trt.logger()).deserialize_cuda_engine(plan)
        return inspect_engine(gpu.trt, loaded, asked, (INPUT, image), activations), None

    status = DriverStatus(True, "", "580.95.05", "13.1", (Device("Fake GPU", "8.9", 1 << 30),))
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(building, "driver_status", lambda: status)
        patches.setattr(building, "_inspect", load)
        return on_gpu.build(tmp_path_factory.mktemp(request.param), request.param, trt)


@pytest.fixture
def gpu(built: on_gpu.Built, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    session = onnxruntime.InferenceSession(str(built.source), providers=["CPUExecutionProvider"])
    version = built.sidecar.tensorrt_version
    gpu = install(monkeypatch, "rtx", SIZES, (tiny_onnx.SIZE, tiny_onnx.SIZE), version)
    gpu.classes = len(tiny_onnx.CLASSES)
    gpu.answer = lambda images: session.run(["logits"], {INPUT: np.ascontiguousarray(images)})[0]
    monkeypatch.setattr(checks, "_WARM_UP", 2)
    monkeypatch.setattr(checks, "_installed", lambda name: name == "pycuda")  # a fake one
    monkeypatch.setattr(on_gpu, "CYCLES", 3)
    return gpu


@pytest.mark.parametrize(("name", "given"), CASES)
def test_it_passes_on_a_right_engine(built: on_gpu.Built, gpu: FakeTensorRT, name: str, given: Any) -> None:
    try:
        TESTS[name](engine=built, **given)
    except pytest.skip.Exception:
        assert (name, built.sidecar.precision != "fp16") == ("test_a_thousand_cycles_leak_nothing", True)
    assert gpu.runtime.live == 0


@pytest.mark.parametrize(("capability", "why"), [("9.0", "TensorRT-RTX does not support this GPU"), ("8.9", "")])
def test_a_gpu_that_the_library_does_not_support_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capability: str, why: str
) -> None:
    if (rtx := find_tensorrt("rtx")) is None:
        pytest.skip(why_missing()["rtx"])
    status = DriverStatus(True, "", "580.95.05", "13.1", (Device("Fake GPU", capability, 1 << 30),))
    monkeypatch.setattr(on_gpu, "driver_status", lambda: status)
    monkeypatch.setattr(on_gpu, "find_tensorrt", lambda: rtx)
    find = inspect.unwrap(on_gpu.trt)
    if not why:
        assert find() is rtx
        return
    with pytest.raises(pytest.skip.Exception, match=why):
        find()


def test_it_notices_wrong_answers(built: on_gpu.Built, gpu: FakeTensorRT) -> None:
    right = gpu.answer
    gpu.answer = lambda images: right(images)[::-1]
    with pytest.raises(AssertionError):
        on_gpu.test_the_answers_are_those_of_onnxruntime(built)


def test_it_notices_a_graph_that_is_not_there(built: on_gpu.Built, gpu: FakeTensorRT) -> None:
    gpu.fail = "is_stream_capturable"
    with pytest.raises(AssertionError, match="TensorRT says cannot be"):
        on_gpu.test_every_batch_size_that_comes_again_has_a_graph(built)
