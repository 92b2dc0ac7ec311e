"""The evidence command where there is nothing to measure: artifacts that lack something, a machine without a GPU."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import command, folder
from benchmarks.gpu.command import main
from export.errors import ProjectError
from export.tensorrt.driver import DriverStatus
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.gpu_evidence import read_gpu_evidence
from pipeline.artifacts.manifest import INDEX, Key, write_manifest
from pipeline.artifacts.paths import ONNX, REFERENCE
from tests.benchmarks.visits import COUNT, SHORT, install_visit, make_artifacts
from tests.made_records import make_hop, write_verdict


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
    line = f" A bundle is unpacked first: mkdir mine && tar xf {tmp_path / 'toy.tar'} -C mine"
    for name, why, after in (("nope", "which does not exist", ""), ("toy.tar", "which is a file", line)):
        caplog.clear()
        assert main([str(tmp_path / name)]) == 2
        assert f"Received: {tmp_path / name}, {why}. In {tmp_path} there are: toy.{after}\n" in caplog.text
        assert "Errno" not in caplog.text


def test_a_damaged_file_of_answers_is_said_once(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    (artifacts / REFERENCE).write_bytes(b"x")
    assert main([str(artifacts)]) == 2
    said = "Received: File is not a zip file. Copy or write it again."
    assert caplog.messages == [f"Expected Keras' answers in {artifacts / REFERENCE}. {said}"]


def test_a_folder_is_named_whole(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["."]) == 2
    assert f"Expected a recipe's artifacts in {tmp_path}. Received: no " in caplog.text
    monkeypatch.chdir(artifacts / "verify")
    for name in (".", str(artifacts / "verify")):
        caplog.clear()
        assert main([name]) == 2
        assert caplog.messages[-1].endswith(f"It is a folder within one: name {artifacts}.")


def index_of(artifacts: Path, **others: str) -> None:
    """A bundle's index of the folder as it is, but for the sha256 of ``others``."""
    files = {str(path.relative_to(artifacts)): sha256_file(path) for path in artifacts.glob("*/*")}
    entries = {name: {"sha256": others.get(name, sha256), "bytes": 1} for name, sha256 in files.items()}
    (artifacts / INDEX).write_text(json.dumps({"schema": 1, "recipe": "r", "recipe_sha256": "", "files": entries}))


@pytest.mark.parametrize("changed", [(), ("fp16",), ("int8", REFERENCE)], ids=str)
def test_files_that_the_bundle_recorded_otherwise_are_used_and_said(
    artifacts: Path, changed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tar compares nothing."""
    strong = install_visit(monkeypatch).trt.strongly_typed
    altered = tuple(name if name == REFERENCE else engine_source(name, strong) for name in changed)
    not_used = engine_source("int8", not strong)
    index_of(artifacts, **dict.fromkeys((*altered, not_used), "f" * 64))
    output = artifacts / "evidence.json"
    assert main([str(artifacts), "-o", str(output), *SHORT, "--precisions", "fp16,int8", "--minutes", "1e-9"]) == 1
    assert read_gpu_evidence(output).model.altered == altered
    listed = ", ".join(altered)
    page = output.with_suffix(".md").read_text()
    assert (f"| altered | not as the bundle recorded: {listed} |" in page) is bool(altered)
    said = f"{listed}: not as the bundle recorded, and used all the same; the evidence says so"
    assert [line for line in caplog.messages if "not as the bundle" in line] == ([said] if altered else [])


def test_a_file_that_cannot_be_read_is_one_sentence(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    index_of(artifacts)
    monkeypatch.setattr(folder, "sha256_file", refuse)
    with pytest.raises(ProjectError, match=r"Expected to read .*reference.npz. Received: Permission denied."):
        folder.altered_files(artifacts, [REFERENCE])


@pytest.mark.parametrize("index", ["{", "[]", '{"files": {"verify/reference.npz": 5}}'])
def test_a_damaged_index_is_refused(
    artifacts: Path, index: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (artifacts / INDEX).write_text(index)
    install_visit(monkeypatch)
    assert main([str(artifacts), *SHORT]) == 2
    assert str(artifacts / INDEX) in caplog.text
    assert f"Unpack the bundle again, or delete {INDEX}" in caplog.text


@pytest.mark.parametrize("verdict", [True, False])
def test_default_thresholds_are_said(
    artifacts: Path, verdict: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if verdict:
        write_verdict(artifacts, make_hop(ONNX["int8"]))
    install_visit(monkeypatch)
    output = artifacts / "evidence.json"
    main([str(artifacts), "-o", str(output), *SHORT, "--precisions", "fp16", "--variants", "latency"])
    assert read_gpu_evidence(output).model.own_thresholds is verdict
    said = "the folder has no verdict (verify/parity.json), so the default thresholds judge; the evidence says so"
    assert caplog.messages.count(said) == (not verdict)
    words = "Over all: pass. Judged by the default thresholds, as the folder has no verdict.\n"
    assert (words in output.with_suffix(".md").read_text()) is not verdict


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
    monkeypatch.setattr(command, "driver_status", lambda: pytest.fail("the GPU was looked for"))
    with np.load(artifacts / REFERENCE) as held:
        arrays = {**held, name: other}
    np.savez(artifacts / REFERENCE, **arrays)
    assert main([str(artifacts)]) == 2
    assert f"Expected Keras' answers in {artifacts / REFERENCE}. Received: " in caplog.text


def test_a_bundle_without_what_was_named_is_refused_before_the_gpu(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(command, "driver_status", lambda: pytest.fail("the GPU was looked for"))
    for strong in (True, False):
        (artifacts / engine_source("int8", strong)).unlink(missing_ok=True)
    assert main([str(artifacts), "--precisions", "fp16,int8"]) == 2
    assert "Received: no quantize/model.int8.onnx." in caplog.text


def test_without_a_gpu_the_last_line_says_so(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "driver_status", lambda: DriverStatus(False, "no NVIDIA driver"))
    monkeypatch.setattr(command, "find_tensorrt", lambda flavour: pytest.fail("TensorRT was touched"))
    assert main([str(artifacts)]) == 3
    why = (
        "Expected an NVIDIA GPU and TensorRT. Received: no NVIDIA driver. Nothing was measured: run it where both are."
    )
    assert json.loads(capsys.readouterr().out) == {"output": None, "exit": 3, "error": why}
    assert not (artifacts / "evidence").exists()


@pytest.mark.parametrize("words", [[], ["nope"], ["nope", "--level", "x"], ["nope", "--prec", "fp16"]], ids=str)
def test_a_refusal_ends_with_json_too(
    words: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(words) == 2
    assert json.loads(capsys.readouterr().out) == {"output": None, "exit": 2, "error": caplog.messages[-1]}
    assert caplog.messages[-1].startswith("Expected ")


def test_an_interrupt_before_the_first_step_ends_with_json(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> DriverStatus:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "driver_status", interrupt)
    assert main([str(artifacts)]) == 130
    told = {"output": None, "exit": 130, "error": "Interrupted before the first step."}
    assert json.loads(capsys.readouterr().out) == told
