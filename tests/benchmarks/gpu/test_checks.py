"""The checks themselves, on the fake GPU: they pass where an engine is right, and notice where it is not."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu.checks import CHECKS, CheckFailedError, CheckSkippedError
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.fakes.engine import install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    monkeypatch.setattr(gpu_checks, "_WARM_UP", 2)
    # PyCUDA is there as a fake; PyTorch and CuPy need a real GPU.
    monkeypatch.setattr(gpu_checks, "_installed", lambda name: name == "pycuda")
    return install(monkeypatch)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return make_plan(tmp_path / "x.plan")


def test_every_check_is_listed() -> None:
    checks = {
        one
        for name, one in vars(gpu_checks).items()
        if inspect.isfunction(one) and list(inspect.signature(one).parameters)[:2] == ["plan", "pixels"]
    }
    assert checks == {*CHECKS, gpu_checks.cycles_leak_nothing}
    assert set(gpu_checks.QUICK) < set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_engine_passes(plan: Path, gpu: FakeTensorRT, check: Any) -> None:
    assert check(plan, pixels(9))
    assert gpu.runtime.live == 0


def test_without_pycuda_it_is_not_compared(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "_installed", lambda name: False)
    with pytest.raises(CheckSkippedError, match="PyCUDA is not installed"):
        gpu_checks.pycuda_gives_the_same_bytes(plan, pixels(9))


def test_best_classes_are_compared(tmp_path: Path, gpu: FakeTensorRT) -> None:
    gpu.top = ("top_probabilities", "top_classes")
    plan = make_plan(tmp_path / "x.plan", top=2)
    assert gpu_checks.options_change_no_bit(plan, pixels(9)) == "13 images, best 2 classes"
    gpu.spoil = lambda results: results["top_probabilities"].__setitem__(0, 0.01)
    with pytest.raises(CheckFailedError, match="best classes"):
        gpu_checks.options_change_no_bit(plan, pixels(9))


def test_cycles_are_counted(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_checks.cycles_leak_nothing(plan, pixels(3), cycles=5).startswith("5 cycles took 0.0 MiB of device")
    enter = TensorRTRunner.__enter__

    def leaky(runner: TensorRTRunner) -> TensorRTRunner:
        gpu.runtime.cudaMalloc(8 << 20)
        return enter(runner)

    monkeypatch.setattr(TensorRTRunner, "__enter__", leaky)
    with pytest.raises(CheckFailedError, match=r"5 cycles took 40\.0 MiB"):
        gpu_checks.cycles_leak_nothing(plan, pixels(3), cycles=5)
    with pytest.raises(CheckFailedError, match=r"24\.0 MiB"):
        gpu_checks.an_error_releases_everything(plan, pixels(3))


def test_cycles_end_when_their_seconds_are_up(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 1000, 10))  # each look at the clock is ten later
    monkeypatch.setattr(gpu_checks.time, "monotonic", lambda: float(next(seconds)))
    assert gpu_checks.cycles_leak_nothing(plan, pixels(3), cycles=1000, seconds=60).startswith("4 cycles took")
    assert gpu_checks.cycles_leak_nothing(plan, pixels(3), cycles=1000, seconds=1).startswith("1 cycle took")


def in_row(row: int, when: Any = lambda count: True) -> Any:
    """An engine that is wrong in one row."""

    def spoil(results: dict[str, np.ndarray]) -> None:
        if when(len(results["logits"])) and len(results["logits"]) > row:
            results["logits"][row] += 1

    return spoil


@pytest.mark.parametrize(
    ("check", "spoil", "words"),
    [
        (gpu_checks.equal_images_give_equal_rows, in_row(3), r"equal images: rows differ by \d"),
        (gpu_checks.equal_images_give_equal_rows, in_row(1, lambda count: count == 3), "3 equal images: rows differ"),
        (gpu_checks.rows_stay_with_their_images, in_row(0), "moved images: rows differ"),
        (gpu_checks.rows_stay_with_their_images, in_row(2, lambda count: count == 4), "4 moved images"),
    ],
)
def test_a_wrong_engine_is_noticed(plan: Path, gpu: FakeTensorRT, check: Any, spoil: Any, words: str) -> None:
    gpu.spoil = spoil
    with pytest.raises(CheckFailedError, match=words):
        check(plan, pixels(9))


@pytest.mark.parametrize("check", [one for one in CHECKS if one is not gpu_checks.an_error_releases_everything])
def test_answers_that_change_with_time_are_noticed(plan: Path, gpu: FakeTensorRT, check: Any) -> None:
    calls = iter(range(10**6))

    def spoil(results: dict[str, np.ndarray]) -> None:
        results["logits"][-1] += next(calls)

    gpu.spoil = spoil
    with pytest.raises(CheckFailedError):
        check(plan, pixels(9))


def test_graphs_that_are_not_made_are_noticed(plan: Path, gpu: FakeTensorRT) -> None:
    gpu.fail = "capture"
    with pytest.raises(CheckFailedError, match=r"expected graphs for the batches \[1, 2, 4\], there are some for \[\]"):
        gpu_checks.graphs_change_no_bit(plan, pixels(9))
