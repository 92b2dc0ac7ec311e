from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.tensorrt.sidecar import sidecar_path
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.parity_report import FAIL, FROM_KERAS
from pipeline.artifacts.paths import ONNX, TENSORRT8, Artifacts
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import VerifyThresholds
from pipeline.verification.checks.engine_files import EngineFile, check_engine_file
from pipeline.verification.parity import Reference, judge
from pipeline.verification.verify import list_candidates, run_all
from tests.fakes.engine import make_plan

PLAN = "build/rtx/int8.plan"


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """ONNX files whose content is their name, and an engine of the INT8 file."""
    for name in ONNX.values():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    make_plan(tmp_path / PLAN, (2, 4, 8), precision="int8", onnx_sha256=sha256_file(tmp_path / ONNX["int8"]))
    return Artifacts(tmp_path)


def checked(artifacts: Artifacts, plan: str = PLAN) -> EngineFile:
    return check_engine_file(artifacts, plan, sha256_file(artifacts.path(plan)))


def test_an_engine_of_a_present_file_has_its_source_and_batch_sizes(artifacts: Artifacts) -> None:
    assert checked(artifacts) == EngineFile(ONNX["int8"], (2, 4, 8, 9))
    older = artifacts.path(TENSORRT8["int8"])
    older.write_text("for 8.6")
    make_plan(artifacts.path(PLAN), precision="int8", onnx_sha256=sha256_file(older))
    assert checked(artifacts).source == TENSORRT8["int8"]


def test_an_engine_of_another_file_is_stale_and_says_what_builds_it(artifacts: Artifacts) -> None:
    artifacts.path(ONNX["int8"]).write_text("quantized again")
    file = checked(artifacts)
    assert (file.source, file.batch_sizes) == (None, ())
    assert f"{PLAN} is stale: it was built from another file than {ONNX['int8']} of today" in file.why_not
    assert file.why_not.endswith("Build it again: python -m pipeline build -c RECIPE --force")


def test_an_altered_or_renamed_engine_is_refused(artifacts: Artifacts) -> None:
    plan = artifacts.path(PLAN)
    for file in (plan, sidecar_path(plan)):
        (file.parent / file.name.replace("int8", "fp16")).write_bytes(file.read_bytes())
    renamed = checked(artifacts, "build/rtx/fp16.plan").why_not
    assert "build/rtx/fp16.plan is named FP16, and its sidecar says INT8" in renamed
    plan.write_bytes(b"another plan")
    assert "is not the plan that its sidecar describes" in checked(artifacts).why_not
    sidecar_path(plan).write_text("{")
    assert checked(artifacts) == EngineFile(), "the runner says what is wrong with it"


def test_a_stale_engine_fails_where_it_cannot_be_run_too(
    artifacts: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts.path(ONNX["int8"]).write_text("quantized again")
    (candidate,) = (one for one in list_candidates(artifacts, RuntimeOptions()) if one.name == PLAN)
    assert candidate.step_from is None, "it was made from none of these files"
    reference = Reference(
        "k", "k" * 64, np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, int), np.eye(4, dtype=np.float32)
    )
    answers = run_all([candidate], reference, 4)
    (hop,) = judge([candidate], answers, reference, VerifyThresholds()).hops
    assert (hop.kind, hop.verdict) == (FROM_KERAS, FAIL)
    assert "is stale" in hop.why
    assert "is stale" not in caplog.text, "the table of the verdict tells it"
