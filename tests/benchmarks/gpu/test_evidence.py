"""The evidence command on the fake GPU."""

import contextlib
import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import command, timings, visit
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu.command import evidence_path, main
from benchmarks.gpu.options import build_parser, read_options
from export.errors import ProjectError
from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.files import write_json
from pipeline.artifacts.gpu_evidence import GpuEvidence, read_gpu_evidence
from pipeline.artifacts.parity_report import read_parity
from pipeline.artifacts.paths import ONNX, PARITY
from pipeline.recipe.schema import Thresholds
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.benchmarks.visits import COUNT, QUICK, SHORT, install_visit, make_artifacts, step_of
from tests.fakes.engine import SIZE
from tests.fakes.gpu import FakeTensorRT
from tests.made_records import make_hop, write_verdict


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install_visit(monkeypatch)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return make_artifacts(tmp_path / "model")


def run(artifacts: Path, *options: str) -> tuple[int, GpuEvidence]:
    """A visit without checks."""
    output = artifacts / "evidence.json"
    status = main([str(artifacts), "-o", str(output), *SHORT, *options])
    return status, read_gpu_evidence(output)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, GpuEvidence, Path, str]:
    """The exit status, the record, its file and what was printed of a visit with everything."""
    artifacts = make_artifacts(tmp_path_factory.mktemp("whole") / "model")
    output, printed = artifacts / "evidence.json", io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        install_visit(monkeypatch)
        status = main([str(artifacts), "-o", str(output), *QUICK, "--commit", "abc"])
    return status, read_gpu_evidence(output), output, printed.getvalue()


def states(evidence: GpuEvidence) -> dict[str, str]:
    return {step.name: step.state for step in evidence.steps}


def test_everything_is_gathered(whole: tuple[int, GpuEvidence, Path, str]) -> None:
    status, evidence, path, printed = whole
    assert (evidence.state, evidence.commit) == ("finished", "abc")
    assert (evidence.flavour, evidence.tensorrt_version) == ("tensorrt", "10.13.0")
    assert (evidence.gpu.name, evidence.gpu.driver_version) == ("Fake GPU", "580.95.05")
    model = evidence.model
    assert (model.name, model.size, model.classes, model.test_images) == ("model", SIZE, 3, COUNT)
    assert evidence.machine.python
    names = ["fp16-throughput", "int8-throughput", "fp16-latency", "int8-latency"]
    assert list(evidence.engines) == names
    assert [one.profile.max for one in evidence.engines.values()] == [4, 4, 1, 1]
    assert evidence.engines["int8-latency"].asked_convolutions == {"int8": 53}
    assert evidence.parity is not None
    hops = [(hop.candidate, hop.kind) for hop in evidence.parity.hops]
    assert hops == [(name, kind) for name in names for kind in ("from_keras", "consistency")]
    checks = {(row.check, row.engine) for row in evidence.checks}
    assert len(checks) == len(names) * len(gpu_checks.CHECKS) + 1
    assert {row.result for row in evidence.checks} == {"pass", "skipped"}
    timed = {(row.name, row.precision, row.measures, row.batch) for row in evidence.timings}
    assert {("engine", precision, "stream pinned", 4) for precision in ("fp16", "int8")} <= timed
    assert ("engine", "fp16", "compute", 1) in timed
    assert ("engine without graphs", "fp16", "infer", 1) in timed
    made = [name for name, state in states(evidence).items() if name.startswith("time ") and state == "done"]
    assert list(evidence.snapshots) == ["machine", *made]
    assert step_of(evidence, "build fp16-throughput").expected_seconds == 9, "at TensorRT's own level"
    targets = {one.target: one for one in evidence.targets}
    assert targets["int8 over fp16: images a second, host to host, largest batch"].met in (True, False)
    lines = printed.splitlines()
    assert status == 1  # FP32 cannot be built on the fake
    assert evidence.failures == tuple(
        f"build fp32-{variant}: Expected a graph in model.onnx. Received: none."
        for variant in ("throughput", "latency")
    )
    told = json.loads(lines[-1])
    assert told.pop("error").startswith("build fp32-throughput: Expected a graph in ")
    assert told == {"output": str(path), "state": "finished", "parity": "pass", "failed": 2, "exit": 1}
    assert any("not measured" in line for line in lines)  # PyTorch


@pytest.mark.parametrize("kind", ["8", "rtx"])
def test_every_tensorrt_is_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    gpu = install_visit(monkeypatch, kind)
    artifacts = make_artifacts(tmp_path / "model")
    output = artifacts / "evidence.json"
    status = main([str(artifacts), "-o", str(output), *QUICK, "--precisions", "fp16,int8"])
    evidence = read_gpu_evidence(output)
    assert (status, evidence.failures) == (0, ())
    assert evidence.flavour == gpu.trt.flavour
    launched = [row for row in evidence.timings if row.graphs]
    assert {(row.variant, row.measures) for row in launched} == {
        (variant, measures) for variant in ("throughput", "latency") for measures in ("compute", "infer")
    }
    assert {row.result for row in evidence.checks} == {"pass", "skipped"}
    assert gpu.runtime.live == 0


def test_what_is_worth_most_comes_first(whole: tuple[int, GpuEvidence, Path, str]) -> None:
    names = list(states(whole[1]))
    assert names[:10] == [
        "machine",
        "build fp16-throughput",
        "build int8-throughput",
        "parity fp16-throughput",
        "parity int8-throughput",
        "time throughput compute fp16+int8",
        "time throughput infer fp16+int8",
        "time throughput stream fp16+int8",
        "time throughput stream pinned fp16",
        "time throughput stream pinned int8",
    ]
    later = ("build fp16-latency", "time latency infer", "build fp32", "check ", "leak cycles", "PyTorch eager")
    order = [next(at for at, name in enumerate(names) if name.startswith(one)) for one in later]
    assert order == sorted(order)
    assert names[-2:] == ["PyTorch compile, batch 4", "PyTorch compile, batch 1"]


def test_the_page_beside_it_says_the_same(whole: tuple[int, GpuEvidence, Path, str]) -> None:
    _, evidence, path, _ = whole
    page = path.with_suffix(".md").read_text()
    assert page.startswith("# model on Fake GPU, TensorRT 10.13.0\n")
    for said in (
        "| GPU | Fake GPU, compute capability 8.9 |",
        "| INT8 | throughput | 1 to 4 | 0.1 | 0.0 | 53 INT8 asked for |",
        "| fp16-latency | pass | 100.00% | equal | 0 |",
        "- build fp32-latency: Expected a graph in model.onnx. Received: none.",
        "- there is no engine fp32-throughput that runs here: parity fp32-throughput; time throughput compute fp32;",
        "; time throughput stream pinned fp32 and 8 more\n",
        "- torch not installed: PyTorch eager, batch 4;",
    ):
        assert said in page
    row = next(row for row in evidence.timings if (row.precision, row.measures) == ("int8", "compute"))
    assert f"| engine | INT8 | 4 | computing alone, no copies | yes | {row.p50_ms:.4g} |" in page
    assert str(path.parent) not in page + path.read_text()


def test_what_fails_is_written_and_counted(
    gpu: FakeTensorRT, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(results: dict[str, np.ndarray]) -> None:
        if len(results["logits"]) > 2:
            results["logits"][2] += 100

    gpu.spoil = spoil
    status, evidence = run(artifacts, "--precisions", "int8", "--checks", "quick", "--cycles", "1")
    assert status == 1
    assert evidence.parity is not None
    assert evidence.parity.verdict == "fail"
    failed = {(row.check, row.engine) for row in evidence.checks if row.result == "fail"}
    assert ("equal_images_give_equal_rows", "int8-throughput") in failed
    assert ("equal_images_give_equal_rows", "int8-latency") not in failed
    last = [record.getMessage() for record in caplog.records][-len(evidence.failures) :]
    assert last == [f"failed: {failure}" for failure in evidence.failures], "a long run ends with what is wrong"
    assert any("int8-throughput, equal images give equal rows: " in line for line in last)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("build_engine", MemoryError()),
        ("judge", ValueError("odd")),
        ("time_engines", OSError(5, "Input/output error")),
        ("gpu_snapshot", AttributeError("x")),
    ],
)
def test_whatever_a_step_raises_the_next_one_is_made(
    place: str, error: Exception, gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(visit, place), []

    def once(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise error
        return original(*args, **more)

    monkeypatch.setattr(visit, place, once)
    status, evidence = run(artifacts, "--precisions", "fp16,int8", "--peers", "none")
    failed = [step for step in evidence.steps if step.state == "error"]
    assert (status, evidence.state, len(failed)) == (1, "finished", 1)
    assert failed[0].why == f"{type(error).__name__}: {error}"
    assert sum(step.state == "done" for step in evidence.steps) >= 10


def test_an_interrupt_is_written(
    gpu: FakeTensorRT,
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(visit, "time_engines", interrupt)
    status, evidence = run(artifacts)
    assert (status, evidence.state) == (130, "interrupted")
    assert step_of(evidence, "time throughput compute fp16+int8").why == "interrupted"
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["output"], told["state"], told["exit"]) == (str(artifacts / "evidence.json"), "interrupted", 130)
    assert f"the results so far are in {told['output']}" in caplog.text
    assert step_of(evidence, "PyTorch eager, batch 4").state == "pending"
    assert evidence.parity is not None


def test_a_graph_that_was_not_made_is_an_error_and_no_slower_number(
    gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.fail = "capture"
    output, words = artifacts / "x.json", "no CUDA graph was made for batches of 1"
    plain = [str(artifacts), "-o", str(output), *SHORT, "--precisions", "fp16"]
    assert main(plain) == 1
    rows = {(row.name, row.measures): row for row in read_gpu_evidence(output).timings}
    assert rows["engine", "infer"].error.startswith(words)
    assert rows["engine", "compute"].error.startswith(words)
    assert rows["engine without graphs", "infer"].p50_ms is not None
    monkeypatch.setattr(TensorRTRunner, "graph_refusals", {1: "it says no"})
    gpu.fail = ""
    assert main(plain) == 1
    rows = {(row.name, row.measures): row for row in read_gpu_evidence(artifacts / "x-2.json").timings}
    assert rows["engine", "infer"].error == f"{words}: it says no"


def test_page_locked_memory_is_held_for_one_engine_at_a_time(
    gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = [0], [0]
    enter, leave, pinned = TensorRTRunner.__enter__, TensorRTRunner.__exit__, TensorRTRunner.pinned_pixels
    own: dict[int, int] = {}

    def pin(runner: TensorRTRunner, count: int) -> np.ndarray:
        own[id(runner)] = own.get(id(runner), 0) + count
        held[0] += count
        most[0] = max(most[0], held[0])
        return pinned(runner, count)

    def close(runner: TensorRTRunner, *exc: object) -> None:
        held[0] -= own.pop(id(runner), 0)
        leave(runner, *exc)

    monkeypatch.setattr(TensorRTRunner, "pinned_pixels", pin)
    monkeypatch.setattr(TensorRTRunner, "__exit__", close)
    assert TensorRTRunner.__enter__ is enter
    run(artifacts, "--precisions", "fp16,int8")
    assert most == [4 * timings.MOST_STREAMED]


def test_an_engine_that_we_refuse_is_asked_of_the_library(
    gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ProjectError("TensorRT-RTX does not support this GPU.")

    monkeypatch.setattr(visit, "check_engine", refuse)
    gpu.fail = "deserialize_cuda_engine"
    status, evidence = run(artifacts, "--precisions", "fp16", "--variants", "throughput")
    engine = evidence.engines["fp16-throughput"]
    assert (status, engine.refused) == (1, "TensorRT-RTX does not support this GPU.")
    assert "deserialize_cuda_engine said no" in engine.library
    assert step_of(evidence, "parity fp16-throughput").why == "there is no engine fp16-throughput that runs here"
    assert "the library: " in (artifacts / "evidence.md").read_text()
    for number, (fail, words) in enumerate(
        [("execute_async_v3", "execute_async_v3 said no"), ("", "it loads the engine and runs it")], start=2
    ):
        gpu.fail = fail
        main([str(artifacts), "-o", str(artifacts / "evidence.json"), *SHORT, "--precisions", "fp16"])
        evidence = read_gpu_evidence(artifacts / f"evidence-{number}.json")
        assert words in evidence.engines["fp16-latency"].library
    assert gpu.runtime.live == 0


def test_peers_take_turns_with_the_engine(gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def __init__(self, path: Path, precision: str, mode: str, max_batch: int) -> None:
            self.mode = mode

        def __enter__(self) -> "Peer":
            if self.mode == "compile":
                raise RuntimeError("no Triton")
            return self

        def __exit__(self, *exc: object) -> None: ...

        def infer(self, images: np.ndarray) -> None: ...

        def compute_ms(self, batch: int, repeats: int) -> list[float]:
            return [4.0] * repeats

    fake = types.SimpleNamespace(PyTorchRunner=Peer)
    monkeypatch.setitem(sys.modules, "benchmarks.peers.pytorch.runner", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(visit, "why_without_peers", lambda model: "")
    status, evidence = run(artifacts, "--precisions", "fp16")
    assert status == 1
    assert step_of(evidence, "PyTorch compile, batch 4").why == "RuntimeError: no Triton"
    rows = {(row.name, row.beside, row.batch, row.measures) for row in evidence.timings if row.beside}
    assert rows == {
        (name, mode, batch, measures)
        for mode in ("eager", "graphs")
        for name in ("engine", f"PyTorch {mode}")
        for batch in (1, 4)
        for measures in ("compute", "infer")
    }
    targets = {one.target.partition(":")[0]: one for one in evidence.targets}
    assert targets["fp16 over PyTorch graphs"].measured == 2.0  # the fake engine takes 2 ms
    assert targets["fp16 over PyTorch compile"].measured is None


def test_default_precisions_are_those_that_are_there(gpu: FakeTensorRT, artifacts: Path) -> None:
    (artifacts / ONNX["fp32"]).unlink()
    status, evidence = run(artifacts)
    assert status == 0
    assert step_of(evidence, "build fp32-throughput").why == "export/model.onnx is not in the folder"
    assert not any("time" in name and "fp32" in name for name in states(evidence))
    (artifacts / engine_source("int8", gpu.trt.strongly_typed)).unlink()
    named = [str(artifacts), "-o", str(artifacts / "y.json"), "--precisions", "int8"]
    assert main(named) == 2  # by name, for this TensorRT
    assert not (artifacts / "y.json").exists()


def test_without_the_files_for_8_6_the_key_that_makes_them_is_named(
    gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    older = FakeTensorRT(gpu.runtime, kind="8", version="8.6.0").trt
    monkeypatch.setattr(command, "find_tensorrt", lambda flavour: older)
    for precision in ("fp16", "int8"):
        (artifacts / engine_source(precision, False)).unlink()
    key = "quantize.tensorrt8: true"
    assert main([str(artifacts), *SHORT, "--precisions", "fp16"]) == 2
    remedy = f"no such file. Run the recipe, verify included, with {key}, and bring its artifacts here, or"
    assert f"{remedy} name other precisions." in caplog.text
    caplog.clear()
    assert main([str(artifacts), *SHORT]) == 2, "FP32 alone is no visit's worth, unless it is asked for"
    assert f"{remedy} --precisions fp32 to go on without them." in caplog.text
    assert not (artifacts / "evidence").exists()
    assert main([str(artifacts), "-o", str(artifacts / "fp32.json"), *SHORT, "--precisions", "fp32"]) == 1
    assert read_gpu_evidence(artifacts / "fp32.json").state == "finished", "the fake builds none"
    (artifacts / engine_source("fp16", False)).write_bytes(b"onnx")
    _, evidence = run(artifacts)
    why = f"quantize/model.int8-trt8.onnx is not in the folder; the recipe makes it with {key}"
    assert step_of(evidence, "build int8-throughput").why == why


def test_a_visit_too_short_for_an_engine_says_what_to_do(
    gpu: FakeTensorRT, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    status, evidence = run(artifacts, "--minutes", "0.05")
    assert (status, evidence.state, evidence.engines, evidence.failures) == (1, "finished", {}, ())
    last = caplog.records[-1].getMessage()
    assert last.startswith("Expected an engine at least. Received: none, so nothing was measured.")
    assert last.endswith("give it more --minutes or a lower --level.")


def test_an_earlier_visit_is_kept(gpu: FakeTensorRT, artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert main([str(artifacts), *SHORT, "--variants", "throughput", "--precisions", "fp16"]) == 0
    folder = artifacts / "evidence"
    stem = "fake-gpu-tensorrt-10.13.0"
    assert {path.name for path in folder.iterdir()} == {
        f"{stem}{number}.{kind}" for number in ("", "-2", "-3") for kind in ("json", "md")
    }
    assert f"{stem}.json is that of an earlier visit and is kept; this one's is {stem}-3.json" in caplog.text


def test_a_visit_too_short_for_any_engine_is_no_success(gpu: FakeTensorRT, artifacts: Path) -> None:
    status, evidence = run(artifacts, "--minutes", "1e-9")
    assert (status, evidence.state, evidence.failures) == (1, "finished", ())
    assert set(states(evidence).values()) == {"skipped"}


def test_what_was_asked_for_reaches_the_steps(
    gpu: FakeTensorRT, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, Any] = {}
    timed: dict[tuple[str, str], tuple[Any, ...]] = {}
    cycles: list[tuple[Any, ...]] = []
    peers: list[tuple[Any, ...]] = []
    build, time_engines = visit.build_engine, visit.time_engines

    def note_build(source: Path, plan: Path, **more: Any) -> Any:
        built[plan.name] = (more["profile"], more["options"])
        sidecar = build(source, plan, **more)
        return replace(sidecar, plan_bytes=9 if "int8" in plan.name else 8)

    def note_times(plans: Any, images: np.ndarray, *more: Any) -> Any:
        timed[more[0], more[2]] = (sorted(plan.name for plan in plans.values()), len(images), *more)
        return time_engines(plans, images, *more)

    def cycles_leak_nothing(plan: Path, images: np.ndarray, *more: Any) -> str:
        cycles.append((plan.name, len(images), *more))
        return "none"

    def note_peer(mode: str, model: Path, plan: Path, images: np.ndarray, *more: Any) -> list[Any]:
        peers.append((mode, model, plan.name, len(images), *more))
        return []

    monkeypatch.setattr(visit, "build_engine", note_build)
    monkeypatch.setattr(visit, "time_engines", note_times)
    monkeypatch.setattr(visit, "cycles_leak_nothing", cycles_leak_nothing)
    monkeypatch.setattr(visit, "time_peer", note_peer)
    monkeypatch.setattr(visit, "why_without_peers", lambda model: "")
    monkeypatch.setattr(gpu_plan, "QUICK", ())
    monkeypatch.setattr(type(gpu.trt), "timing_cache", True)
    plans = artifacts.parent / "plans"
    asked = ("--level", "2", "--targets", "SM89", "--checks", "quick", "--cycles", "7", "--cycle-seconds", "5")
    _, evidence = run(artifacts, "--precisions", "fp16,int8", "--peers", "eager", "--plans", str(plans), *asked)
    names = {one: [f"{kind}-{one}.plan" for kind in ("fp16", "int8")] for one in ("throughput", "latency")}
    assert {plan: profile for plan, (profile, _) in built.items()} == {
        **dict.fromkeys(names["throughput"], BatchProfile(1, 4, 4)),
        **dict.fromkeys(names["latency"], BatchProfile(1, 1, 1)),
    }
    for _, options in built.values():
        assert (options.optimization_level, options.targets) == (2, ("SM89",))
        assert options.timing_cache == plans / "timing.cache"
    assert (
        step_of(evidence, "build fp16-throughput").expected_seconds == gpu_plan.BUILD_BY_LEVEL[2] * gpu_plan.LEAST == 4
    )
    assert timed["throughput", "infer"] == (names["throughput"], COUNT, "throughput", 4, "infer", 0.001)
    assert timed["latency", "compute"] == (names["latency"], COUNT, "latency", 1, "compute", 0.001)
    assert cycles == [("fp16-throughput.plan", COUNT, 7, 5.0)], "the smallest engine is the quickest"
    assert peers == [
        ("eager", artifacts / ONNX["fp32"], f"fp16-{variant}.plan", COUNT, variant, batch, 0.001)
        for variant, batch in (("throughput", 4), ("latency", 1))
    ]


def test_two_visits_at_once_write_two_files(gpu: FakeTensorRT, artifacts: Path) -> None:
    args = build_parser().parse_args([str(artifacts), "-o", str(artifacts / "new" / "x.json")])
    paths = [evidence_path(read_options(args), "Fake GPU", gpu.trt) for _ in range(3)]  # none has written anything yet
    assert [path.name for path in paths] == ["x.json", "x-2.json", "x-3.json"]
    assert not any(path.exists() for path in paths)


def test_thresholds_are_the_recipes(gpu: FakeTensorRT, artifacts: Path) -> None:
    write_verdict(artifacts, make_hop(ONNX["int8"]))
    report = read_parity(artifacts / PARITY)
    asked = {**report.thresholds, "int8": Thresholds(relative_error=-1.0)}
    write_json(artifacts / PARITY, replace(report, thresholds=asked))
    status, evidence = run(artifacts, "--precisions", "fp16,int8")
    assert status == 1
    assert evidence.parity is not None
    verdicts = {hop.candidate: hop.verdict for hop in evidence.parity.hops if hop.kind == "from_keras"}
    assert (verdicts["fp16-throughput"], verdicts["int8-throughput"]) == ("pass", "fail")
    assert evidence.parity.thresholds["int8"].relative_error == -1.0


@pytest.mark.parametrize(("megabytes", "seconds"), [(0, 9.0), (51, 90.0), (102, 180.0), (5100, 360.0)])
def test_a_build_is_guessed_by_the_size_of_its_file(
    gpu: FakeTensorRT, artifacts: Path, megabytes: int, seconds: float
) -> None:
    with (artifacts / engine_source("fp16", gpu.trt.strongly_typed)).open("wb") as file:
        file.truncate(megabytes * 1_000_000)  # sparse: it takes no room
    _, evidence = run(artifacts, "--precisions", "fp16", "--variants", "throughput", "--minutes", "0.001")
    assert step_of(evidence, "build fp16-throughput").expected_seconds == seconds
