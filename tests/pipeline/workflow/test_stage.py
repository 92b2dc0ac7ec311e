from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.command import STAGE as BENCHMARK
from export.errors import ProjectError
from export.files import ROOT
from pipeline.artifacts import manifest
from pipeline.artifacts.files import recipe_lock
from pipeline.artifacts.inputs import Inputs, Required
from pipeline.artifacts.manifest import MANIFEST, read_manifest
from pipeline.artifacts.paths import is_written
from pipeline.cli import doctor
from pipeline.cli.options import make_context
from pipeline.cli.verbs import HELP, build_parser
from pipeline.data.sample import DataMissingError
from pipeline.recipe.load import load_recipe, to_dict
from pipeline.recipe.schema import Recipe
from pipeline.reporting.validity import SHOWN_STAGES
from pipeline.stages import STAGES
from pipeline.workflow.context import Context
from pipeline.workflow.stage import Stage, execute, reasons_to_run

ALL = (*STAGES, BENCHMARK)


@dataclasses.dataclass(frozen=True)
class Ran:
    runs: float


class Toy:
    """A stage that copies a file, and counts how often it did."""

    def __init__(self, folder: Path, code: Path) -> None:
        self.runs = 0
        self.error: BaseException | None = None
        self.machine: dict[str, Any] = {"gpu": None}
        self.source = folder / "artifacts" / "toy" / "earlier" / "in.txt"
        self.source.parent.mkdir(parents=True)
        self.source.write_text("one")
        self.recipe = folder / "toy.yaml"
        self.recipe.write_text(yaml.safe_dump({"data": {"source": "digits"}}))
        self.folder = folder
        self.code = code
        self.stage = self.make(self.run)

    def make(self, run: Callable[[Inputs, Recipe, Path], Ran]) -> Stage[Ran]:
        return Stage(
            "later",
            inputs=(Required("earlier/in.txt"),),
            keys=("quantize", "data.resize", "model.allow"),
            run=run,
            result=Ran,
            environment=lambda _: self.machine,
            module="toy_stage",
        )

    def context(self, *overrides: str) -> Context:
        return Context(load_recipe(self.recipe, overrides), self.recipe, self.folder / "artifacts", list(overrides))

    def run(self, inputs: Inputs, settings: Recipe, out: Path) -> Ran:
        self.runs += 1
        (out / "out.txt").write_text(f"{inputs.path('earlier/in.txt').read_text()} {self.runs}")
        if self.error:
            raise self.error
        return Ran(self.runs)

    def execute(self, *overrides: str, force: bool = False):
        return execute(self.stage, self.context(*overrides), force)

    @property
    def output(self) -> Path:
        return self.folder / "artifacts" / "toy" / "later" / "out.txt"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr("pipeline.workflow.stage.ROOT", tmp_path)
    code = tmp_path / "toy_stage.py"
    code.write_text("x = 1\n")
    return Toy(tmp_path, code)


def test_it_runs_once(toy: Toy) -> None:
    first = toy.execute()
    assert (first.ran, first.reasons, toy.output.read_text()) == (True, ("it has not run",), "one 1")
    second = toy.execute()
    assert (second.ran, second.reasons, toy.runs) == (False, (), 1)
    assert second.manifest == first.manifest


def test_room_is_asked_for_weights_and_for_what_is_beside_them(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workflow.stage._parameters", lambda context: 100)
    toy.stage = replace(toy.stage, bytes_per_weight=lambda recipe: 3, fixed_bytes=40)
    for free, runs in ((339, 0), (340, 1)):
        monkeypatch.setattr("pipeline.artifacts.output._free", lambda path, free=free: free)
        if not runs:
            with pytest.raises(ProjectError, match=r"at least 340 bytes free .* for the files of later.* 339 bytes"):
                toy.execute()
        else:
            toy.execute()
        assert toy.runs == runs


def test_quantize_counts_what_a_small_network_takes_beside_its_weights() -> None:
    """The files of digits' ResNet-20, 274,042 parameters, without the list of its images, take 954,822 bytes."""
    quantize = next(stage for stage in STAGES if stage.name == "quantize")
    needed = quantize.bytes_per_weight(load_recipe(ROOT / "configs" / "digits.yaml")) * 274_042 + quantize.fixed_bytes
    assert 0.95 < needed / 954_822 <= 1


def test_force(toy: Toy) -> None:
    toy.execute()
    outcome = toy.execute(force=True)
    assert (outcome.ran, outcome.reasons, toy.output.read_text()) == (True, ("--force",), "one 2")


def test_each_reason_makes_it_run_and_is_said_beforehand(toy: Toy) -> None:
    toy.execute()

    def input_changed() -> str:
        toy.source.write_text("two words")
        return "input earlier/in.txt: "

    def code_changed() -> str:
        toy.code.write_text("x = 2\n")
        return "the stage's code changed"

    def output_lost() -> str:
        toy.output.unlink()
        return "output out.txt is missing"

    def output_altered() -> str:
        toy.output.write_text("somebody was here")
        return "output out.txt was altered"

    def machine_changed() -> str:
        toy.machine = {"gpu": "A"}
        return "this machine's gpu: None -> A"

    def manifest_damaged() -> str:
        (toy.output.parent / MANIFEST).write_text("{")
        return "it has not run"

    def manifest_lost() -> str:
        (toy.output.parent / MANIFEST).unlink()
        return "it has not run"

    changes = (input_changed, code_changed, output_lost, output_altered, machine_changed)
    for change in (*changes, manifest_damaged, manifest_lost):
        reason = change()
        runs = toy.runs
        said = reasons_to_run(toy.stage, toy.context())
        assert len(said) == 1
        assert said[0].startswith(reason)
        assert toy.runs == runs, "asking runs nothing"
        outcome = toy.execute()
        assert outcome.ran
        assert list(outcome.reasons) == said
        assert not toy.execute().ran


def test_the_slice_of_the_recipe_decides_and_nothing_else_of_it(toy: Toy) -> None:
    toy.execute()
    assert not toy.execute("train.seed=7", "data.max_bad_images=3", "description=other").ran
    assert toy.execute("quantize.max_images=300").reasons == ("recipe quantize.max_images: 512 -> 300",)
    assert toy.execute("data.resize=crop", "quantize.max_images=300").reasons == (
        "recipe data.resize: stretch -> crop",
    )


def test_touching_files_reruns_nothing(toy: Toy) -> None:
    toy.execute()
    for path in (toy.source, toy.output, toy.code, toy.recipe):
        os.utime(path, (1, 1))
    assert not toy.execute().ran


def test_a_result_of_a_machine_with_a_gpu_is_kept(toy: Toy) -> None:
    toy.machine = {"gpu": "A"}
    toy.execute()
    toy.machine = {"gpu": None}
    assert not toy.execute().ran
    toy.machine = {"gpu": "B"}
    assert toy.execute().ran


@pytest.mark.parametrize("error", [ValueError("x"), ProjectError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_keeps_the_former_result(toy: Toy, error: BaseException) -> None:
    toy.execute()
    toy.source.write_text("changed")
    toy.error = error
    with pytest.raises(type(error)):
        toy.execute()
    assert toy.output.read_text() == "one 1"
    assert read_manifest(toy.output.parent).result == {"runs": 1}
    assert sorted(p.name for p in toy.output.parent.parent.iterdir()) == ["earlier", "later"]
    assert reasons_to_run(toy.stage, toy.context()), "it is still to be done"
    toy.error = None
    assert toy.execute().ran
    assert toy.output.read_text() == "changed 3"


def test_a_first_run_that_fails_leaves_nothing(toy: Toy) -> None:
    toy.error = ValueError("x")
    with pytest.raises(ValueError, match="x"):
        toy.execute()
    assert [p.name for p in toy.output.parent.parent.iterdir()] == ["earlier"]


def test_a_result_that_is_no_json_keeps_the_former(toy: Toy) -> None:
    toy.execute()
    bad = dataclasses.replace(toy.stage, run=lambda *_: Ran(float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        execute(bad, toy.context(), force=True)
    assert toy.output.read_text() == "one 1"


def test_what_a_kill_left_between_the_renames_is_recovered_before_it_is_asked_for(toy: Toy) -> None:
    toy.execute()
    toy.output.parent.rename(toy.output.parent.with_name(".later.former"))
    (toy.output.parent.with_name(".later.tmp-4194999")).mkdir()
    assert not toy.execute().ran
    assert toy.output.read_text() == "one 1"
    assert sorted(p.name for p in toy.output.parent.parent.iterdir()) == ["earlier", "later"]


def test_what_a_kill_left_is_there_for_the_next_command_that_takes_the_lock(toy: Toy) -> None:
    toy.execute()
    toy.output.parent.rename(toy.output.parent.with_name(".later.former"))
    with recipe_lock(toy.context().root):
        assert reasons_to_run(toy.stage, toy.context()) == []
    assert toy.context().required("later/out.txt")


def test_a_stage_killed_in_a_process_of_its_own(toy: Toy) -> None:
    toy.execute()
    code = f"""
import os, signal, sys
from pathlib import Path
from tests.pipeline.workflow.test_stage import Toy
from pipeline.artifacts.inputs import Inputs, Required
from pipeline.recipe.schema import Recipe
from pipeline.workflow import stage
from pipeline.workflow.stage import execute
stage.ROOT = Path({str(toy.folder)!r})
toy = Toy.__new__(Toy)
toy.__dict__.update(runs=5, error=None, machine={{"gpu": None}}, folder=Path({str(toy.folder)!r}),
    source=Path({str(toy.source)!r}), recipe=Path({str(toy.recipe)!r}))
def run(inputs, settings, out):
    (out / "out.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
execute(toy.make(run), toy.context(), True)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list(toy.output.parent.parent.glob(".later.tmp-*"))) == 1, "it was in the middle"
    assert not toy.execute().ran
    assert toy.output.read_text() == "one 1"
    assert not list(toy.output.parent.parent.glob(".later.*"))


def test_other_tool_versions_are_said_and_not_rerun(toy: Toy, monkeypatch, caplog) -> None:
    toy.execute()
    here = manifest.tool_versions()
    monkeypatch.setattr(manifest, "tool_versions", lambda: {**here, "numpy": "0.1"})
    with caplog.at_level(logging.INFO, logger="pipeline"):
        logging.getLogger("pipeline").propagate = True
        assert not toy.execute().ran
    assert f"numpy {here['numpy']} -> 0.1" in caplog.text


def test_a_missing_input_says_which_command_makes_it(toy: Toy) -> None:
    toy.source.unlink()
    overrides = ("data.source=digits", "model.dense=[64, 32]")
    with pytest.raises(ProjectError, match=r"in\.txt\. Received: no such file\. Run") as caught:
        execute(toy.stage, toy.context(*overrides))
    python, *module, verb = (words := shlex.split(str(caught.value).split("`")[1]))[:4]
    assert shutil.which(python)
    assert (module, verb) == (["-m", "pipeline"], "earlier")
    again = make_context(build_parser().parse_args(["train", *words[4:]]))
    assert dataclasses.asdict(again) == dataclasses.asdict(toy.context(*overrides))
    assert words[-2:] == ["--artifacts", str(toy.folder / "artifacts")]


# --- Context ---


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_artifacts_travel_to_a_machine_without_the_data(toy: Toy, photos: Path) -> None:
    overrides = ("data.source=folder", f"data.path={photos}")
    recorded = toy.context(*overrides).split("test", {})
    assert set(recorded) == {"data/test", "data/classes"}
    named = partial(toy.context, "data.source=folder", "data.path=/nowhere")

    def there() -> Context:
        return replace(named(), overrides=())  # as if the recipe's file said so

    assert there().split("test", recorded) == recorded
    with pytest.raises(DataMissingError, match="/nowhere"):
        there().split("test", {})
    with pytest.raises(DataMissingError):
        there().split("train", recorded)
    with pytest.raises(DataMissingError, match="/nowhere"):
        named().split("test", recorded)


def test_an_external_file_is_known_by_content(toy: Toy, tmp_path: Path) -> None:
    weights = tmp_path / "w.h5"
    weights.write_bytes(b"one")
    context = toy.context()
    first = context.external("model.weights", str(weights), {})
    weights.rename(tmp_path / "v.h5")
    assert context.external("model.weights", str(tmp_path / "v.h5"), {}) == first
    assert context.external("model.weights", str(weights), first) == first
    named = toy.context(f"model.weights={weights}")
    with pytest.raises(ProjectError, match=r"model\.weights: expected a file\. Received: .*w\.h5"):
        named.external("model.weights", str(weights), first)
    with pytest.raises(ProjectError, match=r"model\.weights: expected a file\. Received: .*w\.h5"):
        context.external("model.weights", str(weights), {})


def test_files_that_are_not_there_are_no_entry(toy: Toy) -> None:
    context = toy.context()
    assert context.files("earlier/*.plan") == {}
    assert context.files("nothing/*") == {}
    assert list(context.files("earlier/*")) == ["earlier/in.txt"]


# --- what the real stages declare ---


@pytest.mark.parametrize("stage", ALL, ids=lambda s: s.name)
def test_keys_of_a_stage_are_keys_of_the_recipe(stage: Stage) -> None:
    tree = to_dict(load_recipe(ROOT / "configs" / "digits.yaml"))
    for name in stage.keys:
        node: Any = tree
        for part in name.split("."):
            assert part in node, name
            node = node[part]


def test_stages_are_named_once_and_in_order() -> None:
    assert [s.name for s in STAGES] == ["train", "export", "quantize", "build", "verify", "infer", "report"]
    assert BENCHMARK.name == "benchmark"


def test_every_list_of_stages_has_each_of_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (cleaned,) = re.findall(r"foreach stage,([\w ]+),", makefile)
    stages = {stage.name for stage in ALL}
    lists = {
        "HELP in pipeline/cli/verbs.py": {*HELP, "benchmark"},
        "_stages in pipeline/cli/doctor.py": set(doctor._stages({}, False, {})),
        "SHOWN_STAGES in pipeline/reporting/validity.py": {*SHOWN_STAGES, "report"},
        "_WRITTEN in pipeline/artifacts/paths.py": {name for name in stages if is_written(f"{name}/{MANIFEST}")},
        "TARGETS of the Makefile, and a rule": set(re.findall(r"^(\w+): .*## ", makefile, re.MULTILINE)),
        "clean in the Makefile": {"train", *cleaned.split()},
    }
    assert {where: lacking for where, there in lists.items() if (lacking := stages - there)} == {}
