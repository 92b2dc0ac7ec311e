import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import DeviceUnavailableError, ProjectError, RunnerError
from export.tensorrt import driver
from export.tensorrt.compatibility import RefusedEngineError
from export.tensorrt.sidecar import sidecar_path
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import softmax
from pipeline.runners.cuda import bindings
from pipeline.runners.tensorrt import runner as runner_module
from pipeline.runners.tensorrt.buffers import SLOTS
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.fakes.cuda import Code
from tests.fakes.engine import install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch)


def test_the_sidecar_describes_the_runner(tmp_path: Path) -> None:
    runner = TensorRTRunner(make_plan(tmp_path / "x.plan"))
    assert (runner.backend, runner.precision, runner.max_batch) == ("tensorrt", "fp16", 4)


def test_without_a_driver_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Any:
        raise OSError("libcuda.so.1: no such file")

    def touched(*_: Any) -> Any:
        raise AssertionError("TensorRT was touched")

    monkeypatch.setattr(driver, "_load_cuda", load)
    monkeypatch.setattr(runner_module, "find_tensorrt", touched)
    monkeypatch.setattr(bindings, "runtime", touched)
    with pytest.raises(DeviceUnavailableError, match=r"x\.plan\. Received: no NVIDIA driver.*libcuda"):
        TensorRTRunner(make_plan(tmp_path / "x.plan")).__enter__()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_every_image_gets_its_row(tmp_path: Path, gpu: FakeTensorRT, count: int) -> None:
    images = pixels(count)
    with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
        logits, probabilities = runner.infer(images)
    assert logits.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(logits, images.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-4, atol=1e-7)
    assert gpu.batches == [4] * (count // 4) + ([count % 4] if count % 4 else [])
    assert gpu.runtime.live == 0
    assert gpu.runtime.device == 0


def test_results_stay_after_the_next_batch_and_after_closing(tmp_path: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
        first = runner.infer(pixels(4))
        copy = first.logits.copy()
        runner.infer(pixels(3))
    assert (first.logits == copy).all()


def test_fewer_than_the_minimum_are_filled_up(tmp_path: Path, gpu: FakeTensorRT) -> None:
    gpu.profile = (3, 3, 4)
    with TensorRTRunner(make_plan(tmp_path / "x.plan", (3, 3, 4))) as runner:
        result = runner.infer(pixels(5))
    assert gpu.batches == [4, 3]
    np.testing.assert_allclose(result.logits, pixels(5).mean((1, 2)), rtol=1e-6)


def test_pixels_that_are_not_contiguous_are_fine(tmp_path: Path, gpu: FakeTensorRT) -> None:
    images = pixels(3)[:, :, ::-1]
    with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
        np.testing.assert_allclose(runner.infer(images).logits, images.mean((1, 2)), rtol=1e-6)


def test_buffers_are_allocated_once(tmp_path: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
        before = gpu.runtime.calls.count("cudaMalloc"), gpu.runtime.calls.count("cudaHostAlloc")
        for count in (1, 4, 9, 4, 1, 9):
            runner.infer(pixels(count))
        made = gpu.runtime.calls.count("cudaMalloc"), gpu.runtime.calls.count("cudaHostAlloc")
        assert made == before == (3 * SLOTS + 1, 3 * SLOTS)  # one more for the activations


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 5, 3), np.float32), np.zeros((0, 4, 5, 3), np.uint8), np.zeros((1, 5, 4, 3), np.uint8)]
)
def test_wrong_pixels_are_refused(tmp_path: Path, gpu: FakeTensorRT, images: np.ndarray) -> None:
    with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner, pytest.raises(RunnerError, match="Expected"):
        runner.infer(images)
    assert gpu.batches == []


def test_a_closed_runner_is_refused(tmp_path: Path, gpu: FakeTensorRT) -> None:
    runner = TensorRTRunner(make_plan(tmp_path / "x.plan"))
    with pytest.raises(RunnerError, match="open runner"):
        runner.infer(pixels(1))
    with runner:
        runner.infer(pixels(1))
    with pytest.raises(RunnerError, match="open runner"):
        runner.infer(pixels(1))
    with runner:  # and may be opened again
        assert len(runner.infer(pixels(2)).logits) == 2


@pytest.mark.parametrize(
    "call",
    [
        "deserialize_cuda_engine",
        "create_execution_context",
        "set_tensor_address",
        "set_input_shape",
        "execute_async_v3",
    ],
)
@pytest.mark.parametrize("count", [3, 11])
def test_none_and_false_become_errors_with_tensorrts_words(
    tmp_path: Path, gpu: FakeTensorRT, call: str, count: int
) -> None:
    gpu.fail = call
    words = "execution context" if call == "create_execution_context" else f"{call} said no"
    with pytest.raises(RunnerError, match=words):  # noqa: SIM117
        with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
            runner.infer(pixels(3))
    assert gpu.runtime.live == 0


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ("cudaMalloc", 3),
        ("cudaHostAlloc", 3),
        ("cudaStreamCreateWithFlags", 3),
        ("cudaEventCreateWithFlags", 3),
        ("cudaMemcpyAsync", 3),
        ("cudaStreamSynchronize", 3),
        ("cudaMemcpyAsync", 11),
        ("cudaEventRecord", 11),
        ("cudaStreamWaitEvent", 11),
        ("cudaEventSynchronize", 11),
    ],
)
def test_cuda_failures_leave_nothing_allocated(tmp_path: Path, gpu: FakeTensorRT, call: str, count: int) -> None:
    gpu.runtime.fail[call] = Code.cudaErrorIllegalAddress
    with pytest.raises(RunnerError, match=r"cudaErrorIllegalAddress.*Restart this process"):  # noqa: SIM117
        with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
            runner.infer(pixels(count))
    assert gpu.runtime.live == 0


@pytest.mark.parametrize(
    ("changes", "device", "kind", "words"),
    [
        ({"compute_capability": "8.6"}, 0, RefusedEngineError, r"8\.6, where it was built. Received: 8\.9 here"),
        ({}, 1, RefusedEngineError, r"8\.9, where it was built. Received: 9\.0 here"),
        ({"tensorrt_version": "8.6.0"}, 0, RefusedEngineError, r"TensorRT 8\.6\.0, which built it"),
        ({"plan_sha256": "0" * 64}, 0, RefusedEngineError, "sha256"),
        ({"cuda_version": "14.0"}, 0, RefusedEngineError, r"CUDA 14.*13\.1"),
        ({"flavour": "rtx"}, 0, DeviceUnavailableError, "flavour rtx to run"),
        ({"flavour": "openvino"}, 0, RunnerError, "openvino"),
        ({}, 2, DeviceUnavailableError, r"2 GPUs and runtime.device 2"),
        ({"tensors": []}, 0, RunnerError, "Expected the tensors images"),
        ({"profile": {"min": 1, "opt": 2, "max": 8}}, 0, RunnerError, r"\(8, 4, 5, 3\).*\(4, 4, 5, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_loaded(
    tmp_path: Path, gpu: FakeTensorRT, changes: dict[str, Any], device: int, kind: type[Exception], words: str
) -> None:
    with pytest.raises(ProjectError, match=words) as caught:
        TensorRTRunner(make_plan(tmp_path / "x.plan", **changes), RuntimeOptions(device=device)).__enter__()
    assert type(caught.value) is kind
    assert gpu.runtime.live == 0


def test_a_missing_sidecar_is_refused_by_the_constructor(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "x.plan")
    sidecar_path(plan).unlink()
    with pytest.raises(ProjectError, match=r"sidecar .*x\.json.*--force"):
        TensorRTRunner(plan)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothere.plan", r"nothere.plan, which does not exist. In .* there are: x.plan."),
        ("empty/nothere.plan", "which does not exist. This builds one: python -m pipeline build -c RECIPE --force."),
        ("", r", a folder that holds .*x.plan. Name one of them."),
        ("x.json", "the sidecar of an engine. Name the engine: .*x.plan"),
        ("m.onnx", "an ONNX file, which runs on ONNX Runtime. Engines are built from it: python -m pipeline build"),
        ("link.plan", "a link that leads nowhere."),
    ],
)
def test_what_is_no_plan_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    make_plan(tmp_path / "x.plan")
    (tmp_path / "m.onnx").touch()
    (tmp_path / "link.plan").symlink_to(tmp_path / "gone.plan")
    with pytest.raises(ProjectError, match=words) as caught:
        TensorRTRunner(tmp_path / name)
    assert "Expected the sidecar" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1, "nothing is chained to it"
