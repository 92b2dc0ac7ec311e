from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import command
from benchmarks import scenarios as module
from benchmarks.command import table
from benchmarks.scenarios import Scenario, open_scenario, run_scenarios, scenarios
from benchmarks.timing import measure
from export.errors import ProjectError, RunnerError
from export.records import to_json
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.sidecar import sidecar_path, write_plan
from pipeline.artifacts.inputs import Inputs
from pipeline.artifacts.paths import Artifacts
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Benchmark, Build, Profile, Recipe
from pipeline.runners.base import Outputs
from tests import tiny_onnx
from tests.fakes.engine import SIZE, install, make_plan, make_sidecar
from tests.pipeline.report_artifacts import row as made_row

QUICK = partial(measure, seconds_each=0.0, warmup_seconds=0.0, min_samples=3)


def driver(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    devices = (Device("Fake GPU", "8.9", 1 << 30),)
    status = DriverStatus(True, "", "580", "13.0", devices) if there else DriverStatus(False, "no NVIDIA driver")
    monkeypatch.setattr(module, "driver_status", lambda: status)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    for name in ("train/model.keras", "export/model.onnx", "quantize/model.fp16.onnx", "quantize/model.int8.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for flavour in ("tensorrt", "rtx"):
        for precision in ("int8", "fp32"):
            sidecar = make_sidecar(flavour=flavour, precision=precision, profile={"min": 2, "opt": 4, "max": 8})
            write_plan(tmp_path / "build" / flavour / f"{precision}.plan", b"plan", sidecar)
    return tmp_path


def test_without_a_gpu_there_are_no_engines(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, False)
    found = scenarios(Artifacts(artifacts), [1, 8])
    one_batch = [("keras", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("onnxruntime", "int8")]
    assert [(one.backend, one.precision) for one in found] == one_batch * 2
    assert [one.batch for one in found] == [1] * 4 + [8] * 4
    assert all("host to host: uint8 pixels" in one.includes for one in found)
    caveats = {one.precision: one.caveat for one in found if one.backend == "onnxruntime"}
    assert caveats["fp32"] == ""
    assert "FP32" in caveats["fp16"]
    assert "INT8 engines" in caveats["int8"]


def test_with_a_gpu_the_engines_come_too(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, True)
    found = [one for one in scenarios(Artifacts(artifacts), [1, 4, 20]) if one.backend == "tensorrt"]
    at_4 = [one for one in found if one.batch == 4]
    assert [(one.path.parent.name, one.precision) for one in at_4] == [
        ("rtx", "fp32"),
        ("rtx", "int8"),
        ("tensorrt", "fp32"),
        ("tensorrt", "int8"),
    ]
    caveats = {(one.path.parent.name, one.batch): one.caveat for one in found}
    assert caveats["tensorrt", 4] == ""
    assert "padded to 2" in caveats["tensorrt", 1]
    assert "split into batches of 8" in caveats["tensorrt", 20]
    assert "TensorRT-RTX" in caveats["rtx", 4]


def test_an_engine_without_a_sidecar_is_left_out(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver(monkeypatch, True)
    sidecar_path(artifacts / "build" / "rtx" / "fp32.plan").unlink()
    found = scenarios(Artifacts(artifacts), [4])
    assert sum(one.backend == "tensorrt" for one in found) == 3
    assert "fp32.json" in caplog.text


def test_an_engine_that_no_stage_built_is_left_out(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, True)
    for path in sorted((artifacts / "build" / "rtx").glob("fp32.*")):
        path.with_stem("best").write_bytes(path.read_bytes())
    found = scenarios(Artifacts(artifacts), [4])
    assert "best.plan" not in {one.path.name for one in found}


def test_missing_files(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, False)
    (artifacts / "quantize" / "model.int8.onnx").unlink()
    found = scenarios(Artifacts(artifacts), [1])
    assert [(one.backend, one.precision) for one in found] == [
        ("keras", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
    ]
    assert scenarios(Artifacts(artifacts / "nothing"), [1]) == []


@pytest.mark.parametrize("batches", [[], [0], [4, -1]])
def test_batches_are_checked(artifacts: Path, batches: list[int]) -> None:
    with pytest.raises(ProjectError, match="batch sizes of 1 or more"):
        scenarios(Artifacts(artifacts), batches)


class Runner:
    precision = "fp32"
    max_batch = None
    open = 0

    def __init__(self, scenario: Scenario, log: list[Any]) -> None:
        self.backend, self.log = scenario.backend, log

    def __enter__(self) -> "Runner":
        if self.backend == "cannot open":
            raise RunnerError("no such library")
        Runner.open += 1
        return self

    def __exit__(self, *exc: object) -> None:
        Runner.open -= 1

    def infer(self, pixels: np.ndarray) -> Outputs:
        if self.backend == "cannot run":
            raise MemoryError("out of memory")
        self.log.append((self.backend, pixels.copy()))
        return Outputs(np.zeros((len(pixels), 2), np.float32), np.zeros((len(pixels), 2), np.float32))


def scenario(backend: str, batch: int) -> Scenario:
    return Scenario(backend, "fp32", batch, Path("/somewhere/private/build/model.bin"), "all", "none")


def test_rows_come_in_order_and_a_failing_backend_does_not_stop_the_rest() -> None:
    wanted = [scenario(name, batch) for name in ("good", "cannot open", "cannot run", "fine") for batch in (2, 5)]
    log: list[Any] = []
    rows = [to_json(row) for row in run_scenarios(wanted, lambda one: Runner(one, log), (6, 7), QUICK)]
    assert [(row["backend"], row["batch"]) for row in rows] == [(one.backend, one.batch) for one in wanted]
    for row in rows:
        if row["backend"] in ("good", "fine"):
            assert len(row["samples_ms"]) == row["n"] == 3
            assert row["images_per_second"] == pytest.approx(row["batch"] * 1000 / row["p50_ms"], rel=1e-3)
            assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
            assert (row["includes"], row["caveat"]) == ("all", "none")
            assert "error" not in row
        else:
            assert "samples_ms" not in row
            assert "p50_ms" not in row
    assert {row["backend"]: row["error"] for row in rows if "error" in row} == {
        "cannot open": "RunnerError: no such library",
        "cannot run": "MemoryError: out of memory",
    }
    assert Runner.open == 0
    assert not any("private" in str(row) for row in rows)


def test_pixels_are_the_same_noise_for_all() -> None:
    log: list[Any] = []
    run_scenarios([scenario("a", 3), scenario("b", 3)], lambda one: Runner(one, log), (6, 7), QUICK)
    first = log[0][1]
    assert first.shape == (3, 6, 7, 3)
    assert first.dtype == np.uint8
    assert len(np.unique(first)) > 100
    assert {name for name, _ in log} == {"a", "b"}
    assert all((pixels == first).all() for _, pixels in log)


def test_engines_say_what_the_gpu_takes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch)
    plan = make_plan(tmp_path / "fp16.plan")
    wanted = [Scenario("tensorrt", "fp16", batch, plan, "all", "none") for batch in (2, 9)]
    opener = partial(open_scenario, runtime=RuntimeOptions(graphs=False))
    whole, split = run_scenarios(wanted, opener, SIZE, QUICK)
    assert whole.compute.n == 200
    assert whole.compute.images_per_second == pytest.approx(2000 / whole.compute.p50_ms, rel=1e-3)
    assert "no copy over the bus" in whole.compute.includes
    assert split.n == 3
    assert split.compute is None  # it does not take 9 at once
    assert "cudaGraphLaunch" not in gpu.runtime.calls
    assert "ms are the engine alone" in table([whole, split])
    assert gpu.runtime.live == 0


def test_onnxruntime_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, False)
    for name, precision in (("export/model.onnx", "fp32"), ("quantize/model.int8.onnx", "int8")):
        (tmp_path / name).parent.mkdir()
        tiny_onnx.write(tmp_path / name, precision)
    wanted = scenarios(Artifacts(tmp_path), [1, 4])
    rows = run_scenarios(wanted, open_scenario, (tiny_onnx.SIZE, tiny_onnx.SIZE), QUICK)
    assert [(row.precision, row.batch, row.n) for row in rows] == [
        ("fp32", 1, 3),
        ("int8", 1, 3),
        ("fp32", 4, 3),
        ("int8", 4, 3),
    ]


def test_openers() -> None:
    opener = open_scenario
    with pytest.raises(RunnerError, match="card of the Keras model"):
        opener(scenario("keras", 1))
    with pytest.raises(RunnerError, match="'tpu'"):
        opener(scenario("tpu", 1))


def test_the_table_says_how_many_times_as_fast_as_keras_at_the_same_batch() -> None:
    rows = [
        made_row("keras", "fp32", 1, 30.0),
        made_row("onnxruntime", "fp32", 1, 10.0),
        made_row("keras", "fp32", 8, 80.0),
    ]
    lines = table(
        [*rows, made_row("onnxruntime", "fp32", 8, 160.0), made_row("onnxruntime", "fp16", 4, 1.0)]
    ).splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["1.00", "3.00", "1.00", "0.50", "4000.0"]


@pytest.mark.parametrize(("given", "expected"), [((), (1, 8, 32)), ((2, 4), (2, 4))])
def test_batches_are_one_and_the_largest_of_each_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    class Asked(Exception): ...

    def asked(_: Path, batches: tuple[int, ...]) -> list[Scenario]:
        raise Asked(batches)

    monkeypatch.setattr(command, "scenarios", asked)
    variants = {"large": Profile(1, 8, 32), "small": Profile(1, 1, 8)}
    recipe = Recipe("r", build=Build(variants=variants), benchmark=Benchmark(batches=given))
    with pytest.raises(Asked) as caught:
        command.run_benchmark(Inputs(tmp_path), recipe, tmp_path)
    assert caught.value.args == (expected,)
