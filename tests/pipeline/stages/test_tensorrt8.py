"""The ONNX files for TensorRT 8.6: made on request, asked for where they are missing, judged where they are."""

from __future__ import annotations

import itertools
import json
import shlex
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from export.errors import ProjectError
from export.tensorrt.library import TensorRT
from pipeline.artifacts.engines import engine_source, engine_sources, plan_name
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import ONNX, TENSORRT8, Artifacts, is_written
from pipeline.recipe.load import load_recipe
from pipeline.stages import BY_NAME
from pipeline.stages import build as building
from pipeline.workflow.context import Context
from tests.fakes.engine import make_plan
from tests.stage_parts import list_candidates, run_stage

PRECISIONS = ("fp32", "fp16", "int8")
WEAK = types.SimpleNamespace(
    NetworkDefinitionCreationFlag=types.SimpleNamespace(EXPLICIT_BATCH=0), IBuilderConfig=object
)


def context(folder: Path, *overrides: str, older: bool, **build: Any) -> Context:
    """A recipe with its ONNX files, which no test here reads; with those for 8.6 or without."""
    recipe = folder / "toy.yaml"
    recipe.write_text(json.dumps({"data": {"path": "."}, "build": build}))
    made = Context(load_recipe(recipe, overrides), recipe, folder / "artifacts", overrides)
    for name in (*ONNX.values(), *(TENSORRT8.values() if older else ())):
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        (made.root / name).write_bytes(name.encode())
    return made


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """TensorRT 8.6 in the place of whatever is here; the file that each engine was built from."""
    sources: dict[str, str] = {}

    def build(source: Path, plan: Path, *, precision: str, **_: Any) -> Any:
        sources[precision] = source.name
        return types.SimpleNamespace(plan_bytes=1, seconds=1.0)

    monkeypatch.setattr(building, "choose_tensorrt", lambda flavour: (TensorRT(WEAK, "tensorrt", "8.6.0"), ""))
    monkeypatch.setattr(building, "build_engine", build)
    return sources


def test_what_each_tensorrt_builds_from() -> None:
    assert {precision: engine_source(precision, strongly_typed=True) for precision in PRECISIONS} == dict(ONNX)
    assert {precision: engine_source(precision, strongly_typed=False) for precision in PRECISIONS} == {
        "fp32": "export/model.onnx",
        "fp16": "quantize/model.fp16-trt8.onnx",
        "int8": "quantize/model.int8-trt8.onnx",
    }
    assert all(is_written(name) for name in TENSORRT8.values())
    assert not is_written("quantize/model.fp32-trt8.onnx")


def test_8_6_builds_from_its_own_files(tmp_path: Path, built: dict[str, str]) -> None:
    made = context(tmp_path, older=True)
    run_stage(building.STAGE, made, made.folder("build"))
    assert built == {"fp32": "model.onnx", "fp16": "model.fp16-trt8.onnx", "int8": "model.int8-trt8.onnx"}


def test_without_them_8_6_is_told_the_key_and_the_command(tmp_path: Path, built: dict[str, str]) -> None:
    made = context(tmp_path, "build.precisions=[fp32,fp16,int8]", older=False)
    with pytest.raises(ProjectError) as error:
        run_stage(building.STAGE, made, made.folder("build"))
    assert not built, "nothing may be built before"
    said = str(error.value)
    assert "Expected quantize/model.fp16-trt8.onnx and quantize/model.int8-trt8.onnx to build with tensorrt 8.6" in said
    assert "Received: no such file. Set quantize.tensorrt8: true in the recipe" in said
    words = shlex.split(said.split("`")[1])
    assert words[1:6] == ["-m", "pipeline", "quantize", "-c", str(made.recipe_path)]
    sets = [word for before, word in itertools.pairwise(words) if before == "--set"]
    assert sets == ["build.precisions=[fp32,fp16,int8]", "quantize.tensorrt8=true"]
    assert load_recipe(made.recipe_path, sets).quantize.tensorrt8 is True


def test_what_8_6_takes_as_it_is_needs_no_key(tmp_path: Path, built: dict[str, str]) -> None:
    made = context(tmp_path, older=False, precisions=["fp32"])
    run_stage(building.STAGE, made, made.folder("build"))
    assert built == {"fp32": "model.onnx"}


def test_engines_of_8_6_are_kept_as_long_as_their_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(building, "choose_tensorrt", lambda flavour: (None, "no TensorRT"))
    made = context(tmp_path, older=True)
    for precision in PRECISIONS:
        digest = sha256_file(made.root / engine_source(precision, strongly_typed=False))
        plan = made.root / "build/tensorrt" / plan_name(precision, None)
        make_plan(plan, precision=precision, onnx_sha256=digest, tensorrt_version="8.6.0")
    everything = [f"tensorrt/{precision}.plan" for precision in PRECISIONS]
    assert run_stage(building.STAGE, made, tmp_path).kept == tuple(everything)
    for name in TENSORRT8.values():
        (made.root / name).unlink()
    assert run_stage(building.STAGE, made, tmp_path).kept == tuple(everything[:1])


@pytest.mark.parametrize("older", [True, False])
def test_stages_take_them_only_where_they_are(tmp_path: Path, older: bool) -> None:
    made = context(tmp_path, older=older)
    expected = {*ONNX.values(), *(TENSORRT8.values() if older else ())}
    assert set(BY_NAME["build"].digests(made, {})) == expected
    for precision in PRECISIONS:
        names = dict.fromkeys(engine_source(precision, strong) for strong in (True, False))
        assert engine_sources(Artifacts(made.root), precision) == [name for name in names if name in expected]
    found = {candidate.name: candidate for candidate in list_candidates(made)}
    assert set(found) == expected
    if older:
        shown = {name: (found[name].precision, found[name].step_from) for name in TENSORRT8.values()}
        first = "export/model.onnx"
        assert shown == {TENSORRT8["fp16"]: ("fp16", first), TENSORRT8["int8"]: ("int8", first)}
        assert all(found[name].note == found[ONNX[found[name].precision]].note for name in TENSORRT8.values())
    shipped = accuracy._shipped(made.root, types.SimpleNamespace(kept=()))
    assert {path.relative_to(made.root).as_posix() for _, path in shipped} == expected
    assert len({title for title, _ in shipped}) == len(expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strong", [True, False])
def test_an_engine_is_compared_with_what_it_was_built_from(tmp_path: Path, precision: str, strong: bool) -> None:
    made = context(tmp_path, older=True)
    source = engine_source(precision, strong)
    plan = made.root / "build/tensorrt" / plan_name(precision, None)
    make_plan(plan, precision=precision, onnx_sha256=sha256_file(made.root / source))
    found = list_candidates(made)
    assert [candidate.step_from for candidate in found if candidate.backend == "tensorrt"] == [source]
    assert len({candidate.name for candidate in found}) == len(found)


def test_an_engine_whose_file_is_gone_is_stale_and_compared_with_no_other(tmp_path: Path) -> None:
    made = context(tmp_path, older=False)
    make_plan(made.root / "build/tensorrt/int8.plan", precision="int8", onnx_sha256="e" * 64)
    engine = list_candidates(made)[-1]
    assert engine.step_from is None
    assert "is stale: it was built from another file than" in engine.why_not


@pytest.mark.parametrize(("asked", "width"), [("false", 2 + 1), ("true", 2 + 1 + 2 + 4)])
def test_the_key_decides_and_counts(tmp_path: Path, asked: str, width: int) -> None:
    """The INT8 file has codes of one byte; that for TensorRT 8.6 has FP32 values."""
    plain = context(tmp_path, older=False)
    made = context(tmp_path, f"quantize.tensorrt8={asked}", older=False)
    assert plain.recipe.quantize.tensorrt8 is False
    assert BY_NAME["quantize"].bytes_per_weight(made.recipe) == width
    changed = BY_NAME["quantize"].recipe_part(plain) != BY_NAME["quantize"].recipe_part(made)
    assert changed == (asked == "true")
