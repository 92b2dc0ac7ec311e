"""From timed files to the one that serves, on a fake GPU whose INT8 is slow: the benchmark's own way, end to end."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from benchmarks import command, contests, scenarios
from benchmarks.command import STAGE, table
from benchmarks.contests import compare, contest_lines, find_serves
from benchmarks.timing import Measurement, measure
from export.tensorrt.driver import Device, DriverStatus
from pipeline.artifacts.benchmark_report import BenchmarkReport, read_benchmark
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.paths import BENCHMARK, CARD, KERAS, ONNX, Artifacts
from pipeline.recipe.load import load_recipe
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import Outputs
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.runners.tensorrt.runner import TensorRTRunner
from pipeline.serving import candidates, select_model
from pipeline.workflow.context import Context
from pipeline.workflow.stage import execute
from tests import tiny_onnx
from tests.fakes import engine
from tests.fakes import onnxruntime as fake_onnxruntime
from tests.fakes.cuda import Code
from tests.made_records import make_card, make_hop, write_verdict
from tests.pipeline.report_artifacts import row
from tests.stage_parts import choose

GPU = DriverStatus(True, "", "580", "13.0", (Device("Fake GPU", "8.9", 1 << 30), Device("Other", "9.0", 1 << 30)))
FP16, INT8, SMALL = "build/tensorrt/fp16.plan", "build/tensorrt/int8.plan", "build/tensorrt/fp16-small.plan"
TAKES = {"int8": 0.012, "fp16": 0.002, "onnxruntime-cuda": 0.005}  # seconds a call, more or less


class Clock:
    """Time that only runners take, so that a busy machine measures what a quiet one does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.random = np.random.default_rng(0)

    def nanoseconds(self) -> int:
        return round(self.now * 1e9)

    def around(self, infer: Any) -> Any:
        def timed(runner: Any, pixels: np.ndarray) -> Outputs:
            kind = runner.precision if runner.backend == "tensorrt" else runner.backend
            self.now += TAKES.get(kind, 0.003) * self.random.uniform(0.95, 1.05)
            return infer(runner, pixels)  # type: ignore[no-any-return]

        return timed


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Files of a model that passed on every backend, on a machine with a GPU."""
    side = tiny_onnx.SIZE
    monkeypatch.setattr(engine, "SIZE", (side, side))
    engine.install(monkeypatch, sizes=(1, 4, 8), size=(side, side))
    runtime = fake_onnxruntime.FakeOnnxRuntime(active=("CUDAExecutionProvider",))
    runtime.__spec__ = onnxruntime.__spec__  # by which it is found to be installed
    fake_onnxruntime.install(monkeypatch, runtime, GPU)
    for module in (scenarios, candidates):
        monkeypatch.setattr(module, "find_tensorrt", lambda flavour: flavour == "tensorrt")
    for module in (contests, scenarios, select_model):
        monkeypatch.setattr(module, "driver_status", lambda: GPU)
    clock = Clock()
    monkeypatch.setattr(command, "measure", partial(measure, clock=clock.nanoseconds))
    for runner in (TensorRTRunner, OnnxRunner):
        monkeypatch.setattr(runner, "infer", clock.around(runner.infer))
    monkeypatch.setattr(Context, "card", lambda self: make_card(size=(side, side)))
    recipe = tmp_path / "toy.yaml"
    settings = {"batches": [1, 4, 16], "seconds": 0.1, "warmup_seconds": 0.0, "min_samples": 3}
    recipe.write_text(yaml.safe_dump({"data": {"source": "digits"}, "benchmark": settings}))
    made = Context(load_recipe(recipe), recipe, tmp_path / "artifacts")
    for precision, name in ONNX.items():
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_onnx.write(made.root / name, precision)
    for name in (FP16, INT8):
        precision = Path(name).stem
        engine.make_plan(made.root / name, (1, 4, 8), precision=precision, onnx_sha256=precision * 16)
    (made.root / KERAS).parent.mkdir()
    (made.root / KERAS).write_bytes(b"keras")
    write_json(made.root / CARD, make_card(size=(side, side)))
    hops = [make_hop(FP16), make_hop(INT8), *(make_hop(name) for name in ONNX.values())]
    hops += [make_hop(name, backend="onnxruntime-cuda") for name in ONNX.values()]
    write_verdict(made.root, *hops, subjects={KERAS: sha256_file(made.root / KERAS)})
    return made


def test_the_fastest_measured_serves(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose(context).name == INT8
    execute(STAGE, context)
    report = read_benchmark(context.root / BENCHMARK)
    assert report.serves is not None
    assert (report.serves.gpu, report.serves.compute_capability) == ("Fake GPU", "8.9")
    assert report.serves.runtime == {"cuda": "auto", "graphs": True, "contexts": 1}
    on_cuda = [ONNX["fp16"], ONNX["fp32"], ONNX["int8"]]
    found = {contest.batch: [one.file for one in contest.contenders] for contest in report.serves.contests}
    assert found == {1: [INT8, FP16, *on_cuda], 4: [INT8, FP16, *on_cuda], 16: on_cuda}  # engines run 16 in pieces
    for contest in report.serves.contests[:2]:
        assert contest.serves == FP16
        assert contest.pair(INT8, FP16).faster == FP16
        assert contest.pair(INT8, FP16).ratio == pytest.approx(2 / 12, rel=0.03)
        assert [one.onnx_sha256 for one in contest.contenders[:2]] == ["int8" * 16, "fp16" * 16]
    _rows_say_what_they_ran_on(report)
    _recomputed(report)
    assert f"batch 4: {FP16} serves if it passes" in caplog.text
    caplog.clear()
    choice = choose(context, batch_size=4)
    assert choice.name == FP16
    choice.open()
    (message,) = caplog.messages
    assert message.startswith(f"{FP16} serves: measured ")
    caplog.clear()
    assert not execute(STAGE, context).ran
    assert choose(context, batch_size=1).name == FP16


def _recomputed(report: BenchmarkReport) -> None:
    """Whoever has the file can compute every ratio in it again."""
    assert report.serves is not None
    for contest in report.serves.contests:
        samples = {
            one.artifact: Measurement(one.samples_ms or (), one.turns or ())
            for one in report.results
            if one.batch == contest.batch and one.backend in ("tensorrt", "onnxruntime-cuda")
        }
        for pair in contest.pairs:
            again = compare(samples[pair.first], samples[pair.second])
            assert (again.rounds, again.ratio) == (pair.rounds, pytest.approx(pair.ratio, rel=1e-5))
            assert again.interval == (pair.interval and pytest.approx(pair.interval, rel=1e-5))


def _rows_say_what_they_ran_on(report: BenchmarkReport) -> None:
    backends = {one.backend for one in report.results}
    assert backends == {"keras", "onnxruntime", "onnxruntime-cuda", "tensorrt"}  # its TensorRT provider does not load
    for one in report.results:
        assert one.error is None or one.backend == "keras"
        assert one.graph == ("graph" if one.backend == "tensorrt" and one.batch < 16 else "")
        assert sum(one.turns or ()) == len(one.samples_ms or ())


def test_without_a_gpu_nothing_serves_by_measurement(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    none = DriverStatus(False, "no NVIDIA driver")
    for module in (contests, scenarios, select_model):
        monkeypatch.setattr(module, "driver_status", lambda: none)
    monkeypatch.setattr(scenarios, "why_not", lambda device: none.reason)
    monkeypatch.setattr(TensorRTRunner, "infer", None)
    execute(STAGE, context)
    report = read_benchmark(context.root / BENCHMARK)
    assert {one.backend for one in report.results} == {"keras", "onnxruntime"}
    assert report.serves is None
    assert contest_lines(report.serves) == []
    assert choose(context).name == ONNX["fp32"]


def test_what_failed_or_is_a_peer_or_runs_on_a_cpu_is_no_contender(context: Context) -> None:
    samples = {"samples_ms": (1.0,) * 6, "turns": (1,) * 6, "n": 6}
    rows = [
        row("keras", "fp32", 4, 1.0, **samples),
        row("onnxruntime", "fp32", 4, 0.1, **samples),
        row("onnxruntime-tensorrt", "fp16", 4, 0.1, file=ONNX["fp16"], **samples),
        row("tensorrt", "int8", 4, None, file="tensorrt/int8.plan"),
        row("tensorrt", "fp16", 4, 1.0, file="tensorrt/fp16.plan", **samples),
        row("onnxruntime-cuda", "fp16", 4, 1.0, file=ONNX["fp16"], **samples | {"samples_ms": (2.0,) * 6}),
    ]
    serves = find_serves(Artifacts(context.root), rows, RuntimeOptions())
    assert serves is not None
    (contest,) = serves.contests
    assert [one.file for one in contest.contenders] == [FP16, ONNX["fp16"]]
    (pair,) = contest.pairs
    assert (pair.ratio, pair.interval, pair.rounds) == (2.0, (2.0, 2.0), 6)
    assert contest_lines(serves) == [
        f"  batch 4: {FP16} serves if it passes: 2x (2 to 2) as fast as {ONNX['fp16']}",
    ]
    assert find_serves(Artifacts(context.root), rows[:4], RuntimeOptions()) is None
    assert find_serves(Artifacts(context.root), rows, RuntimeOptions(device=2)) is None
    assert find_serves(Artifacts(context.root), rows, RuntimeOptions(device=1)).gpu == "Other"  # type: ignore[union-attr]


def test_a_graph_that_could_not_be_made_stands_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = engine.install(monkeypatch, sizes=(2, 2, 4))
    plan = engine.make_plan(tmp_path / "fp16.plan", (2, 2, 4))
    quick = partial(measure, seconds_each=0.0, warmup_seconds=0.0, min_samples=3)

    def run(batch: int, **options: Any) -> Any:
        wanted = [scenarios.Scenario("tensorrt", "fp16", batch, plan, "all")]
        opener = partial(scenarios.open_scenario, runtime=RuntimeOptions(**options))
        (found,) = scenarios.run_scenarios(wanted, opener, engine.SIZE, quick)
        return found

    assert run(2).graph == "graph"
    assert run(1).graph == "graph"  # it is filled up to 2
    assert run(2, graphs=False).graph == ""
    assert run(9).graph == ""  # in pieces
    gpu.runtime.fail["cudaGraphInstantiate"] = Code.cudaErrorStreamCaptureUnsupported
    refused = run(2)
    assert refused.graph.startswith("no graph: ")
    assert "cudaErrorStreamCaptureUnsupported" in refused.graph
    assert refused.samples_ms is not None
    assert f"batch 2: launched without a CUDA graph: {refused.graph.removeprefix('no graph: ')}" in table([refused])
    pycuda = run(2, cuda="pycuda")
    assert pycuda.graph == "no graph: PyCUDA has none; runtime.cuda: bindings has"


@pytest.mark.parametrize("graph", ["none", "no graph", "Graph"])
def test_other_words_for_a_graph_are_refused(graph: str) -> None:
    with pytest.raises(ValueError, match="the graph"):
        row("tensorrt", "fp16", 1, 1.0, graph=graph)


@pytest.mark.parametrize("turns", [(), (2,), (1, 1), (0, 1)])
def test_turns_that_do_not_add_up_are_refused(turns: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="turns that do not add up"):
        row("tensorrt", "fp16", 1, 1.0, turns=turns)


def test_peers_and_cuda_are_listed_where_they_are_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active: set[str] = set()
    monkeypatch.setattr(scenarios, "why_not", lambda device: "" if device in active else "not here")
    for name in ONNX.values():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def listed() -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for one in scenarios.scenarios(Artifacts(tmp_path), [1]):
            found.setdefault(one.backend, {})[one.precision] = one.caveat
            assert one.includes == scenarios.INCLUDES[one.backend]
        return found

    assert list(listed()) == ["onnxruntime"]
    active.add("cuda")
    assert list(listed()) == ["onnxruntime", "onnxruntime-cuda"]
    active.add("tensorrt")
    found = listed()
    assert list(found) == ["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]
    assert "FP32" in found["onnxruntime"]["fp16"]
    assert found["onnxruntime-cuda"]["fp16"] == ""  # FP16 is FP16 there
    assert "INT8 engines" in found["onnxruntime-cuda"]["int8"]
    assert set(found["onnxruntime-tensorrt"].values()) == {""}


def test_they_are_opened_on_their_device_and_the_recipes_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(OnnxRunner, "__init__", lambda self, path, **given: opened.append(SimpleNamespace(**given)))
    opener = partial(scenarios.open_scenario, runtime=RuntimeOptions(device=1))
    for backend in ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"):
        opener(scenarios.Scenario(backend, "fp16", 300, Path("x.onnx"), ""))
    assert [(one.device, one.gpu, one.max_batch) for one in opened] == [
        ("cpu", 1, 300),
        ("cuda", 1, 300),
        ("tensorrt", 1, 300),
    ]
