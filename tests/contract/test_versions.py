"""The code runs on the fake of every TensorRT: a name that a version lacks and that is not asked for first fails.

Nothing here says what is computed or built, which other tests do: these are to touch every name on every version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.errors import ProjectError
from export.tensorrt import build as engine
from export.tensorrt.build import build_engine
from export.tensorrt.compatibility import check_engine
from export.tensorrt.library import TensorRT
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import BatchProfile, Sidecar
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.contract.capability_table import CAPABILITIES
from tests.contract.versions import every_version, install_version, onnx_file
from tests.fakes.engine import assert_answers, pixels
from tests.fakes.gpu import FakeTensorRT
from tests.pipeline.runners.test_device_arrays import Interface

PRECISIONS = ("fp32", "fp16", "int8")


def build(gpu: FakeTensorRT, folder: Path, precision: str = "fp16", progress: Any = None, **options: Any) -> Path:
    """Build an engine; its layers are read where it was built, or the test fails."""
    plan = folder / "build" / f"{precision}.plan"
    built: Sidecar = build_engine(
        onnx_file(folder, precision), plan, precision=precision, profile=BatchProfile(1, 2, 4), trt=gpu.trt,
        options=BuildOptions(**options), progress=progress,
    )  # fmt: skip
    assert built.layers_reason is None
    assert built.found is not None
    assert built.found.reason is None
    if not options.get("strip_weights"):
        assert built.found.convolutions == {precision: 1}
    assert check_engine(plan, gpu.trt, "8.9", "13.1") == built
    return plan


def every_option(trt: TensorRT, folder: Path) -> dict[str, Any]:
    """All that can be asked of this version at once."""
    options = {
        "tf32": True,
        "workspace_mib": 64,
        "optimization_level": 2,
        "timing_cache": folder / "timed",
        "version_compatible": trt.version_compatible,
        "max_aux_streams": 1 if trt.max_aux_streams else None,
        "builder_threads": 2 if trt.builder_threads else None,
        "targets": ("SM86", "8.9") if trt.targets else (),
    }
    levels = [level for level in ("ampere_plus", "same_compute_capability") if trt.hardware_compatible(level)]
    return options | ({"hardware_compatibility": levels[-1]} if levels else {})


@every_version
def test_engines_are_built_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install_version(monkeypatch, version)
    plan = [build(gpu, tmp_path, precision) for precision in PRECISIONS][-1]
    with TensorRTRunner(plan, RuntimeOptions(contexts=2)) as runner:
        for count in (1, 3, 3, 3, 9):  # what comes again is captured
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
        assert runner.graph_batches
        assert runner.top(pixels(2), 2).classes.shape == (2, 2)
        assert len(runner.compute_ms(pixels(2), 3)) == 3
        images = Interface(gpu.runtime, pixels(2))
        assert runner.infer_device(images).logits.shape == (2, 3)


@every_version
def test_in_little_memory_and_with_kept_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install_version(monkeypatch, version)
    plan = build(gpu, tmp_path)
    gpu.enough_for = 2
    for turn in range(2):
        with TensorRTRunner(plan) as runner:
            assert runner.max_batch == 2
            assert_answers(runner.infer(pixels(3)).logits, pixels(3))
        assert bool(gpu.kernels_loaded) == (turn == 1 and gpu.trt.jit)


@every_version
def test_every_option_that_a_version_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install_version(monkeypatch, version)
    told: list[tuple[str, int, int]] = []
    for turn in range(2):  # with a timing cache, and with one that is there already
        options = every_option(gpu.trt, tmp_path)
        plan = build(gpu, tmp_path, "int8", progress=lambda *step: told.append(step), **options)
        assert (tmp_path / "timed").exists() == gpu.trt.timing_cache, turn
    steps = [("build", 0, 1), ("build", 1, 1), ("build", 1, 1)]
    assert told == (2 * steps if gpu.trt.progress_monitor else [])
    with TensorRTRunner(plan, RuntimeOptions(host_code=True)) as runner:
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert gpu.host_code_allowed == gpu.trt.version_compatible


@every_version
def test_what_a_version_lacks_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install_version(monkeypatch, version)
    for option, able in (
        ({"targets": ("SM86",)}, gpu.trt.targets),
        ({"version_compatible": True}, gpu.trt.version_compatible),
        ({"hardware_compatibility": "same_compute_capability"}, gpu.trt.hardware_compatible("same_compute_capability")),
        ({"strip_weights": True}, gpu.trt.strips_weights),
    ):
        if not able:
            with pytest.raises(ProjectError, match=f"Expected a TensorRT that can do {next(iter(option))}"):
                build(gpu, tmp_path, **option)


@every_version
def test_stripped_weights_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install_version(monkeypatch, version)
    if not gpu.trt.strips_weights:
        pytest.skip("it builds no plans without weights, and refuses to")
    plan = build(gpu, tmp_path, strip_weights=True)
    with TensorRTRunner(plan) as runner:
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert gpu.refitted == [str(tmp_path / "model.fp16.onnx")]


@every_version
def test_the_parsers_words_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install_version(monkeypatch, version)
    gpu.fail = "parse_from_file"
    with pytest.raises(ProjectError) as error:
        build(gpu, tmp_path)
    named = version in CAPABILITIES["named_parser_errors"].versions
    assert f"no plugin (node 3{': relu, FancyRelu' if named else ''})" in str(error.value)


# --- the fakes have what the versions have, and no more ---

PLANTED = {
    "a class that 8.6 lacks": ("8.6.1", "progress_monitor", True, "TensorRT 8.6.1 has no IProgressMonitor"),
    "a method that 10.0 lacks": ("10.0", "memory_with_size", True, "10.0 has no IExecutionContext.set_device_memory"),
    "a flag that 11 lacks": ("11.4", "strongly_typed", False, r"NetworkDefinitionCreationFlag.EXPLICIT_BATCH"),
    "a method that 11 lacks": (
        "11.0", "allocation_strategies", False, "no ICudaEngine.create_execution_context_without_device_memory",
    ),
    "a property that 8.6 lacks": ("8.6.0", "memory_size_v2", True, "has no ICudaEngine.device_memory_size_v2"),
    "what RTX alone has": ("10.16", "user_allocation", True, "BuilderFlag.REQUIRE_USER_ALLOCATION"),
    "another that RTX alone has": ("11.4", "engine_validity", True, "has no Runtime.get_engine_validity"),
}  # fmt: skip


@pytest.mark.parametrize(("version", "capability", "lie", "words"), PLANTED.values(), ids=PLANTED)
def test_a_name_that_is_used_without_asking_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, capability: str, lie: bool, words: str
) -> None:
    gpu = install_version(monkeypatch, version)
    monkeypatch.setattr(TensorRT, capability, property(lambda self: lie))
    with pytest.raises((AttributeError, ProjectError, AssertionError), match=words):
        build_and_run(gpu, tmp_path)


def build_and_run(gpu: FakeTensorRT, folder: Path) -> None:
    with TensorRTRunner(build(gpu, folder)) as runner:
        runner.infer(pixels(3))


def test_a_name_that_went_fails_where_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flags(trt: TensorRT) -> int:
        kinds = trt.module.NetworkDefinitionCreationFlag
        return 1 << kinds.EXPLICIT_BATCH | 1 << kinds.STRONGLY_TYPED

    monkeypatch.setattr(engine, "network_flags", flags)
    build_and_run(install_version(monkeypatch, "10.16"), tmp_path)
    with pytest.raises(AttributeError, match="EXPLICIT_BATCH"):
        build_and_run(install_version(monkeypatch, "11.4"), tmp_path)


@pytest.mark.parametrize(
    ("version", "name"), [("8.6.1", "memory_size"), ("11.4", "max_batch_size"), ("rtx1.7.1", "fp16_mode")]
)
def test_a_name_that_no_fake_has_fails(version: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install_version(monkeypatch, version)
    config = gpu.module.Builder(gpu.trt.logger()).create_builder_config()
    with pytest.raises(AttributeError, match=name):
        setattr(config, name, 1)
    for owner in (config, gpu.module):
        with pytest.raises(AttributeError, match=name):
            getattr(owner, name)
