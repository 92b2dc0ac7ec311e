"""The evidence command on the fake GPU, and what it says without one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_checks, gpu_evidence, gpu_timings
from benchmarks.gpu_evidence import main
from benchmarks.gpu_timings import judge_targets
from export.driver import DriverStatus
from export.errors import ExportError
from export.sidecar import read_sidecar
from pipeline.layout import ONNX, PARITY, REFERENCE
from pipeline.parity_report import read_parity, write_parity
from pipeline.recipe import Thresholds
from pipeline.runners import tensorrt as runner_module
from tests.fake_engine import SIZE, install, make_plan, pixels
from tests.fake_gpu import FakeTensorRT
from tests.made_records import make_hop, write_verdict

COUNT = 60


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = install(monkeypatch)
    monkeypatch.setattr(gpu_checks, "_WARM_UP", 1)
    monkeypatch.setattr(gpu_evidence, "driver_status", runner_module.driver_status)
    monkeypatch.setattr(gpu_evidence, "find_tensorrt", lambda flavour: fake.trt)
    for module in (gpu_checks, gpu_timings):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if "." not in name else name)

    def build(source: Path, plan: Path, *, precision: str, profile: Any, **_: Any) -> dict[str, Any]:
        fake.profile = (profile.min, profile.opt, profile.max)
        if precision == "fp32":
            raise ExportError("Expected a graph. Received: none.")
        described = {
            "asked": {"precision": precision, "convolutions": {}, "layers": {"conv": precision}},
            "found": None,
            "warnings": [],
            "seconds": 0.1,
        }
        make_plan(plan, fake.profile, precision=precision, network_layers={"CONVOLUTION": 53}, **described)
        return read_sidecar(plan)

    monkeypatch.setattr(gpu_evidence, "build_engine", build)
    # One fake stands for all engines: its profile is that of the plan that is opened.
    enter = runner_module.TensorRTRunner.__enter__

    def open_engine(runner: Any) -> Any:
        profile = runner.sidecar.profile
        fake.profile = (profile.min, profile.opt, profile.max)
        return enter(runner)

    monkeypatch.setattr(runner_module.TensorRTRunner, "__enter__", open_engine)
    return fake


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    images = pixels(COUNT)
    logits = images.mean((1, 2)).astype(np.float32)
    (tmp_path / "model" / "verify").mkdir(parents=True)
    np.savez(
        tmp_path / "model" / "verify" / "reference.npz",
        pixels=images,
        labels=logits.argmax(1),
        logits=logits,
        meta=np.frombuffer(json.dumps({"model_sha256": "0" * 64}).encode(), np.uint8),
    )
    for name in ONNX.values():
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(b"onnx")
    return tmp_path / "model"


def run(artifacts: Path, *options: str) -> tuple[int, dict[str, Any]]:
    output = artifacts / "evidence.json"
    short = ("--batch", "4", "--seconds", "0.01", "--cycles", "2")
    status = main([str(artifacts), "-o", str(output), *short, *options])
    return status, json.loads(output.read_text())


def test_everything_is_gathered(gpu: FakeTensorRT, artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, evidence = run(artifacts, "--precisions", "fp16,int8", "--commit", "abc")
    assert status == 0
    assert evidence["commit"] == "abc"
    assert evidence["tensorrt"] == {"flavour": "tensorrt", "version": "10.13.0"}
    assert evidence["model"] == {"name": "model", "size": list(SIZE), "classes": 3, "test_images": COUNT}
    names = ["fp16-throughput", "fp16-latency", "int8-throughput", "int8-latency"]
    assert list(evidence["engines"]) == names
    assert [one["profile"]["max"] for one in evidence["engines"].values()] == [4, 1, 4, 1]
    assert evidence["engines"]["fp16-latency"]["asked"] == {"precision": "fp16", "convolutions": {}}
    assert evidence["parity"]["verdict"] == "pass"
    checks = {(row["check"], row["engine"]) for row in evidence["checks"]}
    assert len(checks) == len(names) * len(gpu_checks.CHECKS) + 1
    assert {row["result"] for row in evidence["checks"]} == {"pass", "skipped"}
    timed = {(row["name"], row["precision"], row["measures"], row["batch"]) for row in evidence["timings"]}
    assert ("engine", "int8", "stream pinned", 4) in timed
    assert ("engine", "fp16", "compute", 1) in timed
    assert ("engine without graphs", "fp16", "infer", 1) in timed
    assert not any("error" in row for row in evidence["timings"])
    targets = {one["target"]: one for one in evidence["targets"]}
    assert targets["int8 over fp16: images a second, host to host, largest batch"]["met"] in (True, False)
    why = targets["int8: images a second, host to host, ResNet-50 at 224x224 on an H200"]["why"]
    assert why.startswith("measured on another GPU or model")
    output = capsys.readouterr().out.splitlines()
    assert json.loads(output[-1])["failed"] == 0
    assert any("not measured" in line for line in output)  # PyTorch


def test_what_fails_is_written_and_counted(gpu: FakeTensorRT, artifacts: Path) -> None:
    def spoil(results: dict[str, np.ndarray]) -> None:
        if len(results["logits"]) > 2:
            results["logits"][2] += 100

    gpu.spoil = spoil
    status, evidence = run(artifacts)
    assert status == 1
    assert "Expected a graph" in evidence["engines"]["fp32-throughput"]["error"]
    assert evidence["parity"]["verdict"] == "fail"
    failed = {(row["check"], row["engine"]) for row in evidence["checks"] if row["result"] == "fail"}
    assert ("equal_images_give_equal_rows", "int8-throughput") in failed
    assert ("equal_images_give_equal_rows", "int8-latency") not in failed


def test_what_was_known_before_a_crash_is_kept(
    gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_evidence, "time_batch", crash)
    with pytest.raises(KeyboardInterrupt):
        run(artifacts)
    evidence = json.loads((artifacts / "evidence.json").read_text())
    assert evidence["parity"]["verdict"] == "pass"
    assert evidence["checks"]


def test_artifacts_without_keras_answers(gpu: FakeTensorRT, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([str(tmp_path), "-o", str(tmp_path / "x.json")]) == 2
    said = f"Expected a recipe's artifacts in {tmp_path}. Received: no export/model.onnx, "
    assert said in caplog.text
    assert "verify/reference.npz. Run the recipe" in caplog.text
    assert not (tmp_path / "x.json").exists()


def test_artifacts_that_are_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "toy" / "verify").mkdir(parents=True)
    (tmp_path / "toy" / REFERENCE).write_bytes(b"")
    (tmp_path / "toy.tar").write_bytes(b"")
    for name, why in (("nope", "which does not exist"), ("toy.tar", "which is a file: unpack a bundle first")):
        caplog.clear()
        assert main([str(tmp_path / name)]) == 2
        assert f"Received: {tmp_path / name}, {why}. In {tmp_path} there are: toy." in caplog.text
        assert "Errno" not in caplog.text


def test_a_damaged_file_of_answers_is_said_once(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    (artifacts / REFERENCE).write_bytes(b"x")
    assert main([str(artifacts)]) == 2
    assert f"Expected Keras' answers in {artifacts / REFERENCE}." in caplog.text


def test_a_bundle_that_is_not_whole_is_refused_before_the_gpu(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_evidence, "driver_status", lambda: pytest.fail("the GPU was looked for"))
    (artifacts / ONNX["int8"]).unlink()
    assert main([str(artifacts)]) == 2
    assert "no quantize/model.int8.onnx" in caplog.text


def test_thresholds_are_the_recipes(gpu: FakeTensorRT, artifacts: Path) -> None:
    write_verdict(artifacts, make_hop(ONNX["int8"]))
    report = read_parity(artifacts / PARITY)
    asked = {**report.thresholds, "int8": Thresholds(relative_error=-1.0)}
    write_parity(artifacts / PARITY, replace(report, thresholds=asked))
    status, evidence = run(artifacts, "--precisions", "fp16,int8")
    assert status == 1
    verdicts = {hop["candidate"]: hop["verdict"] for hop in evidence["parity"]["hops"]}
    assert (verdicts["fp16-throughput"], verdicts["int8-throughput"]) == ("pass", "fail")
    assert evidence["parity"]["thresholds"]["int8"]["relative_error"] == -1.0


def test_without_a_gpu_every_target_is_open(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_evidence, "driver_status", lambda: DriverStatus(False, "no NVIDIA driver"))
    monkeypatch.setattr(gpu_evidence, "find_tensorrt", lambda flavour: pytest.fail("TensorRT was touched"))
    assert main([str(artifacts)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(judge_targets([], None, False)) == 8
    assert all(line.endswith("not measured") for line in lines)


def test_options_that_make_no_sense(artifacts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for *options, said in (
        ("--batch", "1", "--batch of at least 2"),
        ("--precisions", "int4", "--precisions of fp32,fp16,int8"),
        ("--cycles", "0", "--cycles of at least 1"),
        ("--seconds", "0", "--seconds above 0"),
        ("--plans", str(tmp_path / "file"), f"where {tmp_path / 'file'} is no folder"),
        ("-o", str(tmp_path), f"such as {tmp_path / 'evidence.json'}"),
        ("-o", "x.txt", "ends in .json after -o, such as x.json"),
    ):
        caplog.clear()
        assert main([str(artifacts), *options]) == 2
        assert said in caplog.text


def row(name: str, precision: str, measures: str, batch: int, speed: float, p99: float = 1.0) -> dict[str, Any]:
    return {
        "name": name,
        "precision": precision,
        "measures": measures,
        "batch": batch,
        "images_per_second": speed,
        "p99_ms": p99,
    }


def test_targets_are_judged() -> None:
    rows = [
        row("engine", "fp16", "compute", 256, 30_000),
        row("engine", "fp16", "stream", 256, 28_500),
        row("engine", "int8", "compute", 256, 70_000),
        row("engine", "int8", "stream", 256, 61_000),
        row("engine", "int8", "infer", 1, 3_000, p99=0.34),
        row("PyTorch graphs", "fp16", "compute", 256, 20_000),
        row("PyTorch compile", "fp16", "compute", 256, 29_000),
    ]
    judged = judge_targets(rows, "NVIDIA H200", resnet50=True)
    assert [(one["measured"], one["met"]) for one in judged] == [
        (None, None),
        (0.95, True),
        (0.8714, False),
        (0.34, True),
        (61_000, True),
        (2.1404, True),
        (1.5, True),
        (1.0345, False),
    ]
    elsewhere = judge_targets(rows, "NVIDIA L4", resnet50=True)
    assert [one["met"] for one in elsewhere] == [None, True, False, None, None, True, True, False]
    assert judge_targets(rows, "NVIDIA H200", resnet50=False)[4]["met"] is None


def test_the_file_is_named_after_gpu_and_tensorrt(gpu: FakeTensorRT) -> None:
    path = gpu_evidence.evidence_path("NVIDIA H200", gpu.trt)
    assert path.as_posix().endswith("benchmarks/results/h200-tensorrt-10.13.0.json")
