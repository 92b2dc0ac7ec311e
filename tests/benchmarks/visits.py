"""A fake GPU and a model's artifacts for the evidence command; as a program, visits that are killed.

``python -m tests.benchmarks.visits FOLDER MOMENT...`` makes a visit for each moment in a process of its own, and kills
that process: a whole number is a write of a file that does not happen, a number with a point is seconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import checks, command, visit
from benchmarks.gpu.command import main
from export.errors import ProjectError
from export.tensorrt.sidecar import Sidecar, read_sidecar
from pipeline.artifacts import files
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.gpu_evidence import GpuEvidence, Step
from pipeline.artifacts.paths import ONNX
from pipeline.runners.tensorrt import runner as runner_module
from tests.fakes.engine import install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT

COUNT = 60
SHORT = ("--batch", "4", "--seconds", "0.001", "--checks", "none")
QUICK = (*SHORT[:-2], "--cycles", "2")


def step_of(evidence: GpuEvidence, name: str) -> Step:
    return next(step for step in evidence.steps if step.name == name)


def install_visit(monkeypatch: pytest.MonkeyPatch, kind: str = "10") -> FakeTensorRT:
    """The fake GPU where the command looks for one. FP32 cannot be built; PyTorch is not there."""
    fake = install(monkeypatch, kind)
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)  # for a crash of the whole machine; it costs much
    monkeypatch.setattr(checks, "_WARM_UP", 1)
    monkeypatch.setattr(checks, "_installed", lambda name: False)
    monkeypatch.setattr(visit, "why_without_peers", lambda model: "torch not installed")
    for module in (command, visit):
        monkeypatch.setattr(module, "driver_status", runner_module.driver_status)
    monkeypatch.setattr(command, "find_tensorrt", lambda flavour: fake.trt)

    def build(source: Path, plan: Path, *, precision: str, profile: Any, variant: str, **_: Any) -> Sidecar:
        fake.profile = (profile.min, profile.opt, profile.max)
        if precision == "fp32":
            raise ProjectError(f"Expected a graph in {source}. Received: none.")
        described = {
            "asked": {"precision": precision, "convolutions": {precision: 53}, "layers": {"conv": precision}},
            "found": None,
            "seconds": 0.1,
            "flavour": fake.trt.flavour,
        }
        make_plan(
            plan, fake.profile, precision=precision, variant=variant, network_layers={"CONVOLUTION": 53}, **described
        )
        return read_sidecar(plan)

    monkeypatch.setattr(visit, "build_engine", build)
    # One fake stands for all engines: its profile is that of the plan that is opened.
    enter = runner_module.TensorRTRunner.__enter__

    def open_engine(runner: Any) -> Any:
        profile = runner.sidecar.profile
        fake.profile = (profile.min, profile.opt, profile.max)
        return enter(runner)

    monkeypatch.setattr(runner_module.TensorRTRunner, "__enter__", open_engine)
    return fake


def make_artifacts(folder: Path) -> Path:
    """What the command reads of a bundle: Keras' answers and ONNX files."""
    images = pixels(COUNT)
    logits = images.mean((1, 2)).astype(np.float32)
    (folder / "verify").mkdir(parents=True)
    np.savez(
        folder / "verify" / "reference.npz",
        pixels=images,
        labels=logits.argmax(1),
        logits=logits,
        meta=np.frombuffer(json.dumps({"model_sha256": "0" * 64}).encode(), np.uint8),
    )
    for name in {engine_source(precision, strong) for precision in ONNX for strong in (True, False)}:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"onnx")
    return folder


def kill_at_write(moment: int) -> None:
    """Let this process be killed where it would put a file in its place: it is written by then, under another name."""
    replace, left = os.replace, [moment]

    def replace_or_die(source: Any, target: Any) -> None:
        if Path(target).suffix in (".json", ".md") and Path(target).stem == "evidence":
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    files.os.replace = replace_or_die  # type: ignore[attr-defined]


def killed_visit(artifacts: Path, output: Path, moment: str) -> int:
    """Make a visit in a process of its own and kill it; give how the process ended."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            if "." not in moment:
                kill_at_write(int(moment))
            status = main([str(artifacts), "-o", str(output), *QUICK])
        finally:
            os._exit(status)
    if "." in moment:
        time.sleep(float(moment))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def visit_and_kill(folder: Path, moments: list[str]) -> None:
    """Make the visits; print how each process ended."""
    install_visit(pytest.MonkeyPatch())
    logging.disable()
    artifacts = make_artifacts(folder / "model")
    for index, moment in enumerate(moments):
        print(moment, killed_visit(artifacts, folder / str(index) / "evidence.json", moment), file=sys.stderr)


if __name__ == "__main__":
    visit_and_kill(Path(sys.argv[1]), sys.argv[2:])
