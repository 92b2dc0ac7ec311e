"""Real engines on a real GPU (make test-gpu): right, whatever the batch and the way, and without a leak."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_checks import CHECKS, CheckSkippedError, cycles_leak_nothing
from export.capabilities import find_tensorrt
from export.driver import driver_status
from export.engine import build_engine
from export.records import to_json
from export.sidecar import BatchProfile
from pipeline.errors import RunnerError
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.tensorrt import TensorRTRunner

pytest.importorskip("onnx", reason="the models of these tests are made with onnx")

from tests import tiny_onnx

pytestmark = pytest.mark.gpu

PROFILE = BatchProfile(1, 8, 32)
# Of the largest logit; FP16 and INT8 engines are held to their own graphs, which ONNX Runtime computes in FP32.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.05}


@pytest.fixture(scope="module")
def trt() -> Any:
    if not (status := driver_status()):
        pytest.skip(status.reason)
    found = find_tensorrt()
    if found is None:
        pytest.skip("no TensorRT is installed")
    return found


@pytest.fixture(scope="module", params=list(TOLERANCE))
def engine(request: pytest.FixtureRequest, trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    source = tiny_onnx.write(folder / "model.onnx", request.param)
    plan = folder / "model.plan"
    sidecar = to_json(build_engine(source, plan, precision=request.param, profile=PROFILE, trt=trt))
    return plan, source, sidecar


def test_the_answers_are_those_of_onnxruntime(engine: tuple[Path, Path, dict[str, Any]]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    plan, source, sidecar = engine
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    with TensorRTRunner(plan) as runner:
        for count in (1, 2, 3, 7, 8, 9, 31, 32, 33, 65):
            images = tiny_onnx.pixels(count, seed=count)
            (expected,) = session.run(["logits"], {"images": images})
            found = runner.infer(images).logits
            assert np.abs(found - expected).max() <= np.abs(expected).max() * TOLERANCE[sidecar["precision"]]


@pytest.mark.parametrize("check", CHECKS)
def test_checks(engine: tuple[Path, Path, dict[str, Any]], check: Any) -> None:
    try:
        assert check(engine[0], tiny_onnx.pixels(16, seed=1))
    except CheckSkippedError as skipped:
        pytest.skip(str(skipped))


def test_a_thousand_cycles_leak_nothing(engine: tuple[Path, Path, dict[str, Any]]) -> None:
    if engine[2]["precision"] != "fp16":
        pytest.skip("one precision shows it: what is allocated does not depend on it")
    assert cycles_leak_nothing(engine[0], tiny_onnx.pixels(16, seed=1))


def test_an_engine_says_what_it_holds(engine: tuple[Path, Path, dict[str, Any]]) -> None:
    assert engine[2]["found"]["layers"], engine[2]["layers_reason"]
    assert engine[2]["gpu"]


def test_computing_takes_time(engine: tuple[Path, Path, dict[str, Any]]) -> None:
    with TensorRTRunner(engine[0]) as runner:
        assert min(runner.compute_ms(tiny_onnx.pixels(8), 5)) > 0


def test_a_gpu_that_is_not_there(engine: tuple[Path, Path, dict[str, Any]]) -> None:
    with pytest.raises(RunnerError, match=r"runtime\.device 99"):
        TensorRTRunner(engine[0], RuntimeOptions(device=99)).__enter__()
