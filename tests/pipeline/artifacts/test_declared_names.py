"""Whatever reads a recipe's artifacts asks for each file by its name, so that a stage reads what it declares alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import STAGE as BENCHMARK
from benchmarks.contests import find_serves
from benchmarks.scenarios import scenarios
from export.tensorrt.driver import Device, DriverStatus
from pipeline.artifacts.benchmark_report import read_serves
from pipeline.artifacts.engines import engine_sources, engines
from pipeline.artifacts.fastest import engine_contender, onnx_contender
from pipeline.artifacts.manifest import Key, matches_manifest, read_stage
from pipeline.artifacts.paths import BENCHMARK as TIMES
from pipeline.artifacts.paths import (
    CARD,
    ENGINES,
    KERAS,
    ONNX,
    PARITY,
    PREDICTIONS,
    REFERENCE,
    Artifacts,
    UndeclaredError,
)
from pipeline.artifacts.stage_files import image_file, shown_images
from pipeline.recipe.load import load_recipe
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Recipe
from pipeline.serving.candidates import Verdicts, files_to_run, why_nothing_runs
from pipeline.serving.select_model import select_model
from pipeline.stages import BY_NAME
from pipeline.verification.verify import list_candidates
from pipeline.workflow.context import Context
from tests.conftest import Chain
from tests.pipeline.report_artifacts import row

NO_GPU = DriverStatus(False, "no driver")
GPU = DriverStatus(True, "", devices=(Device("GPU", "9.0", 1 << 30),))
READERS: dict[str, Callable[[Artifacts], Any]] = {
    "engines": engines,
    "engine_sources": lambda artifacts: engine_sources(artifacts, "int8"),
    "why_nothing_runs": lambda artifacts: why_nothing_runs(artifacts, NO_GPU),
    "files_to_run": files_to_run,
    "Verdicts": Verdicts,
    "read_serves": read_serves,
    "read_stage": lambda artifacts: read_stage(artifacts, "verify"),
    "as_recorded": lambda artifacts: matches_manifest(artifacts, PARITY),
    "scenarios": lambda artifacts: scenarios(artifacts, [1]),
    "engine_contender": lambda artifacts: engine_contender(artifacts, "build/rtx/int8.plan"),
    "onnx_contender": lambda artifacts: onnx_contender(artifacts, ONNX["int8"], "int8"),
    "list_candidates": lambda artifacts: list_candidates(artifacts, RuntimeOptions()),
    "choose": lambda artifacts: select_model(artifacts, Recipe("toy")),
    "shown_images": shown_images,
    "image_file": lambda artifacts: image_file(artifacts, "images/0.png"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_reads_the_artifacts_reads_declared_files_alone(read: Callable[[Artifacts], Any], tmp_path: Path) -> None:
    """Whether there are such files or not: a declaration that lacks shows on every machine."""
    with pytest.raises(UndeclaredError):
        read(Artifacts(tmp_path, ()))


def test_what_a_gpu_timed_is_read_as_it_was_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contests.driver_status", lambda: GPU)
    with pytest.raises(UndeclaredError, match=r"int8\.plan"):
        find_serves(Artifacts(tmp_path, tuple(ONNX.values())), [row("tensorrt", "int8", 1, 1.0)], RuntimeOptions())


@pytest.mark.parametrize("pattern", ENGINES)
def test_an_engine_is_a_plan_and_its_sidecar(pattern: str, tmp_path: Path) -> None:
    assert engines(Artifacts(tmp_path, ENGINES)) == []
    with pytest.raises(UndeclaredError):
        engines(Artifacts(tmp_path, (pattern,)))


def test_where_the_artifacts_lie_is_for_messages_alone(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, ())
    assert str(artifacts) == str(tmp_path)
    with pytest.raises(TypeError):
        artifacts / "x"  # type: ignore[operator]
    with pytest.raises(TypeError):
        Path(artifacts)  # type: ignore[arg-type]


def test_a_row_names_an_image_that_infer_wrote_or_one_outside(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, ("infer/images/*",))
    assert image_file(artifacts, "images/0.png") == tmp_path / "infer/images/0.png"
    assert image_file(artifacts, "/photos/0.png") == Path("/photos/0.png")
    assert [image_file(artifacts, path) for path in ("", "0.png", "../images/0.png", "images/more/0.png")] == [None] * 4


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("train", ".checkpoint"),
        *(("export", name) for name in (CARD, KERAS)),
        *(("quantize", name) for name in (CARD, ONNX["fp32"])),
        *(("build", name) for name in (*ENGINES, ONNX["int8"])),
        *(("verify", name) for name in (KERAS, CARD, *ONNX.values(), *ENGINES, REFERENCE, "verify/manifest.json")),
        *(("infer", name) for name in (CARD, *ONNX.values(), *ENGINES, PARITY, "verify/manifest.json", KERAS)),
        *(("report", name) for name in (CARD, "train/history.json", *ENGINES, PARITY, REFERENCE, TIMES)),
        *(("report", name) for name in (PREDICTIONS, "quantize/calibration.json", "infer/manifest.json")),
        *(("benchmark", name) for name in (KERAS, CARD, ONNX["fp16"], *ENGINES)),
    ],
)
def test_a_stage_that_lacks_a_declaration_does_not_run(
    name: str, pattern: str, finished_chain: Chain, tmp_path: Path
) -> None:
    stage = {**BY_NAME, "benchmark": BENCHMARK}[name]
    less = replace(stage, inputs=[one for one in stage.inputs if pattern not in one.files])
    assert len(less.inputs) < len(stage.inputs)
    recipe = finished_chain.recipe
    context = Context(load_recipe(recipe), recipe, finished_chain.artifacts)
    with pytest.raises(UndeclaredError, match="Received: "):
        stage.run(less.hand_over(context, Key({}, {}, "")), stage.settings(context), tmp_path)
