"""Ctrl-C in the middle of a build: noted, then raised; nothing is swallowed and nothing half-built stays."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from export.tensorrt import library
from export.tensorrt.build import build_engine
from export.tensorrt.library import find_tensorrt
from export.tensorrt.network import deferred_interrupt
from export.tensorrt.sidecar import BatchProfile
from tests import tiny_onnx


def test_it_is_raised_when_the_block_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupts:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached = bool(interrupts)
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
    with deferred_interrupt() as interrupts:
        pass
    assert not interrupts


def test_it_comes_before_the_error_that_it_caused() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError("cancelled")


def test_other_threads_are_left_alone() -> None:
    seen: list[Any] = []

    def work() -> None:
        with deferred_interrupt() as interrupts:
            seen.append(bool(interrupts))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_where_it_is_ignored_it_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupts:
            signal.raise_signal(signal.SIGINT)
        assert not interrupts
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["in a step", "between steps", "in a message"])
def test_a_real_build_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip("TensorRT-RTX is not installed")
    source = tiny_onnx.write(tmp_path / "model.onnx", "fp32")
    steps = []

    def progress(phase: str, step: int, total: int) -> None:
        steps.append(step)
        if where == "in a step":
            signal.raise_signal(signal.SIGINT)
        elif where == "between steps" and len(steps) == 1:
            threading.Timer(0, signal.raise_signal, [signal.SIGINT]).start()

    if where == "in a message":
        monkeypatch.setattr(library.log, "log", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            source, tmp_path / "x.plan", precision="fp32", profile=BatchProfile(1, 8, 32), trt=trt, progress=progress
        )
    assert not (tmp_path / "x.plan").exists()
    assert not (tmp_path / "x.json").exists()
