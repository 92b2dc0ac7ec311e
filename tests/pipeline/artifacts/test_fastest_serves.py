"""Among the files that passed, the fastest measured on this GPU answers; evidence of anything else does not count."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import ProjectError
from export.tensorrt.driver import Device, DriverStatus
from pipeline.artifacts.benchmark_report import BenchmarkReport, TimedModel, read_serves
from pipeline.artifacts.fastest import (
    Contender,
    Pair,
    Serves,
    engine_contender,
    make_contest,
    onnx_contender,
    speed_options,
)
from pipeline.artifacts.files import write_json
from pipeline.artifacts.machine import Cpu, Machine
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.artifacts.paths import BENCHMARK, ONNX, Artifacts
from pipeline.recipe.load import load_recipe
from pipeline.serving import candidates, select_model
from pipeline.serving.candidates import default_rank
from pipeline.serving.select_model import Selection
from pipeline.stages import BY_NAME
from pipeline.workflow.context import Context
from tests.fakes.engine import make_plan
from tests.made_records import make_hop, write_verdict
from tests.stage_parts import choose

FP32, FP16, INT8 = (f"build/rtx/{precision}.plan" for precision in ("fp32", "fp16", "int8"))
CUDA = [make_hop(name, backend="onnxruntime-cuda") for name in ONNX.values()]
GPU = Device("Fake GPU", "8.9", 1 << 30)


class Here:
    """Engines and ONNX files that passed, on a machine whose driver and providers can be changed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices: tuple[Device, ...] = (GPU,)
        self.why_not_cuda = "no provider"
        monkeypatch.setattr(select_model, "driver_status", self._driver)
        self.tensorrt = {"rtx", "tensorrt"}
        monkeypatch.setattr(candidates, "find_tensorrt", lambda flavour: flavour if flavour in self.tensorrt else None)
        self.asked = 0  # for ONNX Runtime's CUDA provider
        monkeypatch.setattr(select_model, "why_not", self._why_not)
        self.recipe = folder / "toy.yaml"
        self.recipe.write_text(yaml.safe_dump({"data": {"source": "digits"}}))
        self.folder = folder
        self.root = self.context().root
        for name in ONNX.values():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(name.encode())
        for name in (FP32, FP16, INT8):
            self.build(name)
        self.verify()

    def _driver(self) -> DriverStatus:
        return DriverStatus(bool(self.devices), "" if self.devices else "no NVIDIA driver", devices=self.devices)

    def _why_not(self, device: str) -> str:
        assert device == "cuda"
        self.asked += 1
        return self.why_not_cuda

    def context(self, *overrides: str) -> Context:
        return Context(load_recipe(self.recipe, overrides), self.recipe, self.folder / "artifacts", overrides)

    def build(self, name: str, sizes: tuple[int, int, int] = (1, 8, 64), **changes: Any) -> None:
        precision = Path(name).stem.partition("-")[0]
        given = {"flavour": "rtx", "tensorrt_version": "1.7.1", "precision": precision, "onnx_sha256": precision * 16}
        make_plan(self.root / name, sizes, **{**given, **changes})

    def verify(self, **verdicts: str) -> None:
        hops = [
            make_hop(plan.relative_to(self.root).as_posix(), verdicts.get(plan.stem, "pass"))
            for plan in sorted(self.root.glob("build/*/*.plan"))
        ]
        write_verdict(self.root, *hops, *(make_hop(name) for name in ONNX.values()), *CUDA)

    def contender(self, name: str) -> Contender:
        if name.endswith(".plan"):
            return engine_contender(Artifacts(self.root), name)
        return onnx_contender(Artifacts(self.root), name, next(p for p, file in ONNX.items() if file == name))

    def measure(self, times: Mapping[str, float], *batches: int, spread: float = 0.01, rounds: int = 20) -> Serves:
        """Write a benchmark in which each file takes so long, at each batch size."""
        contests = []
        for batch in batches or (32,):
            found = [self.contender(name) for name in times]
            found = [one for one in found if one.runs_at_once(batch)]
            found.sort(key=lambda one: (*default_rank(one.backend, one.precision, one.batches, batch), one.file))
            pairs = []
            for place, first in enumerate(found):
                for second in found[place + 1 :]:
                    ratio = times[second.file] / times[first.file]
                    interval = (ratio * (1 - spread), ratio * (1 + spread)) if rounds >= 5 else None
                    pairs.append(Pair(first.file, second.file, rounds, ratio, interval))
            contests.append(make_contest(batch, found, pairs))
        serves = Serves(
            GPU.name, GPU.compute_capability, speed_options(self.context().settings.runtime), tuple(contests)
        )
        self.write(serves)
        return serves

    def write(self, serves: Serves | None) -> None:
        machine = Machine(Cpu("CPU", 2, 2, ()), None, "Linux", "3.11", {}, None, None, ())
        (self.root / BENCHMARK).parent.mkdir(exist_ok=True)
        write_json(
            self.root / BENCHMARK, BenchmarkReport("toy", TimedModel((8, 8), 3), machine, None, (), (), (), serves)
        )
        self.record()

    def record(self) -> None:
        folder = (self.root / BENCHMARK).parent
        write_manifest(folder, stage="benchmark", recipe="toy", key=Key({}, {}, ""), seconds=1.0, result={})

    def inputs(self) -> dict[str, str]:
        """Of what the stage infer reads, what the benchmark made."""
        found = BY_NAME["infer"].digests(self.context(), {})
        assert "verify/parity.json" in found
        return {name: digest for name, digest in found.items() if name.startswith("benchmark/")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Here:
    caplog.set_level(logging.WARNING, "pipeline")  # a command that ran before may have left another
    return Here(tmp_path, monkeypatch)


def test_where_nothing_was_measured_the_default_order_holds(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    assert choose(here.context()).name == INT8
    assert here.inputs() == {}
    assert caplog.text == ""


def test_engines_that_no_tensorrt_here_opens_leave_it_to_the_onnx_files(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    here.tensorrt = {"tensorrt"}
    assert choose(here.context()).name == ONNX["fp32"]
    (record,) = caplog.records
    assert record.getMessage().count("engines: no TensorRT of the flavour rtx") == 1
    assert choose(here.context(), backend="tensorrt").name == INT8  # asked for: opening it says what is missing
    caplog.clear()
    classic = "build/tensorrt/int8.plan"
    here.build(classic, flavour="tensorrt", tensorrt_version="10.13.0")
    here.verify()
    assert choose(here.context()).name == classic
    assert caplog.text == ""
    write_verdict(here.root, *(make_hop(name, "fail") for name in (INT8, *ONNX.values())))
    here.tensorrt = set()
    assert choose(here.context(), allow_unverified=True).backend == "onnxruntime"


def test_by_default_what_passed_comes_before_what_is_open_and_fewer_runs_before_precision(here: Here) -> None:
    here.verify(int8="inconclusive")
    assert choose(here.context()).name == FP16
    here.build(FP16, (1, 4, 8))
    here.verify()
    assert [choose(here.context(), precision=one, batch_size=32).name for one in ("fp16", "auto")] == [FP16, INT8]
    here.build(INT8, (1, 4, 8))
    here.verify(int8="inconclusive")
    assert choose(here.context(), batch_size=32).name == FP32
    here.verify(fp32="inconclusive")
    assert choose(here.context(), batch_size=32).name == INT8, "it passed, and takes four runs"
    here.build(FP16)
    here.verify()
    assert choose(here.context(), batch_size=32).name == FP16


def test_what_was_measured_to_be_faster_answers_and_one_line_says_so(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    here.measure({INT8: 1.31, FP16: 1.0, FP32: 2.0})
    context = here.context()
    choice = choose(context, batch_size=32)
    assert (choice.name, choice.precision) == (FP16, "fp16")
    assert choice.won is not None
    assert (choice.won.batch, choice.won.pair.second) == (32, INT8)
    assert caplog.records == [], "`run` asks whether anything serves before it does"
    choice.open()
    (record,) = caplog.records
    words = f"{FP16} serves: measured 1.31x (1.3 to 1.32) as fast as {INT8} at batch 32 on this GPU"
    assert record.getMessage() == words


@pytest.mark.parametrize(
    ("times", "spread"),
    [
        ({INT8: 1.0, FP16: 1.31}, 0.01),
        ({INT8: 1.31, FP16: 1.0}, 0.4),  # the interval includes 1
        ({INT8: 1.015, FP16: 1.0}, 0.001),  # sure, and not worth it
        ({FP16: 1.0, FP32: 2.0}, 0.01),  # int8 was not timed
    ],
)
def test_else_the_default_order_holds(
    here: Here, caplog: pytest.LogCaptureFixture, times: dict[str, float], spread: float
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    here.measure(times, spread=spread)
    choice = choose(here.context())
    assert (choice.name, choice.won) == (INT8, None)
    assert caplog.text == ""


def test_too_few_rounds_decide_nothing(here: Here) -> None:
    here.measure({INT8: 2.0, FP16: 1.0}, rounds=4)
    assert choose(here.context()).name == INT8
    assert here.inputs() == {}


@pytest.mark.parametrize("verdict", ["fail", "not run"])
def test_what_did_not_pass_never_answers_however_fast(here: Here, verdict: str) -> None:
    here.measure({INT8: 1.3, FP16: 0.1, FP32: 1.0})
    here.verify(fp16=verdict)
    assert choose(here.context()).name == FP32
    here.verify(fp16=verdict, fp32=verdict)
    assert choose(here.context()).name == INT8
    here.verify(int8=verdict, fp16=verdict, fp32=verdict)
    with pytest.raises(ProjectError, match="fp16"):
        choose(here.context(), backend="tensorrt")


def test_what_is_inconclusive_takes_no_place_of_what_passed(here: Here) -> None:
    here.measure({INT8: 1.3, FP16: 0.1, FP32: 1.0})
    here.verify(fp16="inconclusive")
    assert choose(here.context()).name == FP32
    here.verify(int8="inconclusive", fp16="inconclusive", fp32="inconclusive")
    assert choose(here.context()).name == FP16


def test_an_altered_plan_does_not_answer_however_fast(here: Here) -> None:
    here.measure({INT8: 1.3, FP16: 0.1, FP32: 1.0})
    (here.root / FP16).write_bytes(b"other")
    assert choose(here.context()).name == FP32


def test_a_rebuilt_plan_of_the_same_source_is_as_fast(here: Here) -> None:
    here.measure({INT8: 1.3, FP16: 1.0})
    before = here.inputs()
    (here.root / FP16).unlink()
    here.build(FP16, plan_sha256="f" * 64)
    here.verify()
    assert here.contender(FP16) not in read_serves(Artifacts(here.root))[0].contests[0].contenders
    assert choose(here.context()).name == FP16
    assert here.inputs() == before


@pytest.mark.parametrize("name", [INT8, FP16])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"onnx_sha256": "e" * 64}, "onnx_sha256"),
        ({"tensorrt_version": "1.8.0"}, "version"),
        ({"flavour": "tensorrt"}, "flavour"),
        ({"sizes": (1, 16, 64)}, "profile"),
        ({"options": {"optimization_level": 5}}, "options"),
    ],
)
def test_evidence_of_another_source_is_passed_over_and_said(
    here: Here, caplog: pytest.LogCaptureFixture, name: str, change: dict[str, Any], what: str
) -> None:
    here.measure({INT8: 1.3, FP16: 1.0})
    here.build(name, **change)
    here.verify()
    caplog.set_level(logging.DEBUG, "pipeline")
    assert choose(here.context()).name == INT8
    assert f"the benchmark of {name} does not count, the file changed: {what}" in caplog.messages


@pytest.mark.parametrize(
    ("devices", "overrides", "why"),
    [
        ((Device("Other GPU", "8.9", 1),), (), "it ran on Fake GPU 8.9, and this is Other GPU 8.9"),
        ((Device("Fake GPU", "9.0", 1),), (), "it ran on Fake GPU 8.9, and this is Fake GPU 9.0"),
        ((GPU, Device("Other GPU", "9.0", 1)), ("runtime.device=1",), "this is Other GPU 9.0"),
        ((GPU,), ("runtime.device=1",), "there is no GPU 1"),
        ((GPU,), ("runtime.graphs=false",), "engines ran with runtime"),
        ((GPU,), ("runtime.contexts=2",), "engines ran with runtime"),
    ],
)
def test_evidence_of_another_gpu_or_runtime_is_passed_over_and_said(
    here: Here, caplog: pytest.LogCaptureFixture, devices: tuple[Device, ...], overrides: tuple[str, ...], why: str
) -> None:
    here.measure({INT8: 1.3, FP16: 1.0})
    here.devices = devices
    caplog.set_level(logging.DEBUG, "pipeline")
    assert choose(here.context(*overrides)).name == INT8
    assert why in caplog.text
    here.devices = (Device("Other GPU", "9.0", 1), GPU)
    assert choose(here.context("runtime.device=1")).name == FP16


def test_on_a_cpu_fp32_answers_whatever_was_measured(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    here.why_not_cuda = ""
    here.measure({INT8: 1.3, FP16: 1.0, ONNX["fp16"]: 0.5, ONNX["int8"]: 0.1})
    here.devices = ()
    assert (choose(here.context()).name, choose(here.context()).backend) == (ONNX["fp32"], "onnxruntime")
    here.devices = (GPU,)
    assert choose(here.context(), "onnxruntime").name == ONNX["fp32"]
    assert caplog.text == ""


def test_the_batch_size_of_the_request_decides_which_measurement_counts(here: Here) -> None:
    early, late = here.measure({INT8: 1.3, FP16: 1.0}, 1), here.measure({INT8: 1.0, FP16: 1.3}, 32)
    here.write(replace(early, contests=(*early.contests, *late.contests)))
    assert [choose(here.context(), batch_size=size).name for size in (1, 5, 6, 32, 500)] == [FP16, FP16, *[INT8] * 3]


def test_what_takes_more_runs_does_not_answer(here: Here) -> None:
    small = "build/rtx/fp16-small.plan"
    here.build(small, (1, 4, 8))
    here.verify()
    here.measure({INT8: 1.3, FP16: 1.4, small: 1.0}, 8)
    assert choose(here.context(), batch_size=8).name == small
    assert choose(here.context(), batch_size=9).name == INT8


def test_a_choice_by_name_is_among_what_was_named(here: Here) -> None:
    here.measure({INT8: 1.3, FP16: 1.0})
    assert choose(here.context(), precision="int8").name == INT8
    here.why_not_cuda = ""
    here.measure({INT8: 1.3, FP16: 1.0, ONNX["fp16"]: 2.0, ONNX["fp32"]: 1.5})
    assert choose(here.context(), backend="onnxruntime-cuda").name == ONNX["fp32"]


def test_onnxruntime_on_cuda_is_the_fallback_and_competes(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    here.why_not_cuda = ""
    assert choose(here.context()).name == INT8
    here.measure({INT8: 1.3, ONNX["fp16"]: 1.0})
    caplog.set_level(logging.INFO, "pipeline")
    choice = choose(here.context(), batch_size=32)
    assert (choice.name, choice.backend) == (ONNX["fp16"], "onnxruntime-cuda")
    choice.open()
    assert f"{ONNX['fp16']} on CUDA serves: measured 1.3x" in caplog.text
    (here.root / ONNX["fp16"]).write_bytes(b"another model")
    here.verify()
    assert choose(here.context()).name == INT8  # another ONNX file than was timed
    shutil.rmtree(here.root / "build")
    here.verify()
    choice = choose(here.context())
    assert (choice.name, choice.backend) == (ONNX["fp16"], "onnxruntime-cuda")
    write_verdict(here.root, *(make_hop(name) for name in ONNX.values()))  # on a machine without a GPU
    assert choose(here.context()).backend == "onnxruntime"
    here.why_not_cuda = "it does not load"
    with pytest.raises(ProjectError, match=r"ONNX Runtime's CUDA provider for --backend onnxruntime-cuda.*it does not"):
        choose(here.context(), backend="onnxruntime-cuda")
    here.devices = ()
    with pytest.raises(ProjectError, match=r"an NVIDIA GPU for --backend onnxruntime-cuda.*no NVIDIA driver"):
        choose(here.context(), backend="onnxruntime-cuda")


def test_cuda_is_asked_for_only_where_it_may_answer(here: Here) -> None:
    """Asking loads libraries and takes memory of the GPU that the engine is to have."""
    here.why_not_cuda = ""
    choose(here.context())
    here.measure({INT8: 1.3, FP16: 1.0, ONNX["fp16"]: 2.0, ONNX["fp32"]: 3.0})
    assert choose(here.context()).name == FP16
    assert here.asked == 0
    here.measure({INT8: 1.3, FP16: 1.0, ONNX["fp16"]: 1.1})  # should the FP16 engine fail one day, it answers
    assert choose(here.context()).name == FP16
    assert here.asked > 0
    here.asked = 0
    here.verify(int8="inconclusive", fp16="fail", fp32="fail")
    here.write(None)
    assert choose(here.context()).name == INT8
    assert here.asked > 0


def test_it_is_opened_on_the_gpu_of_the_recipe() -> None:
    choice = Selection("x", Path("x.onnx"), "onnxruntime-cuda", "fp16", "pass")
    runner = choice.open()
    assert (runner.backend, runner.precision) == ("onnxruntime-cuda", "fp16")
    assert replace(choice, backend="onnxruntime").open().backend == "onnxruntime"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(schema=2), "Expected the benchmark of schema 3.*Run the benchmark again"),
        (lambda tree: tree["serves"]["contests"][0].update(serves=INT8), "does not follow from its pairs"),
        (lambda tree: tree["serves"].pop("gpu"), r"serves\.gpu"),
    ],
)
def test_a_benchmark_of_before_or_a_damaged_one_is_no_evidence(
    here: Here, caplog: pytest.LogCaptureFixture, change: Any, words: str
) -> None:
    here.measure({INT8: 1.3, FP16: 1.0})
    tree = json.loads((here.root / BENCHMARK).read_text())
    change(tree)
    (here.root / BENCHMARK).write_text(json.dumps(tree))
    here.record()
    assert choose(here.context()).name == INT8
    assert here.inputs() == {}
    (record,) = caplog.records
    assert re.search(f"the benchmark does not count: .*{words}", record.getMessage())


def test_a_benchmark_that_was_edited_is_no_evidence(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    here.measure({INT8: 1.0, FP16: 1.3})
    recorded = (here.root / "benchmark" / "manifest.json").read_bytes()
    here.measure({INT8: 1.3, FP16: 1.0})
    (here.root / "benchmark" / "manifest.json").write_bytes(recorded)
    assert choose(here.context()).name == INT8
    assert here.inputs() == {}
    assert "is not what the benchmark wrote" in caplog.text


def test_infer_depends_on_what_decides_and_not_on_the_times(here: Here) -> None:
    here.measure({INT8: 1.3, FP16: 1.0}, 1, 32)
    before = here.inputs()
    assert list(before) == ["benchmark/serves"]
    here.measure({INT8: 1.7, FP16: 1.1}, 1, 32)
    assert here.inputs() == before
    here.measure({INT8: 1.0, FP16: 1.3}, 1, 32)
    assert here.inputs() not in (before, {})
    here.devices = ()  # another machine, to which the artifacts were copied
    here.measure({INT8: 1.3, FP16: 1.0}, 1, 32)
    assert here.inputs() == before


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.floats(0.5, 2.0), min_size=5, max_size=5),
    spread=st.sampled_from([0.001, 0.05, 0.3]),
    batch=st.sampled_from([1, 8, 32]),
)
def test_what_the_benchmark_names_is_what_answers(here: Here, times: list[float], spread: float, batch: int) -> None:
    """The benchmark says which file serves if all pass; they do, and serving comes to the same by its own way."""
    here.why_not_cuda = ""
    small = "build/rtx/fp16-small.plan"
    here.build(small, (1, 1, 8))
    here.verify()
    serves = here.measure(dict(zip((INT8, FP16, FP32, small, ONNX["fp16"]), times)), batch, spread=spread)
    assert choose(here.context(), batch_size=batch).name == serves.contests[0].serves
