from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import driver
from export.capabilities import find_tensorrt
from export.driver import Device, DriverStatus, driver_status
from export.engine import BatchProfile, build_engine
from export.sidecar import sha256_file, sidecar_path, write_plan
from pipeline.errors import DeviceUnavailableError, RunnerError
from pipeline.runners import cuda
from pipeline.runners import tensorrt as runner_module
from pipeline.runners.base import softmax
from pipeline.runners.tensorrt import TensorRTRunner
from tests import tiny_onnx
from tests.fake_gpu import Code, FakeRuntime, FakeTensorRT

SIZE = (4, 5)


def make_plan(path: Path, sizes: tuple[int, int, int] = (1, 2, 4), **changes: Any) -> Path:
    path.write_bytes(b"plan")
    write_plan(
        path,
        b"plan",
        {
            "schema": 1,
            "flavour": "tensorrt",
            "tensorrt_version": "10.13.0",
            "compute_capability": "8.9",
            "targets": [],
            "precision": "fp16",
            "onnx_sha256": "0" * 64,
            "plan_sha256": sha256_file(path),
            "plan_bytes": 4,
            "profile": dict(zip(("min", "opt", "max"), sizes)),
            "tensors": [
                {"name": "images", "dtype": "uint8", "shape": [-1, *SIZE, 3]},
                {"name": "logits", "dtype": "float32", "shape": [-1, 3]},
                {"name": "probabilities", "dtype": "float32", "shape": [-1, 3]},
            ],
            **changes,
        },
    )
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(FakeRuntime(devices=2), SIZE)
    devices = (Device("Fake GPU", "8.9", 1 << 30), Device("Other GPU", "9.0", 1 << 30))
    status = DriverStatus(True, "", "580.95.05", "13.1", devices)
    monkeypatch.setattr(cuda, "runtime", lambda: fake.runtime)
    monkeypatch.setattr(runner_module, "driver_status", lambda: status)
    here = {"tensorrt": fake.trt, "rtx": None}
    monkeypatch.setattr(
        runner_module,
        "find_tensorrt",
        lambda flavour: here[flavour] if flavour in here else find_tensorrt(flavour),
    )
    return fake


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


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
    monkeypatch.setattr(runner_module, "set_device", touched)
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
        for count in (1, 4, 9):
            runner.infer(pixels(count))
        assert (gpu.runtime.calls.count("cudaMalloc"), gpu.runtime.calls.count("cudaHostAlloc")) == before == (3, 3)


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
def test_none_and_false_become_errors_with_tensorrts_words(tmp_path: Path, gpu: FakeTensorRT, call: str) -> None:
    gpu.fail = call
    words = "execution context" if call == "create_execution_context" else f"{call} said no"
    with pytest.raises(RunnerError, match=words):  # noqa: SIM117
        with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
            runner.infer(pixels(3))
    assert gpu.runtime.live == 0


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaStreamSynchronize"])
def test_cuda_failures_leave_nothing_allocated(tmp_path: Path, gpu: FakeTensorRT, call: str) -> None:
    gpu.runtime.fail[call] = Code.cudaErrorMemoryAllocation
    with pytest.raises(RunnerError, match="cudaErrorMemoryAllocation"):  # noqa: SIM117
        with TensorRTRunner(make_plan(tmp_path / "x.plan")) as runner:
            runner.infer(pixels(3))
    assert gpu.runtime.live == 0


@pytest.mark.parametrize(
    ("changes", "device", "kind", "words"),
    [
        ({"compute_capability": "8.6"}, 0, RunnerError, r"8\.6, where it was built. Received: 8\.9 here"),
        ({}, 1, RunnerError, r"8\.9, where it was built. Received: 9\.0 here"),
        ({"tensorrt_version": "8.6.0"}, 0, RunnerError, r"TensorRT 8\.6\.0, which built it"),
        ({"plan_sha256": "0" * 64}, 0, RunnerError, "sha256"),
        ({"flavour": "rtx"}, 0, DeviceUnavailableError, "flavour rtx to run"),
        ({"flavour": "openvino"}, 0, RunnerError, "openvino"),
        ({}, 2, DeviceUnavailableError, r"2 GPU\(s\) and device 2"),
        ({"tensors": []}, 0, RunnerError, "Expected the tensors images"),
        ({"profile": {"min": 1, "opt": 2, "max": 8}}, 0, RunnerError, r"\(8, 4, 5, 3\).*\(4, 4, 5, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_loaded(
    tmp_path: Path, gpu: FakeTensorRT, changes: dict[str, Any], device: int, kind: type[Exception], words: str
) -> None:
    runner = TensorRTRunner(make_plan(tmp_path / "x.plan", **changes), device)
    with pytest.raises(RunnerError, match=words) as caught:
        runner.__enter__()
    assert type(caught.value) is kind
    assert gpu.runtime.live == 0


def test_a_missing_sidecar_is_refused_by_the_constructor(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "x.plan")
    sidecar_path(plan).unlink()
    with pytest.raises(RunnerError, match=r"sidecar .*x\.json.*--force"):
        TensorRTRunner(plan)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_engine_gives_equal_rows_and_the_answers_of_onnxruntime(tmp_path: Path, precision: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if not (status := driver_status()):
        pytest.skip(status.reason)
    trt = find_tensorrt()
    if trt is None:
        pytest.skip("no TensorRT is installed")
    source = tiny_onnx.write(tmp_path / "model.onnx", precision)
    plan = tmp_path / "model.plan"
    build_engine(source, plan, precision=precision, profile=BatchProfile(1, 8, 32), trt=trt)
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    with TensorRTRunner(plan) as runner:
        for count in (1, 2, 3, 7, 8, 9, 31, 32, 33, 65):
            same = runner.infer(np.repeat(tiny_onnx.pixels(1), count, axis=0))
            assert (same.logits == same.logits[:1]).all(), f"rows differ at a batch of {count}"
            different = tiny_onnx.pixels(count, seed=count)
            (expected,) = session.run(["logits"], {"images": different})
            scale = np.abs(expected).max()
            assert np.abs(runner.infer(different).logits - expected).max() <= scale * (
                1e-4 if precision == "fp32" else 0.05
            )
