"""The evidence command's --dry-run: the folder is checked and the plan is told, without a driver or a library."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import command, visit
from benchmarks.gpu.command import main
from benchmarks.gpu.plan import BUILD_BY_LEVEL
from export.records import to_json
from pipeline.artifacts.gpu_evidence import read_gpu_evidence
from pipeline.artifacts.manifest import INDEX, BundleIndex, FileRecord
from pipeline.artifacts.paths import ONNX, PARITY, REFERENCE, TENSORRT8
from tests.benchmarks.visits import SHORT, install_visit, make_artifacts
from tests.made_records import make_hop, write_verdict

STRONG, OLDER = "for TensorRT 10 and later, and TensorRT-RTX", "for TensorRT 8.6"


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module, name in ((command, "driver_status"), (visit, "driver_status"), (command, "find_tensorrt")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("the GPU was looked for"))
    return make_artifacts(tmp_path / "model")


def told(capsys: pytest.CaptureFixture[str], artifacts: Path, *options: str, status: int = 0) -> list[str]:
    """What a dry run prints, without spaces around, but for the JSON at the end."""
    files = sorted(artifacts.rglob("*"))
    assert main([str(artifacts), *options, "--dry-run"]) == status
    assert sorted(artifacts.rglob("*")) == files, "nothing is written"
    *lines, last = map(str.strip, capsys.readouterr().out.splitlines())
    assert (json.loads(last)["output"], json.loads(last)["exit"]) == (None, status)
    return lines


def planned(lines: list[str]) -> list[str]:
    """The names of the steps that would be made."""
    return [line.partition(" s  ")[2] for line in lines if " s  " in line]


def test_the_folder_and_its_plan_are_told(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, artifacts)
    assert lines[:8] == [
        f"{artifacts}:",
        "files: compared with nothing: no bundle.json",
        "Keras' answers: 60 test images, not the file that the verify stage wrote",
        "thresholds: the defaults, as the folder has no verdict",
        f"{STRONG}: fp32, fp16, int8",
        f"{OLDER}: fp32, fp16, int8",
        "other forms of the INT8 file, to time it against: none; python -m benchmarks.int8_forms makes them where the "
        "recipe was quantized",
        "planned for TensorRT 10 and later, by first guesses:",
    ]
    assert lines[9] == f"{BUILD_BY_LEVEL[3] / 10:.0f} s  build fp16-throughput"
    assert lines[-1] == f"{len(planned(lines))} steps in about 14.7 minutes"
    assert not any("left out" in line for line in lines)


def test_it_is_the_plan_that_is_made(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, artifacts, *SHORT)
    install_visit(monkeypatch)
    main([str(artifacts), "-o", str(artifacts / "x.json"), *SHORT, "--minutes", "1e-9"])
    assert planned(lines) == [step.name for step in read_gpu_evidence(artifacts / "x.json").steps]


def test_what_does_not_fit_is_named(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, artifacts, "--minutes", "0.45", "--checks", "none", "--peers", "none")
    compute = "time throughput compute fp16+int8"
    assert planned(lines) == ["machine", "build fp16-throughput", "parity fp16-throughput", compute]
    why = f"it takes about 20 s with {compute}, which needs it; 17 s are left"
    assert f"left out  build int8-throughput: {why}" in lines
    assert "left out  parity int8-throughput: there is no engine int8-throughput that runs here" in lines
    assert lines[-1] == "26 steps in about 3.6 minutes; 4 fit into the 0.45 of --minutes"


def test_rtx_is_guessed_as_itself(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, artifacts, "--flavour", "rtx")
    assert "planned for TensorRT-RTX, by first guesses:" in lines
    assert "1 s  build fp16-throughput" in lines


def test_what_the_files_serve(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in TENSORRT8.values():
        (artifacts / name).unlink()
    assert f"{OLDER}: fp32; no fp16, int8, which quantize.tensorrt8: true makes" in told(capsys, artifacts)
    (artifacts / ONNX["fp32"]).unlink()
    lines = told(capsys, artifacts)
    assert f"{STRONG}: fp16, int8; no fp32" in lines
    assert "left out  build fp32-latency: export/model.onnx is not in the folder" in lines
    assert "left out  PyTorch eager, batch 1: it needs export/model.onnx, which is not there" in lines


def test_files_for_8_6_alone_are_planned_for_it(
    artifacts: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for precision in ("fp16", "int8"):
        (artifacts / ONNX[precision]).unlink()
    lines = told(capsys, artifacts)
    assert "planned for TensorRT 8.6, by first guesses:" in lines
    assert "build int8-throughput" in planned(lines)
    assert told(capsys, artifacts, "--flavour", "rtx", status=2) == []
    assert "for TensorRT-RTX. Received: no such file." in caplog.text


def test_what_the_folder_has_is_told(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_verdict(artifacts, make_hop(ONNX["int8"]))
    (artifacts / INDEX).write_text(
        json.dumps(to_json(BundleIndex(recipe="r", recipe_sha256="", files={REFERENCE: FileRecord("f", 1)})))
    )
    lines = told(capsys, artifacts, "--precisions", "fp32")
    assert f"files: not as the bundle recorded: {ONNX['fp32']}, {REFERENCE}" in lines
    assert "thresholds: of the recipe" in lines


@pytest.mark.parametrize("name", [REFERENCE, PARITY, INDEX])
def test_a_damaged_folder_is_refused(artifacts: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (artifacts / name).write_bytes(b"{")
    assert told(capsys, artifacts, status=2) == []
