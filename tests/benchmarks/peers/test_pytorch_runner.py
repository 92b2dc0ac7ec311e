"""Run where PyTorch is: in the peer's environment, see benchmarks/peers/README.md."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the peer's environment, not in the project's")
pytest.importorskip("onnx", reason="the models of these tests are made with onnx")

from benchmarks.peers.pytorch import __main__  # noqa: E402
from benchmarks.peers.pytorch.convert import load_onnx  # noqa: E402
from benchmarks.peers.pytorch.device import tf32_allowed  # noqa: E402
from benchmarks.peers.pytorch.runner import MODES, PyTorchRunner  # noqa: E402
from benchmarks.timing import measure  # noqa: E402
from export.errors import DeviceUnavailableError, RunnerError  # noqa: E402
from pipeline.runners.base import softmax  # noqa: E402
from tests.benchmarks import torch_graphs as graphs  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
QUICK: Any = {"seconds": 0.02, "turns": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return graphs.bottleneck(tmp_path / "model.onnx")


def expected(model: Path, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load_onnx(model)(torch.from_numpy(pixels))[0].numpy()


def on_cpu(model: Path, **options: Any) -> PyTorchRunner:
    return PyTorchRunner(model, options.pop("precision", "fp32"), device="cpu", **options)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_images(model: Path, count: int) -> None:
    pixels = graphs.pixels(count)
    with on_cpu(model, max_batch=4) as runner:
        runner.infer(graphs.pixels(4, seed=1))  # what it leaves in the buffers must not show
        logits, probabilities = runner.infer(pixels)
    assert (logits.dtype, logits.shape) == (np.float32, (count, graphs.CLASSES))
    np.testing.assert_allclose(logits, expected(model, pixels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-4, atol=1e-6)


def test_results_are_the_callers_own(model: Path) -> None:
    with on_cpu(model) as runner:
        first = runner.infer(graphs.pixels(2)).logits
        kept = first.copy()
        runner.infer(graphs.pixels(2, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_runners_take_turns_with_others(model: Path) -> None:
    pixels = graphs.pixels(2)
    with on_cpu(model) as one, on_cpu(model, precision="fp16") as other:
        calls = {"fp32": lambda: one.infer(pixels), "fp16": lambda: other.infer(pixels)}
        samples = measure(calls, seconds_each=0.0, warmup_seconds=0.0, min_samples=3)
    assert {name: len(one.samples_ms) for name, one in samples.items()} == {"fp32": 3, "fp16": 3}


def test_settings_are_set_reported_and_put_back(model: Path) -> None:
    before = (tf32_allowed(torch), torch.backends.cudnn.benchmark)
    for tf32 in (True, False):
        with on_cpu(model, tf32=tf32) as runner:
            described = runner.describe()
        assert (described["tf32_matmul"], described["tf32_cudnn"], described["cudnn_benchmark"]) == (tf32, tf32, True)
        assert described["versions"]["torch"] == torch.__version__
        assert (tf32_allowed(torch), torch.backends.cudnn.benchmark) == before


def test_wrong_pixels_are_refused(model: Path) -> None:
    with on_cpu(model) as runner, pytest.raises(RunnerError, match="9x9"):
        runner.infer(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_closed_runner_is_refused(model: Path) -> None:
    runner = on_cpu(model)
    for _ in range(2):
        with pytest.raises(RunnerError, match="Expected an open runner"):
            runner.infer(graphs.pixels(1))
        with runner:
            runner.infer(graphs.pixels(1))


def test_a_cpu_has_no_gpu_time(model: Path) -> None:
    with on_cpu(model) as runner:
        for time in (runner.compute_ms, runner.stream_ms):
            with pytest.raises(RunnerError, match="Expected a GPU"):
                time(1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(model: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match="Expected a GPU"), PyTorchRunner(model):
        pass


def test_a_model_without_logits_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(graphs.save(tmp_path / "model.onnx"))
    model.graph.output.pop(0)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RunnerError, match="none named logits"), on_cpu(tmp_path / "model.onnx"):
        pass


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_model_gives_the_same(model: Path) -> None:
    pixels = graphs.pixels(3)
    with on_cpu(model, mode="compile", max_batch=2) as runner:
        logits = runner.infer(pixels).logits
    np.testing.assert_allclose(logits, expected(model, pixels), rtol=1e-4, atol=1e-5)


def test_rows_say_what_they_include(model: Path) -> None:
    (row,) = __main__.time_batch(model, 2, ["eager"], "fp16", "cpu", **QUICK)
    assert (row.mode, row.precision, row.batch, row.measures) == ("eager", "fp16", 2, "infer")
    assert 0 < row.relative_error < 0.01
    assert len(row.measurement.samples_ms) >= 10
    assert row.settings["memory_format"] == "channels_last"


def test_a_mode_that_fails_gives_a_row_and_the_others_go_on(model: Path) -> None:
    rows = __main__.time_batch(model, 1, ["graphs", "eager"], "fp32", "cpu", **QUICK)
    assert [(row.error is None, row.mode) for row in rows] == [(False, "graphs"), (True, "eager")]


def test_a_model_that_computes_something_else_is_not_timed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "LARGEST_ERROR", 1e-9)
    (row,) = __main__.time_batch(model, 1, ["eager"], "fp16", "cpu", **QUICK)
    assert "Expected the logits of FP32" in str(row.error)


def test_the_command_writes_every_row(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "folder" / "out.json"
    options = ["--device", "cpu", "--modes", "eager,graphs", "--batches", "1,2", "--seconds", "0.02", "-o", str(output)]
    assert __main__.main([str(model), *options]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"rows": 2, "failed": ["graphs 1", "graphs 2"]}
    content = json.loads(output.read_text())
    assert [(row["mode"], row["batch"]) for row in content["results"]] == [
        ("eager", 1),
        ("graphs", 1),
        ("eager", 2),
        ("graphs", 2),
    ]
    assert content["versions"]["torch"] == torch.__version__
    assert len(content["model_sha256"]) == 64


def test_the_command_names_a_missing_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert __main__.main([str(tmp_path / "no.onnx"), "--device", "cpu"]) == 2
    assert "no.onnx" in caplog.text


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_on_a_gpu(model: Path, mode: Any, precision: Any) -> None:
    pixels = graphs.pixels(6)
    wanted = expected(model, pixels)
    with PyTorchRunner(model, precision, mode, max_batch=4, tf32=False) as runner:
        runner.infer(graphs.pixels(4, seed=1))
        results = [runner.infer(pixels).logits for _ in range(2)]
        # Streamed batches use buffers of their own, and must leave what follows alone.
        times = {"compute": runner.compute_ms(2, 5), "stream": runner.stream_ms(2, 7)}
        results.append(runner.infer(pixels).logits)
    for logits in results:
        error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
        assert error <= (1e-2 if precision == "fp16" else 1e-5)
    assert {name: len(one) for name, one in times.items()} == {"compute": 5, "stream": 1}
    assert min(map(min, times.values())) > 0


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_gives_a_row_for_each_kind(model: Path) -> None:
    rows = __main__.time_batch(model, 2, ["eager", "graphs"], **QUICK)
    assert [(row.mode, row.measures) for row in rows] == [
        (mode, kind) for mode in ("eager", "graphs") for kind in __main__.INCLUDES
    ]
