"""Several engines of a precision, each for its batch sizes: building, naming, choosing, timing."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scenarios as scenarios_module
from benchmarks.command import table
from benchmarks.scenarios import scenarios
from export.errors import ProjectError, RecipeError
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.sidecar import BatchProfile, write_plan
from pipeline.artifacts.engines import engines, plan_name, plan_precision, plan_variant, profiles
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import Artifacts
from pipeline.recipe.load import load_recipe
from pipeline.serving import candidates, select_model
from pipeline.stages import build as building
from pipeline.stages.build import build_options
from pipeline.workflow.context import Context
from tests import tiny_onnx
from tests.fakes.engine import make_sidecar
from tests.made_records import make_hop, write_verdict
from tests.stage_parts import choose, run_stage

TWO = {"latency": {"min": 1, "opt": 1, "max": 1}, "throughput": {"min": 1, "opt": 64, "max": 256}}
GPU = DriverStatus(True, "", "580", "13.0", (Device("Fake GPU", "8.9", 1 << 30),))


def context(folder: Path, build: dict[str, Any], *overrides: str) -> Context:
    recipe = folder / "toy.yaml"
    recipe.write_text(json.dumps({"data": {"path": "."}, "build": build}))
    return Context(load_recipe(recipe, overrides), recipe, folder / "artifacts")


def with_onnx(made: Context) -> Context:
    for name, precision in (("export/model.onnx", "fp32"), ("quantize/model.fp16.onnx", "fp16")):
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_onnx.write(made.root / name, precision)
    return made


def test_names() -> None:
    for precision, variant in (("int8", "latency"), ("fp16", None)):
        plan = Path("build/rtx") / plan_name(precision, variant)
        assert (plan_precision(plan), plan_variant(plan)) == (precision, variant)
    assert plan_name("int8", "latency") == "int8-latency.plan"


def test_variants_in_a_recipe_and_on_the_command_line(tmp_path: Path) -> None:
    plain = context(tmp_path, {"profile": {"max": 16}}).recipe.build
    assert profiles(plain) == {None: BatchProfile(1, 8, 16)}
    given = context(tmp_path, {"variants": TWO}).recipe.build
    assert profiles(given) == {"latency": BatchProfile(1, 1, 1), "throughput": BatchProfile(1, 64, 256)}
    more = context(tmp_path, {"variants": TWO}, "build.variants.throughput.max=512", "build.variants.one={opt: 1}")
    assert profiles(more.recipe.build) == {
        "latency": BatchProfile(1, 1, 1),
        "throughput": BatchProfile(1, 64, 512),
        "one": BatchProfile(1, 1, 32),
    }
    none = context(tmp_path, {"variants": TWO}, "build.variants=null").recipe.build
    assert profiles(none) == {None: BatchProfile(1, 8, 32)}


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"Fast": {}}, "build.variants: expected names of lower-case letters.*'Fast'"),
        ({"a-b": {}}, "build.variants: expected names.*'a-b'"),
        ({"../a": {}}, "build.variants: expected names"),
        ({"a": {"max": 4}}, "build.variants.a: expected 1 <= min <= opt <= max.*'max': 4"),
        ({"a": {"maximum": 4}}, "Unknown key 'build.variants.a.maximum'.*max"),
        ({"a": {"max": "many"}}, "build.variants.a.max: expected a whole number"),
        ({"a": 8}, "build.variants.a: expected keys and values. Received: 8"),
        (["a"], "build.variants: expected names"),
    ],
)
def test_what_is_no_variant_is_refused(tmp_path: Path, variants: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        context(tmp_path, {"variants": variants})


def test_each_precision_is_built_in_each_variant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has no wheel for this platform")
    made = with_onnx(context(tmp_path, {"flavour": "rtx", "precisions": ["fp32", "fp16"], "variants": TWO}))
    with caplog.at_level("INFO", logger="pipeline"):
        result = run_stage(building.STAGE, made, made.folder("build"))
    names = ["fp32-latency", "fp32-throughput", "fp16-latency", "fp16-throughput"]
    assert list(result.built) == [f"rtx/{name}" for name in names]
    assert [Path(plan).stem for plan in engines(Artifacts(made.root))] == names
    assert all(f"rtx/{name}.plan: " in caplog.text for name in names)
    for plan in map(made.root.joinpath, engines(Artifacts(made.root))):
        sidecar = json.loads(plan.with_suffix(".json").read_text())
        assert sidecar["variant"] == plan_variant(plan)
        assert sidecar["profile"] == TWO[sidecar["variant"]]
    assert len({sha256_file(made.root / plan) for plan in engines(Artifacts(made.root))}) == 4


def test_the_bar_says_which_of_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has no wheel for this platform")
    bars = []
    real = building.progress_bar
    monkeypatch.setattr(building, "progress_bar", lambda **given: bars.append(given["desc"]) or real(**given))
    made = with_onnx(context(tmp_path, {"flavour": "rtx", "precisions": ["fp32"], "variants": TWO}))
    run_stage(building.STAGE, made, made.folder("build"))
    assert bars == ["  rtx/fp32-latency (1 of 2)", "  rtx/fp32-throughput (2 of 2)"]


def test_every_option_of_the_recipe_is_given_to_the_build(tmp_path: Path) -> None:
    given = {
        "tf32": True,
        "workspace_mib": 64,
        "optimization_level": 2,
        "targets": ["SM86"],
        "timing_cache": "timing.cache",
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
        "max_aux_streams": 0,
        "builder_threads": 2,
    }
    options = build_options(context(tmp_path, given).recipe.build)
    for name, value in given.items():
        expected = {"targets": ("SM86",), "timing_cache": str(tmp_path / "timing.cache")}.get(name, value)
        assert getattr(options, name) == expected, name
    assert not options.strip_weights
    assert build_options(context(tmp_path, {"strip_weights": True}).recipe.build).strip_weights


def test_an_option_that_cannot_be_is_refused_by_the_stage(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has no wheel for this platform")
    made = with_onnx(context(tmp_path, {"flavour": "rtx", "version_compatible": True}))
    with pytest.raises(ProjectError, match="version_compatible"):
        run_stage(building.STAGE, made, made.folder("build"))


# --- which engine serves ---


def engine(root: Path, name: str, profile: dict[str, int]) -> Path:
    plan = root / "build" / "tensorrt" / f"{name}.plan"
    precision, _, variant = name.partition("-")
    sidecar = make_sidecar(precision=precision, variant=variant or None, plan_bytes=len(name), profile=profile)
    write_plan(plan, name.encode(), sidecar)
    return plan


def judged(made: Context, **verdicts: str) -> Context:
    """Engines by name and verdict, and the parity.json that says so."""
    hops = []
    for name, verdict in verdicts.items():
        plan = engine(made.root, name, TWO.get(name.partition("-")[2], {"min": 1, "opt": 8, "max": 32}))
        hops.append(make_hop(plan.relative_to(made.root).as_posix(), verdict))
    write_verdict(made.root, *hops)
    return made


def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and a TensorRT that is not asked anything."""
    monkeypatch.setattr(select_model, "driver_status", lambda: GPU)
    monkeypatch.setattr(candidates, "find_tensorrt", lambda _: object())


@pytest.mark.parametrize(
    ("verdicts", "batch", "served"),
    [
        ({"int8-latency": "pass", "int8-throughput": "pass"}, 1, "int8-latency"),
        ({"int8-latency": "pass", "int8-throughput": "pass"}, 32, "int8-throughput"),
        ({"int8-latency": "pass", "int8-throughput": "pass"}, 1000, "int8-throughput"),
        ({"int8-latency": "pass", "int8-throughput": "pass"}, None, "int8-throughput"),  # infer.batch_size is 32
        ({"int8-latency": "pass", "int8-throughput": "fail"}, 32, "int8-latency"),
        ({"int8-latency": "pass", "int8-throughput": "fail", "fp16-throughput": "pass"}, 32, "fp16-throughput"),
        ({"int8-latency": "pass", "fp16-latency": "pass", "fp16-throughput": "pass"}, 1, "int8-latency"),
        ({"int8-throughput": "inconclusive", "fp16-latency": "pass"}, 32, "fp16-latency"),
        ({"int8": "pass", "fp16": "pass"}, 32, "int8"),
    ],
)
def test_the_engine_that_fits_the_batch_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdicts: dict[str, str], batch: int | None, served: str
) -> None:
    with_gpu(monkeypatch)
    made = judged(context(tmp_path, {}), **verdicts)
    assert choose(made, batch_size=batch).path.stem == served


def test_an_engine_without_its_sidecar_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpu(monkeypatch)
    made = judged(context(tmp_path, {}), int8="pass", fp16="pass")
    (made.root / "build" / "tensorrt" / "int8.json").unlink()
    assert choose(made).precision == "fp16"
    assert "fp16.plan serves. Skipped: Expected the sidecar" in caplog.text
    (made.root / "build" / "tensorrt" / "fp16.json").unlink()
    with pytest.raises(ProjectError, match="Expected a built model"):
        choose(made)


def test_unverified_engines_are_taken_by_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)
    made = judged(context(tmp_path, {}), **{"int8-latency": "fail", "int8-throughput": "fail"})
    assert choose(made, allow_unverified=True, batch_size=64).path.stem == "int8-throughput"
    assert choose(made, allow_unverified=True, batch_size=1).path.stem == "int8-latency"


def test_misfit_counts_runs_first() -> None:
    def misfit(*sizes: int, batch: int) -> tuple[int, float]:
        return candidates.misfit(BatchProfile(*sizes), batch)

    assert misfit(1, 1, 1, batch=32)[0] == 32
    assert misfit(1, 8, 16, batch=33)[0] == 3
    assert misfit(1, 8, 16, batch=8) == (1, 0.0)
    assert misfit(8, 8, 16, batch=2) > misfit(1, 4, 16, batch=2), "padding is waste"
    assert misfit(1, 8, 16, batch=4) > misfit(1, 4, 16, batch=4), "tuned for more is as far as tuned for less"
    assert candidates.misfit(None, 10**6) == (1, 0.0)


# --- timing them ---


def test_each_variant_is_timed_at_its_own_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios_module, "driver_status", lambda: GPU)
    for name, profile in TWO.items():
        engine(tmp_path, f"int8-{name}", profile)
    found = [(one.variant, one.batch) for one in scenarios(Artifacts(tmp_path), [1, 256])]
    assert found == [("latency", 1), ("throughput", 1), ("throughput", 256)]
    listed = scenarios(Artifacts(tmp_path), [4])
    none_fits = [(one.variant, one.batch, one.caveat) for one in listed if one.variant == "latency"]
    assert none_fits == [("latency", 4, "split into batches of 1, the engine's largest")]


def test_variants_are_told_apart_in_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios_module, "driver_status", lambda: GPU)
    for name, profile in TWO.items():
        engine(tmp_path, f"int8-{name}", profile)

    def cannot(_: Any) -> Any:
        raise MemoryError("no memory")

    wanted = scenarios(Artifacts(tmp_path), [1])
    rows = scenarios_module.run_scenarios(wanted, cannot, (4, 4))
    assert [(row.variant, row.file) for row in rows] == [
        ("latency", "tensorrt/int8-latency.plan"),
        ("throughput", "tensorrt/int8-throughput.plan"),
    ]
    text = table(rows)
    assert "int8 latency" in text
    assert "int8 throughput" in text
