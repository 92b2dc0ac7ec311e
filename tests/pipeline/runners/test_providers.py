"""What ONNX Runtime really runs on: asked of a session, because what it lists says nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import DeviceUnavailableError, RunnerError
from pipeline.runners import onnxruntime
from pipeline.runners.onnxruntime import Device, OnnxRunner, provider_options, why_not
from tests import tiny_onnx
from tests.fakes.onnxruntime import ACTIVE, MISSING, NO_GPU, FakeOnnxRuntime, install


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny_onnx.write(tmp_path / "model.onnx")


def test_the_tiny_model_is_what_onnx_makes() -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert model.SerializeToString() == onnxruntime.TEST_MODEL


# --- why not ---


def test_without_a_driver_no_session_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime(), NO_GPU)
    assert why_not("cuda") == why_not("tensorrt") == NO_GPU.reason
    assert fake.opened == []


def test_without_a_driver_onnxruntime_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeOnnxRuntime(), NO_GPU)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert why_not("cuda") == NO_GPU.reason


def test_what_loads_is_asked_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime())
    assert [why_not("cuda"), why_not("cuda"), why_not("tensorrt"), why_not("tensorrt")] == [""] * 4
    assert [opened.got[0] for opened in fake.opened] == list(ACTIVE)
    assert fake.preloaded == 2


def test_a_listed_provider_that_does_not_load_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, FakeOnnxRuntime(active=()))
    why = why_not("cuda")
    assert why == f"CUDAExecutionProvider does not load, ONNX Runtime fell back to CPUExecutionProvider ({MISSING})"
    why = why_not("tensorrt")
    assert why.startswith("TensorrtExecutionProvider does not start: Please install TensorRT libraries")
    assert why.endswith("your GPU is supported")  # no stop: it stands inside of sentences
    assert capsys.readouterr().out == ""  # belongs to our results


def test_tensorrt_that_does_not_load_takes_nothing_from_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeOnnxRuntime(active=ACTIVE[:1]))
    assert why_not("cuda") == ""
    assert "Please install TensorRT libraries" in why_not("tensorrt")


def test_an_onnxruntime_for_the_cpu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime(listed=()))
    assert "has no CUDAExecutionProvider" in (why := why_not("cuda"))
    assert "requirements-gpu.txt" in why
    assert fake.opened == []


def test_no_onnxruntime_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeOnnxRuntime())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime is not installed" in why_not("cuda")


def test_an_older_onnxruntime_loads_its_libraries_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(FakeOnnxRuntime):
        def __getattribute__(self, name: str) -> object:
            if name == "preload_dlls":
                raise AttributeError(name)
            return super().__getattribute__(name)

        def __getattr__(self, name: str) -> object:
            if name == "preload_dlls":
                raise AttributeError(name)
            return super().__getattr__(name)

    install(monkeypatch, Older())
    assert why_not("cuda") == ""


# --- the runner ---


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "onnxruntime"), ("cuda", "onnxruntime-cuda"), ("tensorrt", "onnxruntime-tensorrt")],
)
def test_each_device_is_a_backend(monkeypatch: pytest.MonkeyPatch, file: Path, device: Device, backend: str) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime())
    pixels = tiny_onnx.pixels(3)
    with OnnxRunner(file, device=device) as runner:
        assert runner.backend == backend
        logits = runner.infer(pixels).logits
    assert fake.opened[-1].got[0] == onnxruntime.PROVIDERS[device]
    with OnnxRunner(file) as runner:
        np.testing.assert_array_equal(logits, runner.infer(pixels).logits)


def test_cuda_computes_fp32_in_fp32_on_the_gpu_asked_for(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime())
    with OnnxRunner(file, device="cuda", gpu=1):
        pass
    assert fake.opened[-1].asked == (("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}),)


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"), [("fp32", False, False), ("fp16", True, False), ("int8", True, True)]
)
def test_tensorrt_may_use_the_types_of_the_file_and_keeps_nothing(precision: str, fp16: bool, int8: bool) -> None:
    (name, options), (then, _) = provider_options("tensorrt", precision, 0)
    assert (name, then) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (str(fp16), str(int8))
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "False"


def test_int8_alone_is_computed_as_the_file_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime())
    for device in ("cpu", "cuda", "tensorrt"):
        for precision in ("fp32", "fp16", "int8"):
            file = tiny_onnx.write(tmp_path / f"{device}-{precision}.onnx", precision)
            with OnnxRunner(file, precision=precision, device=device):
                pass
    plain = {opened.model for opened in fake.opened if not opened.optimized}
    assert plain == {"cpu-int8.onnx", "cuda-int8.onnx", "tensorrt-int8.onnx"}


def test_a_provider_that_falls_back_runs_nothing(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    install(monkeypatch, FakeOnnxRuntime(active=()))
    with pytest.raises(DeviceUnavailableError, match=r"fell back to CPUExecutionProvider") as error:
        OnnxRunner(file, device="cuda").__enter__()
    assert "requirements-gpu.txt" in str(error.value)
    assert error.value.reason.startswith("CUDAExecutionProvider does not load")


def test_a_provider_that_is_lost_later_runs_nothing(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime())
    assert why_not("cuda") == ""
    fake.active = ()
    with pytest.raises(DeviceUnavailableError, match="fell back"):
        OnnxRunner(file, device="cuda").__enter__()


def test_a_run_that_fails_on_the_gpu_is_not_done_again_on_the_cpu(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    fake = install(monkeypatch, FakeOnnxRuntime())
    fake.fails_in_runs = True
    with OnnxRunner(file, device="cuda") as runner, pytest.raises(RunnerError, match="illegal memory access"):
        runner.infer(tiny_onnx.pixels(1))


def test_a_damaged_file_is_no_missing_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeOnnxRuntime())
    model = tiny_onnx.classifier()
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RunnerError, match="ONNX model that ONNX Runtime loads") as error:
        OnnxRunner(tmp_path / "model.onnx", device="cuda").__enter__()
    assert not isinstance(error.value, DeviceUnavailableError)
