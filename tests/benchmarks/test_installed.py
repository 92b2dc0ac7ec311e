"""What this machine has no library for is not timed, and that is said once a library."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scenarios as module
from benchmarks.scenarios import Scenario, installed
from export.tensorrt.library import FLAVOURS
from tests.fakes.engine import make_plan


@pytest.fixture
def wanted(tmp_path: Path) -> list[Scenario]:
    plans = [make_plan(tmp_path / "build" / flavour / "fp16.plan", flavour=flavour) for flavour in FLAVOURS]
    files = [("keras", tmp_path / "train" / "model.keras"), ("onnxruntime", tmp_path / "export" / "model.onnx"),
             ("onnxruntime-cuda", tmp_path / "export" / "model.onnx"),
             *(("tensorrt", plan) for plan in plans)]  # fmt: skip
    return [Scenario(backend, "fp16", batch, path, "") for batch in (1, 8) for backend, path in files]


def have(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = importlib.util.find_spec

    def find(name: str, *given: Any) -> Any:
        return real(name, *given) if name in names or name not in ("keras", "onnxruntime") else None

    monkeypatch.setattr(module.importlib.util, "find_spec", find)
    monkeypatch.setattr(module, "find_tensorrt", lambda flavour: flavour in names or None)


def test_where_all_is_installed_all_is_timed(
    wanted: list[Scenario], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "benchmarks")
    have(monkeypatch, "keras", "onnxruntime", "tensorrt", "rtx")
    assert installed(wanted) == wanted
    assert not caplog.messages


def test_a_machine_with_one_tensorrt_alone(
    wanted: list[Scenario], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "benchmarks")
    have(monkeypatch, "tensorrt")
    kept = installed(wanted)
    assert [(one.batch, one.path.parent.name) for one in kept] == [(1, "tensorrt"), (8, "tensorrt")]
    assert [message.strip() for message in caplog.messages] == [
        "not timed, as Keras is not installed here: train/model.keras",
        "not timed, as ONNX Runtime is not installed here: export/model.onnx",
        "not timed, as TensorRT-RTX is not installed here: rtx/fp16.plan",
    ]


def test_an_engine_that_cannot_be_told_is_left_to_its_runner(
    wanted: list[Scenario], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch)
    damaged = next(one for one in wanted if one.backend == "tensorrt")
    damaged.path.with_suffix(".json").write_text("{")
    assert [one.path for one in installed(wanted)] == [damaged.path] * 2
