"""TensorRT-RTX on a Hopper: the runner, the choice of a TensorRT and the build say what to build with instead."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import DeviceUnavailableError
from export.tensorrt.compatibility import trying_unsupported_gpus
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.library import TensorRT
from pipeline.artifacts.inputs import Inputs
from pipeline.artifacts.manifest import without_defaults
from pipeline.artifacts.parity_report import NOT_RUN
from pipeline.cli.commands import _log_missing_engines
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Profile, Recipe
from pipeline.runners.tensorrt import runner as runner_module
from pipeline.runners.tensorrt.runner import TensorRTRunner
from pipeline.stages import build as building
from pipeline.verification.evaluate import evaluate
from pipeline.verification.parity import Candidate
from pipeline.workflow import environment
from pipeline.workflow.context import Context
from pipeline.workflow.environment import choose_tensorrt, explain_no_gpu
from tests.fakes.engine import assert_answers, install, make_plan, pixels

HOPPER = 1  # the fake's second GPU is one
RTX = {"flavour": "rtx", "tensorrt_version": "10.13.0", "compute_capability": None}
INSTEAD = "TensorRT-RTX does not support this GPU; build with TensorRT"


def test_the_runner_says_what_to_build_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "rtx")
    plan = make_plan(tmp_path / "x.plan", **RTX)
    with TensorRTRunner(plan) as runner:  # on the Ada beside it
        assert_answers(runner.infer(pixels(2)).logits, pixels(2))
    with pytest.raises(DeviceUnavailableError, match=f"{INSTEAD}.*build.flavour=.tensorrt") as caught:
        TensorRTRunner(plan, RuntimeOptions(device=HOPPER)).__enter__()
    assert caught.value.reason == INSTEAD


def test_it_was_not_run_rather_than_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "rtx")
    options = RuntimeOptions(device=HOPPER)
    plan = make_plan(tmp_path / "x.plan", **RTX)
    one = Candidate("x", "tensorrt", "fp16", "", None, lambda: TensorRTRunner(plan, options))
    found = evaluate(one, pixels(2), 2, lambda images: None)
    assert (found.verdict, found.why) == (NOT_RUN, f"built, not run here: {INSTEAD}")


def test_installing_the_library_that_does_not_support_the_gpu_is_not_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10")
    monkeypatch.setattr(runner_module, "find_tensorrt", lambda flavour: None)
    plan = make_plan(tmp_path / "x.plan", **RTX | {"tensorrt_version": "1.7.1"})
    with pytest.raises(DeviceUnavailableError) as caught:
        TensorRTRunner(plan, RuntimeOptions(device=HOPPER)).__enter__()
    assert caught.value.reason == INSTEAD
    assert "pip install" not in str(caught.value)
    with pytest.raises(DeviceUnavailableError) as caught:
        TensorRTRunner(plan).__enter__()
    assert caught.value.reason == "no TensorRT of the flavour rtx here"


def test_it_can_be_tried_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "rtx")
    plan = make_plan(tmp_path / "x.plan", **RTX)
    with trying_unsupported_gpus(), TensorRTRunner(plan, RuntimeOptions(device=HOPPER)) as runner:
        assert_answers(runner.infer(pixels(2)).logits, pixels(2))


# --- which TensorRT builds ---


class _BuilderConfig:
    num_compute_capabilities = 1

    def set_compute_capability(self, *_: Any) -> None: ...


def machine(monkeypatch: pytest.MonkeyPatch, capabilities: list[str], **versions: str) -> None:
    """GPUs and the TensorRT of each flavour that is installed."""
    names = SimpleNamespace(IBuilderConfig=_BuilderConfig, ComputeCapability=SimpleNamespace(__members__={"SM86": 0}))
    names.ComputeCapability.__members__.update(dict.fromkeys(("SM75", "SM80", "SM89", "SM120", "SM121")))
    modules = {"rtx": names, "tensorrt": SimpleNamespace(IBuilderConfig=object)}
    found = {flavour: TensorRT(modules[flavour], flavour, version) for flavour, version in versions.items()}
    devices = tuple(Device(f"GPU {capability}", capability, 1 << 30) for capability in capabilities)
    status = DriverStatus(True, "", "580", "13.0", devices) if devices else DriverStatus(False, "no NVIDIA driver")
    monkeypatch.setattr(environment, "driver_status", lambda: status)
    monkeypatch.setattr(environment, "find_tensorrt", found.get)
    monkeypatch.setattr(environment, "why_missing", lambda: {"tensorrt": "not installed", "rtx": "no wheel"})


@pytest.mark.parametrize(
    ("flavour", "gpus", "versions", "chosen", "why"),
    [
        ("auto", ["9.0"], {"tensorrt": "10.13.0", "rtx": "1.7.1"}, "tensorrt", ""),
        ("auto", ["8.7"], {"tensorrt": "10.3.0"}, "tensorrt", ""),
        ("auto", ["12.0"], {"tensorrt": "8.6.0", "rtx": "1.7.1"}, "rtx", ""),
        ("auto", ["9.0"], {"rtx": "1.7.1"}, "rtx", ""),
        ("tensorrt", ["12.0"], {"tensorrt": "8.6.0"}, None, "build with TensorRT 10.8 or later (GPU 12.0, 12.0)"),
        ("tensorrt", ["7.0"], {"tensorrt": "10.13.0"}, None, "build with TensorRT 10.0 to 10.4"),
        ("tensorrt", ["13.0"], {"tensorrt": "11.4.0"}, "tensorrt", ""),
        ("tensorrt", ["9.0", "7.0"], {"tensorrt": "10.13.0"}, "tensorrt", ""),
    ],
)
def test_what_does_not_support_the_gpu_builds_nothing_for_it(
    monkeypatch: pytest.MonkeyPatch,
    flavour: str,
    gpus: list[str],
    versions: dict[str, str],
    chosen: str | None,
    why: str,
) -> None:
    machine(monkeypatch, gpus, **versions)
    trt, reason = choose_tensorrt(flavour)
    assert (trt.flavour if trt else None) == chosen
    assert why in reason
    assert bool(reason) == (trt is None)


def build_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path, targets: tuple[str, ...] = ()) -> building.Built:
    """What the build stage makes of a recipe without precisions."""
    asked = SimpleNamespace(flavour="auto", precisions=(), variants={}, profile=Profile(), targets=targets)
    settings: Any = SimpleNamespace(build=asked)
    monkeypatch.setattr(building, "build_options", lambda settings: None)
    return building.run(Inputs(folder), settings, folder)


@pytest.mark.parametrize(
    ("gpus", "said"),
    [([], False), (["8.9"], False), (["9.0"], True), (["9.0", "8.9"], False), (["9.0", "8.7"], True)],
)
def test_the_build_says_that_it_is_for_other_machines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, gpus: list[str], said: bool
) -> None:
    machine(monkeypatch, gpus, rtx="1.7.1")
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        result = build_nothing(monkeypatch, tmp_path)
    expected = f"what rtx 1.7.1 builds here does not run on this machine. {INSTEAD} (GPU 9.0, 9.0): pip install "
    assert (expected in caplog.text) == said
    assert bool(result.not_here) == said
    caplog.clear()
    manifest = SimpleNamespace(stage="build", result=without_defaults(result))
    outcome: Any = SimpleNamespace(stage="build", ran=False, manifest=manifest)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        _log_missing_engines(
            Context(Recipe("toy"), tmp_path, tmp_path), outcome
        )  # and again where the stage is up to date
    assert (expected in caplog.text) == said


def test_no_install_is_advised_that_would_not_support_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ["7.0"], rtx="1.7.1")
    trt, _ = choose_tensorrt("rtx")
    assert trt is not None
    assert explain_no_gpu(trt).endswith("build with TensorRT 10.0 to 10.4 (GPU 7.0, 7.0)")


@pytest.mark.parametrize(
    ("gpus", "targets", "said"),
    [(["7.5"], (), True), (["7.5"], ("7.5",), False), (["7.5", "8.9"], (), False), ([], (), False)],
)
def test_turing_has_to_be_a_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: list[str], targets: tuple[str, ...], said: bool
) -> None:
    machine(monkeypatch, gpus, rtx="1.7.1")
    result = build_nothing(monkeypatch, tmp_path, targets)
    remedy = "has to be named as a target: --set 'build.targets=[\"7.5\"]'"
    assert result.not_here.endswith(remedy if said else "")
    assert bool(result.not_here) == said


# --- TensorRT 10.0: strategies of allocation, but memory is given as in 8.6 ---


def test_tensorrt_10_0_gives_memory_without_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, version="10.0.1")
    assert fake.trt.allocation_strategies
    assert fake.trt.memory_for_shapes
    assert not fake.trt.memory_with_size
    assert not fake.trt.memory_size_v2
    with TensorRTRunner(make_plan(tmp_path / "x.plan", tensorrt_version="10.0.1")) as runner:
        for count in (1, 3, 4, 9):
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
    assert fake.runtime.live == 0
