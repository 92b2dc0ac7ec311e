"""Real engines on a real GPU (make test-gpu): right, whatever the batch and the way, and without a leak.

`test_engines_on_gpu_rehearsed` runs every test here on a fake GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.checks import CHECKS, CheckSkippedError, cycles_leak_nothing
from export.errors import RunnerError
from export.tensorrt.build import build_engine
from export.tensorrt.driver import driver_status, no_support
from export.tensorrt.library import TensorRT, find_tensorrt
from export.tensorrt.sidecar import BatchProfile, Sidecar
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.tensorrt.runner import TensorRTRunner

pytest.importorskip("onnx", reason="the models of these tests are made with onnx")

from tests import tiny_onnx

pytestmark = pytest.mark.gpu

PROFILE = BatchProfile(1, 8, 32)
CYCLES = 1000
# Of the largest logit; FP16 and INT8 engines are held to their own graphs, which ONNX Runtime computes in FP32.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.05}


@dataclass(frozen=True)
class Built:
    """An engine, what it was built from, and its sidecar."""

    plan: Path
    source: Path
    sidecar: Sidecar


def build(folder: Path, precision: str, trt: TensorRT) -> Built:
    source = tiny_onnx.write(folder / "model.onnx", precision)
    plan = folder / "model.plan"
    return Built(plan, source, build_engine(source, plan, precision=precision, profile=PROFILE, trt=trt))


@pytest.fixture(scope="module")
def trt() -> TensorRT:
    if not (status := driver_status()):
        pytest.skip(status.reason)
    found = find_tensorrt()
    if found is None:
        pytest.skip("no TensorRT is installed")
    here = status.devices[0].compute_capability
    if found.supports(here) is False:
        pytest.skip(no_support(found.flavour, here))
    return found


@pytest.fixture(scope="module", params=list(TOLERANCE))
def engine(request: pytest.FixtureRequest, trt: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp(request.param), request.param, trt)


def test_the_answers_are_those_of_onnxruntime(engine: Built) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    session = onnxruntime.InferenceSession(str(engine.source), providers=["CPUExecutionProvider"])
    with TensorRTRunner(engine.plan) as runner:
        for count in (1, 2, 3, 7, 8, 9, 31, 32, 33, 65):
            images = tiny_onnx.pixels(count, seed=count)
            (expected,) = session.run(["logits"], {"images": images})
            found = runner.infer(images).logits
            assert np.abs(found - expected).max() <= np.abs(expected).max() * TOLERANCE[engine.sidecar.precision]


@pytest.mark.parametrize("check", CHECKS)
def test_checks(engine: Built, check: Callable[[Path, np.ndarray], str]) -> None:
    try:
        assert check(engine.plan, tiny_onnx.pixels(16, seed=1))
    except CheckSkippedError as skipped:
        pytest.skip(str(skipped))


def test_every_batch_size_that_comes_again_has_a_graph(engine: Built) -> None:
    with TensorRTRunner(engine.plan) as runner:
        for count in (1, 8, 32) * 3:
            runner.infer(tiny_onnx.pixels(count))
        assert runner.graph_batches == (1, 8, 32), runner.graph_refusals
        assert runner.graph_refusals == {}


def test_a_thousand_cycles_leak_nothing(engine: Built) -> None:
    if engine.sidecar.precision != "fp16":
        pytest.skip("one precision shows it: what is allocated does not depend on it")
    assert cycles_leak_nothing(engine.plan, tiny_onnx.pixels(16, seed=1), CYCLES)


def test_an_engine_says_what_it_holds(engine: Built) -> None:
    found = engine.sidecar.found
    assert found is not None, engine.sidecar.layers_reason
    assert found.count, found.reason
    assert found.reason is None
    assert len(found.layers) == found.count
    assert set(found.convolution_layers) == {"conv"}
    assert engine.sidecar.layers_reason is None
    assert engine.sidecar.gpu


def test_computing_takes_time(engine: Built) -> None:
    with TensorRTRunner(engine.plan) as runner:
        assert min(runner.compute_ms(tiny_onnx.pixels(8), 5)) > 0


def test_a_gpu_that_is_not_there(engine: Built) -> None:
    with pytest.raises(RunnerError, match=r"runtime\.device 99"):
        TensorRTRunner(engine.plan, RuntimeOptions(device=99)).__enter__()
