"""The command of the PyTorch peer, as far as it needs no PyTorch."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.pytorch import __main__
from benchmarks.peers.pytorch.__main__ import PeerRow
from benchmarks.peers.pytorch.runner import PyTorchRunner
from benchmarks.timing import Measurement, in_turns
from export.errors import DeviceUnavailableError, RunnerError
from export.records import to_json
from pipeline.runners.base import Outputs
from tests import tiny_onnx


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def test_candidates_take_turns() -> None:
    calls: list[str] = []

    def candidate(name: str) -> list[float]:
        calls.append(name)
        return [float(len(calls)), 0.5]

    samples = in_turns({"a": lambda: candidate("a"), "b": lambda: candidate("b")}, turns=3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert samples == {
        "a": Measurement((1.0, 0.5, 4.0, 0.5, 5.0, 0.5), (2, 2, 2)),
        "b": Measurement((2.0, 0.5, 3.0, 0.5, 6.0, 0.5), (2, 2, 2)),
    }


def test_a_candidate_that_fails_leaves_the_others() -> None:
    left, failed = [[1.0], [2.0]], {}
    candidates = {"breaks": lambda: left.pop(), "works": lambda: [3.0]}
    samples = in_turns(candidates, 3, lambda name, error: failed.update({name: type(error)}))
    assert samples == {"works": Measurement((3.0, 3.0, 3.0), (1, 1, 1))}
    assert failed == {"breaks": IndexError}
    with pytest.raises(IndexError):
        in_turns(candidates)


@pytest.mark.parametrize(
    "options", [["--batches", "1,0"], ["--batches", "many"], ["--modes", "eager,fast"], ["--precision", "int8"]]
)
def test_options_that_make_no_sense(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["model.onnx", *options])
    assert stopped.value.code == 2
    assert options[1].rpartition(",")[2] in capsys.readouterr().err


@pytest.mark.usefixtures("without_torch")
def test_without_pytorch_nothing_is_timed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert __main__.main([str(tiny_onnx.write(tmp_path / "model.onnx")), "-o", str(tmp_path / "out.json")]) == 2
    assert "benchmarks/peers/README.md" in caplog.text
    assert not (tmp_path / "out.json").exists()


@pytest.mark.usefixtures("without_torch")
def test_without_pytorch_the_runner_says_so() -> None:
    with pytest.raises(DeviceUnavailableError, match="Expected PyTorch"), PyTorchRunner("model.onnx"):
        pass


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"mode": "fast"}, {"max_batch": 0}])
def test_a_runner_of_another_kind_is_refused(options: dict) -> None:
    with pytest.raises(RunnerError, match="Expected precision fp32 or fp16"):
        PyTorchRunner("model.onnx", **options)


def test_graphs_are_for_gpus() -> None:
    with pytest.raises(RunnerError, match="Expected a CUDA device"):
        PyTorchRunner("model.onnx", mode="graphs", device="cpu")


def test_a_row_is_written_with_its_samples_and_their_summary_or_with_its_error() -> None:
    timed = PeerRow("eager", "fp16", 2, None, "compute", 0.001, {"versions": {}}, Measurement((4.0, 2.0), (1, 1)))
    written = to_json(timed)
    assert list(written)[:8] == [
        *("backend", "mode", "precision", "batch", "measures", "includes", "relative_error", "settings"),
    ]
    assert (written["samples_ms"], written["p50_ms"], written["images_per_second"]) == ([4.0, 2.0], 3.0, 666.7)
    failed = to_json(PeerRow("graphs", "fp16", 2, "RuntimeError: no"))
    assert failed == {
        **{"backend": "pytorch", "mode": "graphs", "precision": "fp16", "batch": 2},
        "error": "RuntimeError: no",
    }


class FakeRunner:
    """Computes on no device; graphs are refused."""

    size = (4, 4)

    def __init__(self, model: Path, precision: str, mode: str = "eager", **_: object) -> None:
        self.mode = mode

    def __enter__(self) -> "FakeRunner":
        if self.mode == "graphs":
            raise RuntimeError("no graphs\nat all")
        return self

    def __exit__(self, *_: object) -> None: ...

    def infer(self, pixels: np.ndarray) -> Outputs:
        logits = np.ones((len(pixels), 2), np.float32)
        return Outputs(logits, logits)

    def describe(self) -> dict[str, object]:
        return {"mode": self.mode}

    def compute_ms(self, batch: int, repeats: int) -> list[float]:
        return [1.0] * repeats

    def stream_ms(self, batch: int, repeats: int) -> list[float]:
        return [2.0]


def test_each_kind_of_measurement_is_a_row_and_a_mode_that_fails_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "PyTorchRunner", FakeRunner)
    rows = __main__.time_batch(Path("model.onnx"), 2, ["eager", "graphs"], seconds=0.0, turns=3)
    assert [(row.mode, row.measures, row.error) for row in rows] == [
        ("eager", "infer", None),
        ("eager", "compute", None),
        ("eager", "stream", None),
        ("graphs", "infer", "RuntimeError: no graphs\nat all"),
    ]
    assert rows[1].measurement == Measurement((1.0,) * 60, (20,) * 3)
    assert rows[2].settings == {"mode": "eager"}
    assert __main__.table(rows).splitlines()[-1].split() == ["graphs", "2", "failed:", "RuntimeError:", "no", "graphs"]
