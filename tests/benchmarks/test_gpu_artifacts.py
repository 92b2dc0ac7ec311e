"""The evidence command where there is nothing to measure: artifacts that lack something, a machine without a GPU."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_evidence
from benchmarks.gpu_evidence import main
from benchmarks.gpu_targets import judge_targets
from export.driver import DriverStatus
from pipeline.gpu_evidence import read_gpu_evidence
from pipeline.layout import REFERENCE, engine_source
from pipeline.manifest import Key, write_manifest
from tests.benchmarks.visits import COUNT, SHORT, install_visit, make_artifacts


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return make_artifacts(tmp_path / "model")


def test_artifacts_without_keras_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.mark.parametrize("change", ["nothing", "fewer", "no manifest"])
def test_answers_that_verify_did_not_write_are_taken_and_said(
    artifacts: Path, change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A visit may bring fewer images, to travel lighter."""
    path = artifacts / REFERENCE
    if change != "no manifest":
        write_manifest(path.parent, stage="verify", recipe="toy", key=Key({}, {}, ""), seconds=1.0, result={})
    if change == "fewer":
        with np.load(path) as held:
            fewer = {name: held[name] if name == "meta" else held[name][:3] for name in held.files}
        np.savez(path, **fewer)
    install_visit(monkeypatch)
    output = artifacts / "evidence.json"
    assert main([str(artifacts), "-o", str(output), *SHORT, "--variants", "throughput"]) in (0, 1)
    model = read_gpu_evidence(output).model
    verified = change == "nothing"
    assert (model.as_verified, model.test_images) == (verified, 3 if change == "fewer" else COUNT)
    warned = "verify/reference.npz is not the file that the verify stage wrote; the evidence says so"
    assert (warned in caplog.text) is not verified
    page = output.with_suffix(".md").read_text()
    assert ("which are not the file that the verify stage wrote" in page) is not verified


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("pixels", np.zeros((0, 4, 5, 3), np.uint8)),
        ("pixels", np.zeros((COUNT, 4, 5, 1), np.uint8)),
        ("pixels", np.zeros((COUNT, 4, 5, 3), np.float32)),
        ("pixels", np.zeros(COUNT, np.uint8)),
        ("labels", np.zeros(COUNT)),
        ("labels", np.zeros(3, np.int64)),
        ("logits", np.zeros(COUNT, np.float32)),
        ("logits", np.zeros((COUNT, 0), np.float32)),
        ("logits", np.zeros((COUNT - 1, 3), np.float32)),
        ("logits", np.zeros((COUNT, 3), np.int64)),
        ("meta", np.frombuffer(b'{"model_sha256": 5}', np.uint8)),
        ("meta", np.frombuffer(b"[]", np.uint8)),
    ],
)
def test_answers_that_do_not_go_together_are_refused_before_the_gpu(
    name: str, other: np.ndarray, artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_evidence, "driver_status", lambda: pytest.fail("the GPU was looked for"))
    with np.load(artifacts / REFERENCE) as held:
        arrays = {**held, name: other}
    np.savez(artifacts / REFERENCE, **arrays)
    assert main([str(artifacts)]) == 2
    assert f"Expected Keras' answers in {artifacts / REFERENCE}. Received: " in caplog.text


def test_a_bundle_without_what_was_named_is_refused_before_the_gpu(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_evidence, "driver_status", lambda: pytest.fail("the GPU was looked for"))
    for strong in (True, False):
        (artifacts / engine_source("int8", strong)).unlink(missing_ok=True)
    assert main([str(artifacts), "--precisions", "fp16,int8"]) == 2
    assert "Received: no quantize/model.int8.onnx." in caplog.text


def test_without_a_gpu_every_target_is_open(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_evidence, "driver_status", lambda: DriverStatus(False, "no NVIDIA driver"))
    monkeypatch.setattr(gpu_evidence, "find_tensorrt", lambda flavour: pytest.fail("TensorRT was touched"))
    assert main([str(artifacts)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(judge_targets((), None, None, False)) == 10
    assert all(line.endswith("not measured") for line in lines)
    assert not (artifacts / "evidence").exists()
