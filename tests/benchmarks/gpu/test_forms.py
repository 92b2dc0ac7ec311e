"""Other forms of the INT8 file in a visit: built, timed in turns with it, and what that says about the recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import forms
from benchmarks.gpu.command import main
from benchmarks.gpu.forms import verdict
from benchmarks.gpu.markdown import as_markdown
from pipeline.artifacts.gpu_evidence import Form, FormContest, GpuEvidence, read_gpu_evidence
from pipeline.artifacts.paths import FORMS
from tests.benchmarks.visits import SHORT, install_visit, make_artifacts
from tests.fakes.gpu import FakeTensorRT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install_visit(monkeypatch)


def folder(tmp_path: Path) -> Path:
    artifacts = make_artifacts(tmp_path / "model")
    for name in FORMS.values():
        (artifacts / name).parent.mkdir(parents=True, exist_ok=True)
        (artifacts / name).write_bytes(b"onnx")
    return artifacts


def run(artifacts: Path, *options: str) -> tuple[int, GpuEvidence]:
    output = artifacts / "evidence.json"
    status = main([str(artifacts), "-o", str(output), *SHORT, "--peers", "none", *options])
    return status, read_gpu_evidence(output)


def test_each_form_is_built_and_timed_in_turns(gpu: FakeTensorRT, tmp_path: Path) -> None:
    status, evidence = run(folder(tmp_path), "--precisions", "fp16,int8")
    assert (status, evidence.failures) == (0, ())
    assert list(evidence.engines) == ["fp16-throughput", "int8-throughput", "fp16-latency", "int8-latency"]
    names = [f"{form}-{variant}" for variant in ("throughput", "latency") for form in ("plain", "trunk-fp16")]
    assert list(evidence.forms) == names
    assert [engine.profile.max for engine in evidence.forms.values()] == [4, 4, 1, 1]
    rows = [(row.form, row.batch, row.measures) for row in evidence.contests]
    assert rows == [
        *(("plain", 4, "compute"), ("trunk-fp16", 4, "compute")),
        *(("plain", 1, "compute"), ("plain", 1, "infer"), ("trunk-fp16", 1, "compute"), ("trunk-fp16", 1, "infer")),
    ]
    assert all(row.rounds == forms.ROUNDS for row in evidence.contests if row.measures == "compute")
    steps = [step.name for step in evidence.steps]
    assert steps.index("time latency stream pinned int8" if "time latency stream pinned int8" in steps
                       else "time latency compute fp16+int8") < steps.index("build plain-throughput")  # fmt: skip
    page = (tmp_path / "model" / "evidence.md").read_text()
    assert "## INT8 against other forms of its file" in page
    assert "| not shifted | 4 | the engine alone |" in page
    assert gpu.runtime.live == 0


def test_8_6_has_no_typed_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_visit(monkeypatch, "8")
    _, evidence = run(folder(tmp_path), "--precisions", "int8", "--variants", "throughput")
    assert list(evidence.forms) == ["plain-throughput"]


def test_without_the_file_as_shipped_there_is_nothing_to_compare(gpu: FakeTensorRT, tmp_path: Path) -> None:
    _, evidence = run(folder(tmp_path), "--precisions", "fp16")
    assert not [step for step in evidence.steps if "plain" in step.name]


def test_a_form_that_cannot_be_timed_is_an_error_of_its_own(
    gpu: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runner: object, batch: int) -> str:
        return "no graph"

    monkeypatch.setattr(forms, "why_without_graph", refuse)
    status, evidence = run(folder(tmp_path), "--precisions", "int8", "--variants", "throughput")
    assert status == 1
    assert evidence.failures[0] == "plain against int8 as shipped, batch 4, compute: no graph"
    assert "## INT8 against" in as_markdown(evidence)


ROW = FormContest("trunk-fp16", "latency", 1, "compute", 20, 1.0, 1.0, 1.0, (0.99, 1.01))


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(0.99, 1.01), (1.0, 1.03)], "Keep quantize.trunk: fp32: it costs at most 3 %."),
        ([(0.99, 1.01), (1.02, 1.06)], "is not decided"),
        (
            [(0.99, 1.01), (1.04, 1.06)],
            "more than 3 % (batch 1, the engine alone: +5.0 %, 95 % from +4.0 to +6.0)",
        ),
        ([None], ""),
    ],
)
def test_a_choice_is_taken_back_where_it_is_decidedly_slower(intervals: list[tuple[float, float]], said: str) -> None:
    rows = [replace(ROW, interval=one, ratio=1.0 if one is None else sum(one) / 2) for one in intervals]
    found = verdict("trunk-fp16", rows)
    assert said in found
    assert (found == "") == (said == "")
    assert found.endswith("set quantize.trunk: fp16.") == ("more than 3 % (" in found)
    assert verdict("plain", rows) == ""


@pytest.mark.parametrize("form", ["plain", "trunk-fp16"])
def test_the_ratio_is_that_of_the_file_as_shipped_over_the_form(
    form: Form, gpu: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(runner: object, images: object, measures: str, count: int) -> object:
        # The folder of a form's plan is its name.
        return lambda: [3.0 if runner.plan_path.parent.name in FORMS else 6.0] * 5  # type: ignore[attr-defined]

    monkeypatch.setattr(forms, "engine_call", slower)
    monkeypatch.setattr(forms, "why_without_graph", lambda runner, batch: "")
    _, evidence = run(folder(tmp_path), "--precisions", "int8", "--variants", "throughput")
    row = next(row for row in evidence.contests if row.form == form)
    assert (row.shipped_ms, row.form_ms, row.ratio, row.interval) == (6.0, 3.0, 2.0, (2.0, 2.0))
    with pytest.raises(ValueError, match="either a ratio or an error"):
        replace(row, error="x")
