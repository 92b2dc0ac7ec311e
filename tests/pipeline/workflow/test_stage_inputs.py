"""A stage gets what it declares, and nothing else; given only that, it writes what it writes in the chain."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.command import STAGE as BENCHMARK
from export.errors import DataError
from export.files import ROOT
from export.tensorrt.driver import Device, DriverStatus
from pipeline.artifacts.engines import profiles
from pipeline.artifacts.inputs import (
    CommandLine,
    Consulted,
    Derived,
    Input,
    Inputs,
    Optional,
    Outside,
    Required,
    Split,
    declared_part,
)
from pipeline.artifacts.manifest import Key, read_manifest
from pipeline.artifacts.paths import Artifacts, UndeclaredError, is_written
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Build, Quantize, Recipe, Thresholds, Train
from pipeline.stages import BY_NAME, STAGES
from pipeline.stages.report import Reported
from pipeline.workflow import environment
from pipeline.workflow import environment as runtime_environment
from pipeline.workflow.context import Context
from pipeline.workflow.stage import Stage, execute, reasons_to_run
from tests.conftest import Chain

# Bytes of these follow from the inputs; a plan, a time and Keras' date of saving do not.
SAME = {
    "export": ("model.onnx", "summary.json"),
    "quantize": ("model.fp16.onnx", "model.int8.onnx", "scales.json", "placement.json", "calibration.json"),
    "verify": ("parity.json",),
    "infer": ("predictions.csv",),
}


def context_of(chain: Chain, *overrides: str) -> Context:
    return Context(load_recipe(chain.recipe, overrides), chain.recipe, chain.artifacts, overrides)


def only_declared(chain: Chain, stage: Stage) -> None:
    """Delete what the stage did not declare, and its former result; the images too where it declares no split."""
    shutil.rmtree(chain.root / stage.name)
    declared = {name for one in stage.inputs for file in one.files for name in Artifacts(chain.root).matching(file)}
    for path in [path for path in chain.root.rglob("*") if path.is_file()]:
        if path.relative_to(chain.root).as_posix() not in declared:
            path.unlink()
    if not any(isinstance(one, Split) for one in stage.inputs):
        shutil.rmtree(chain.images)


@pytest.mark.parametrize("stage", [*STAGES, BENCHMARK], ids=lambda stage: stage.name)
def test_a_stage_runs_on_its_declared_inputs_alone(stage: Stage, made_chain: Chain, chain: Chain) -> None:
    whole = read_manifest(made_chain.root / stage.name)
    assert whole is not None
    only_declared(chain, stage)
    outcome = execute(stage, context_of(chain, *["train.fine_tune.epochs=1"] * (stage.name == "train")))
    assert outcome.ran
    assert outcome.manifest.outputs.keys() == whole.outputs.keys()
    strange = [name for name in outcome.manifest.outputs if not is_written(f"{stage.name}/{name}")]
    assert strange == [], "a bundle takes only what _WRITTEN in pipeline/artifacts/paths.py knows: add them there"
    for name in SAME.get(stage.name, ()):
        written, expected = (one.root / stage.name / name for one in (chain, made_chain))
        assert written.read_text("latin-1").replace(str(chain.images), str(made_chain.images)) == (
            expected.read_text("latin-1")
        )


# --- what is handed over ---


class Toy:
    """A recipe with three files of an earlier stage."""

    def __init__(self, folder: Path) -> None:
        (folder / "toy.yaml").write_text("data: {source: digits}\nmodel: {input_size: 32}\n")
        self.folder = folder
        for name in ("a.txt", "b.txt", "c.txt"):
            (self.context().root / "earlier").mkdir(parents=True, exist_ok=True)
            (self.context().root / "earlier" / name).write_text(name)

    def context(self, *overrides: str) -> Context:
        recipe = self.folder / "toy.yaml"
        return Context(load_recipe(recipe, overrides), recipe, self.folder / "artifacts", overrides)

    def stage(self, *inputs: Input, keys: tuple[str, ...] = ()) -> Stage:
        def run(inputs: Inputs, settings: Recipe, out: Path) -> Reported:
            (out / "x").write_text("")
            return Reported("")

        return Stage("later", inputs, keys, run, Reported, module="export.words")

    def inputs(self, *inputs: Input) -> Inputs:
        return self.stage(*inputs).hand_over(self.context(), Key({}, {}, ""))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def test_files_that_were_not_declared_cannot_be_reached(toy: Toy) -> None:
    inputs = toy.inputs(Required("earlier/a.txt"), Optional("earlier/b.*"), Consulted("earlier/d.txt"))
    assert inputs.path("earlier/a.txt").read_text() == "a.txt"
    assert inputs.matching("earlier/b.*") == ["earlier/b.txt"]
    assert not inputs.has("earlier/d.txt")
    for ask in (inputs.path, inputs.has, inputs.matching):
        with pytest.raises(UndeclaredError, match=r"earlier/c\.txt"):
            ask("earlier/c.txt")


def test_splits_that_were_not_declared_cannot_be_reached(toy: Toy) -> None:
    images = toy.inputs(Split("test"), Split("calibration", decides=False)).images
    assert images.splits.keys() == {"test", "calibration"}
    with pytest.raises(UndeclaredError, match=r"declared splits \['test', 'calibration'\]\. Received: train"):
        images.splits["train"]
    with pytest.raises(UndeclaredError, match="none"):
        _ = toy.inputs(Required("earlier/a.txt")).images


def test_too_few_images_for_a_split_that_has_a_minimum_are_not_handed_over(toy: Toy) -> None:
    stage = toy.stage(Split("test", minimum="verify.min_images"))
    few = stage.hand_over(toy.context("verify.min_images=5000", "verify.max_images=5000"), Key({}, {}, ""))
    with pytest.raises(DataError, match="at least 5,000 test images"):
        _ = few.images


def test_what_an_interrupted_run_goes_on_from_is_known_by_all_that_decides(toy: Toy) -> None:
    changes: list[dict[str, Any]] = [{}, {"inputs": {"a": "0"}}, {"config": {"a": 0}}, {"code": "0"}]
    keys = [replace(Key({}, {}, ""), **change) for change in [*changes, {"environment": {"a": 0}}]]
    assert len({toy.stage().hand_over(toy.context(), key).key for key in keys}) == len(keys)


def test_the_command_line_has_to_be_declared(toy: Toy) -> None:
    assert toy.inputs(CommandLine()).invocation == toy.context().invocation
    with pytest.raises(UndeclaredError):
        _ = toy.inputs().invocation


def test_keys_that_were_not_declared_cannot_be_read() -> None:
    recipe = Recipe("toy", quantize=Quantize(max_images=7))
    part = declared_part(recipe, ("quantize", "verify.thresholds.int8", "build.profile", "build.variants", "name"))
    assert part.quantize is recipe.quantize
    assert part.verify.thresholds.int8 == recipe.verify.thresholds.int8
    assert isinstance(part.verify.thresholds.int8, Thresholds)
    assert part.name == "toy"
    assert profiles(part.build) == profiles(Build())
    for read in (
        lambda: part.train,
        lambda: part.verify.min_images,
        lambda: part.verify.thresholds.fp16,
        lambda: part.build.flavour,
        lambda: part.model.finished,
    ):
        with pytest.raises(UndeclaredError, match="declared keys"):
            read()
    assert declared_part(recipe, tuple(vars(recipe))) is recipe


# --- what decides ---


def test_what_is_consulted_decides_nothing_and_what_is_declared_does(toy: Toy) -> None:
    stage = toy.stage(Required("earlier/a.txt"), Optional("earlier/b.txt"), Consulted("earlier/c.txt"))
    execute(stage, toy.context())
    folder = toy.context().root / "earlier"
    (folder / "c.txt").write_text("other")
    assert reasons_to_run(stage, toy.context()) == []
    (folder / "b.txt").unlink()
    assert reasons_to_run(stage, toy.context()) == ["input earlier/b.txt: is gone"]


def test_a_split_that_does_not_decide_is_no_input(toy: Toy) -> None:
    stage = toy.stage(Split("test"), Split("calibration", decides=False))
    assert stage.digests(toy.context(), {}).keys() == {"data/test", "data/classes"}


def test_of_the_runtime_and_the_build_all_but_permissions_and_paths_decides(toy: Toy) -> None:
    stage = toy.stage(keys=("runtime", "build"))
    execute(stage, toy.context())
    assert reasons_to_run(stage, toy.context("runtime.host_code=true", "build.timing_cache=x.cache")) == []
    assert reasons_to_run(stage, toy.context("runtime.device=1")) == ["recipe runtime.device: 0 -> 1"]


def test_a_permission_is_handed_over_and_decides_nothing(toy: Toy) -> None:
    stage = toy.stage(keys=("export", "model.allow"))
    execute(stage, toy.context())
    allowed = toy.context("model.path=x.keras", "model.preprocessing=unit", "model.allow=[layer]")
    assert stage.settings(allowed).model.allow == ("layer",)
    assert reasons_to_run(stage, allowed) == []


def test_what_is_derived_of_a_file_decides_in_its_place(toy: Toy) -> None:
    def length(artifacts: Artifacts, recorded: object) -> dict[str, str]:
        return {"length": str(len(artifacts.path("earlier/a.txt").read_text()))}

    stage = toy.stage(Derived(("earlier/a.txt",), length))
    execute(stage, toy.context())
    (toy.context().root / "earlier" / "a.txt").write_text("b.txt")
    assert reasons_to_run(stage, toy.context()) == []
    (toy.context().root / "earlier" / "a.txt").write_text("longer")
    assert reasons_to_run(stage, toy.context()) == ["input length: 5 -> 6"]


def test_a_file_outside_decides_by_its_content(toy: Toy) -> None:
    np.save(toy.folder / "mean.npy", np.zeros(3))
    stage = toy.stage(Outside("model.preprocessing.mean"), Outside("model.weights"))
    assert stage.digests(toy.context(), {}) == {}
    own = f"model.preprocessing={{mean: {toy.folder / 'mean.npy'}}}"
    found = stage.digests(toy.context(own), {})
    assert found.keys() == {"model.preprocessing.mean"}
    np.save(toy.folder / "mean.npy", np.ones(3))
    assert stage.digests(toy.context(own), {}) != found
    published = stage.digests(toy.context("model.weights=imagenet", "model.backbone=resnet50"), {})
    assert published == {"model.weights": "resnet50 of keras.applications"}


def test_another_command_line_is_another_page_but_not_where_everything_moved(toy: Toy, tmp_path: Path) -> None:
    stage = toy.stage(CommandLine())
    execute(stage, toy.context())
    assert reasons_to_run(stage, toy.context()) == []
    assert len(reasons_to_run(stage, replace(toy.context(), recipe_path=Path("other.yaml")))) == 1
    assert len(reasons_to_run(stage, replace(toy.context(), recipe_path=Path("elsewhere/toy.yaml")))) == 1
    assert len(reasons_to_run(stage, toy.context("train.seed=1"))) == 1
    shutil.copytree(toy.folder / "artifacts", tmp_path / "moved" / "artifacts")
    assert reasons_to_run(stage, Toy(tmp_path / "moved").context()) == []


def test_engines_that_a_recipe_builds_with_their_runtime_may_bring_their_code(toy: Toy) -> None:
    stage = toy.stage(keys=("runtime",))
    assert not stage.settings(toy.context()).runtime.host_code
    assert stage.settings(toy.context("build.version_compatible=true")).runtime.host_code


def test_a_training_is_of_its_images_and_of_every_file_that_the_recipe_names(toy: Toy) -> None:
    train = BY_NAME["train"]
    splits = {"data/train", "data/validation", "data/classes"}
    assert train.digests(toy.context(), {}).keys() == splits
    for name in ("w.weights.h5", "mean.npy", "m.keras"):
        (toy.folder / name).write_text(name)
    weights = toy.context(f"model.weights={toy.folder / 'w.weights.h5'}")
    assert train.digests(weights, {}).keys() == splits | {"model.weights"}
    own = f"model.preprocessing={{mean: {toy.folder / 'mean.npy'}}}"
    taken = toy.context(f"model.path={toy.folder / 'm.keras'}", own)
    assert train.digests(taken, {}).keys() == splits | {"model.path", "model.preprocessing.mean"}


def test_how_engines_run_decides_what_a_benchmark_measures(toy: Toy) -> None:
    parts = [BENCHMARK.recipe_part(toy.context(f"runtime.{one}")) for one in ("device=0", "device=1", "host_code=true")]
    assert parts[0] == parts[2] != parts[1]


@pytest.mark.parametrize("name", ["build", "verify", "infer", "report", "benchmark"])
def test_what_lists_engines_declares_them(name: str) -> None:
    """Without a GPU an engine decides nothing but there, so no run of the chain on such a machine shows it."""
    stage = {**BY_NAME, "benchmark": BENCHMARK}[name]
    for pattern in ("build/*/*.plan", "build/*/*.json"):
        (found,) = [one for one in stage.inputs if pattern in one.files]
        assert isinstance(found, Consulted if name == "build" else Optional)


@pytest.mark.parametrize("name", ["build", "verify", "infer", "benchmark"])
def test_what_uses_a_gpu_runs_again_with_another(name: str, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = DriverStatus(True, "", devices=(Device("Another", "9.0", 1),))
    monkeypatch.setattr(environment, "driver_status", lambda: driver)
    facts = {**BY_NAME, "benchmark": BENCHMARK}[name].environment(toy.context().recipe)
    assert facts["gpu"] == "Another (compute capability 9.0)"


RUN_MODELS = {name: {**BY_NAME, "benchmark": BENCHMARK}[name] for name in ("verify", "infer", "benchmark")}


@pytest.mark.parametrize("stage", RUN_MODELS.values(), ids=RUN_MODELS)
def test_what_runs_models_runs_again_where_more_can_run(
    stage: Stage, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was refused for want of a permission is a fail, and one that no TensorRT here opens is not run."""
    monkeypatch.setattr(environment, "find_tensorrt", {"tensorrt": SimpleNamespace(version="10.13")}.get)
    monkeypatch.setattr(runtime_environment, "is_installed", lambda: False)
    last = replace(toy.stage(keys=stage.keys), environment=stage.environment)
    execute(last, toy.context())
    permission = "runtime.host_code=true"
    for given in (permission, "build.version_compatible=true"):
        reasons = reasons_to_run(replace(last, keys=("runtime",)), toy.context(given))
        assert "this machine's runtime.host_code: is new (permitted)" in reasons
    execute(last, toy.context(permission))
    assert reasons_to_run(last, toy.context()) == [], "what was made with the permission is kept without it"
    monkeypatch.setattr(runtime_environment, "is_installed", lambda: True)
    assert reasons_to_run(last, toy.context(permission)) == ["this machine's onnxruntime: is new (installed)"]
    both = {name: SimpleNamespace(version=version) for name, version in (("tensorrt", "10.13"), ("rtx", "1.4"))}
    monkeypatch.setattr(environment, "find_tensorrt", both.get)
    assert "this machine's rtx: is new (1.4)" in reasons_to_run(last, toy.context(permission))
    both["tensorrt"] = SimpleNamespace(version="11.0")
    assert "this machine's tensorrt: 10.13 -> 11.0" in reasons_to_run(last, toy.context(permission))


def test_a_build_by_another_tensorrt_than_the_usual_one_is_that_ones(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the flavour that the recipe asks for is installed later, beside the one that `auto` takes."""
    monkeypatch.setattr(environment, "choose_tensorrt", lambda flavour: (None, f"no {flavour}"))
    facts = BY_NAME["build"].environment(toy.context("build.flavour=rtx").recipe)
    trt = SimpleNamespace(flavour="rtx", version="1.2")
    monkeypatch.setattr(environment, "choose_tensorrt", lambda flavour: (trt if flavour == "rtx" else None, ""))
    assert (facts["tensorrt"], BY_NAME["build"].environment(toy.context("build.flavour=rtx").recipe)["tensorrt"]) == (
        None,
        "rtx 1.2",
    )


def test_the_page_alone_declares_the_command_line() -> None:
    declare = [stage.name for stage in (*STAGES, BENCHMARK) if any(isinstance(i, CommandLine) for i in stage.inputs)]
    assert declare == ["report"]
    assert isinstance(BY_NAME["train"].settings(Context(Recipe("x"), Path("x"), Path("x"))).train, Train)


def test_whether_the_report_is_up_to_date_is_known_without_its_packages() -> None:
    """A machine that runs a bundle has neither jinja2 nor matplotlib, and `run --explain` asks every stage."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('jinja2', 'markupsafe', 'matplotlib'))\n"
        "from pathlib import Path\n"
        "from pipeline.artifacts.paths import Artifacts\n"
        "from pipeline.artifacts.inputs import Derived\n"
        "from pipeline.stages import report\n"
        "print([one.derive(Artifacts(Path('nowhere'), one.files), {})"
        " for one in report.STAGE.inputs if isinstance(one, Derived)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[{}]\n"
