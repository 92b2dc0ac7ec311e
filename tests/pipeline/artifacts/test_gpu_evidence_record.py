"""What a visit to a GPU showed, as a file: read as it was written, and refused where it is at odds with itself."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from export.errors import ProjectError
from export.files import ROOT
from export.records import to_json
from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.files import write_json
from pipeline.artifacts.gpu_evidence import (
    CheckRow,
    EngineEvidence,
    Gpu,
    GpuEvidence,
    Model,
    Step,
    Target,
    TimedRow,
    read_gpu_evidence,
)
from pipeline.artifacts.machine import Cpu, GpuSnapshot, Machine
from pipeline.artifacts.parity_report import Parity, thresholds_by_precision
from pipeline.recipe.schema import VerifyThresholds
from tests.made_records import make_hop

ROW = TimedRow("engine", "fp16", "throughput", 256, 1, "infer", "host to host", True, n=200, p50_ms=2.0, p90_ms=2.1,
               p99_ms=2.4, mean_ms=2.0, images_per_second=128_000, p99_is_near_max=False)  # fmt: skip
EVIDENCE = GpuEvidence(
    date="2026-11-29T16:24Z",
    commit="abc",
    state="finished",
    gpu=Gpu("NVIDIA H200", "9.0", "580.95.05", "13.0"),
    flavour="tensorrt",
    tensorrt_version="8.6.0",
    machine=Machine(Cpu(cores=16)),
    model=Model("imagenet", "0" * 64, (224, 224), 1000, 192, True),
    asked={"minutes": 8.0},
    steps=(Step("machine", "done", 0.1, 1.0), Step("build fp16-throughput", "error", 3.0, 60.0, "no memory")),
    engines={
        "fp16-throughput": EngineEvidence(
            "fp16", "throughput", BatchProfile(1, 256, 256), "tensorrt", "8.6.0", "1" * 64, "2" * 64, 4, 61.5, {},
            {"CONVOLUTION": 53}, {"fp16": 53}, None, ("slow",), "Expected another GPU.", "it loads it",
        )
    },
    parity=Parity(
        "fail", thresholds_by_precision(VerifyThresholds()), (make_hop("fp16-throughput", "fail", why="too far"),)
    ),
    timings=(ROW, replace(ROW, name="PyTorch graphs", n=0, p50_ms=None, error="out of memory")),
    checks=(CheckRow("graphs", "fp16-throughput", "fail", "bits differ"), CheckRow("x", "y", "skipped", "none here")),
    targets=(Target("speed", 1.5, 1.6, True),),
    snapshots={"machine": (GpuSnapshot(sm_clock_mhz=1980),)},
)  # fmt: skip


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "h200.json", EVIDENCE)
    assert read_gpu_evidence(tmp_path / "h200.json") == EVIDENCE


def test_everything_that_is_wrong_is_a_failure() -> None:
    assert EVIDENCE.failures == (
        "build fp16-throughput: no memory",
        "fp16-throughput is not loaded here: Expected another GPU.",
        "fp16-throughput against Keras: too far",
        "fp16-throughput, graphs: bits differ",
        "PyTorch graphs, fp16, batch 256, infer: out of memory",
    )
    checks = [CheckRow("rows", "fp16-latency", result, "x") for result in ("pass", "fail", "skipped", "error")]  # type: ignore[arg-type]
    told = replace(EVIDENCE, steps=(), engines={}, parity=None, timings=(), checks=tuple(checks))
    assert told.failures == ("fp16-latency, rows: x",) * 2, "a check that could not be made is none that passed"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", 1, "Expected the evidence from a GPU of schema 2"),
        ("steps", [{"name": "a"}, {"name": "a"}], "two steps of one name"),
        ("state", "half", "'state' of type 'running' or 'finished'"),
        ("parity", {"verdict": "pass", "thresholds": {}, "hops": []}, "'pass' over hops whose verdict is 'fail'"),
        ("timings", [to_json(ROW), {**to_json(ROW), "error": "x"}], "either times or an error"),
        ("timings", [{**to_json(ROW), "p50_ms": None}], "either times or an error"),
        ("timings", [{**to_json(ROW), "batch": 0}], "a timed row of 1 times 0 images"),
        ("timings", [{**to_json(ROW), "batches": -2}], "a timed row of -2 times 256 images"),
        ("timings", [{**to_json(ROW), "p99_ms": -2.0}], "a timed row with the number -2"),
        ("timings", [{**to_json(ROW), "images_per_second": 1e300}], r"a timed row with the number 1e\+300"),
        ("timings", [to_json(ROW)] * 501, "501 timings, where a visit has at most 500"),
        ("machine", {"cpu": {"cores": "16"}}, "'machine.cpu.cores' of type a whole number"),
        ("snapshots", {"a": [{"clock": 1}]}, "keys of gpu_load_percent, .*the unknown key 'clock'"),
        ("steps", [{"name": str(number)} for number in range(501)], "501 steps, where"),
        ("targets", [{"target": "x", "limit": 1.0, "measured": None, "met": True}], "'x' is judged, and nothing was"),
    ],
)
def test_a_damaged_file_is_refused(key: str, value: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**to_json(EVIDENCE), key: value}))
    with pytest.raises(ProjectError, match=said):
        read_gpu_evidence(tmp_path / "x.json")


def test_a_visit_that_ended_before_the_machine_was_described_is_read(tmp_path: Path) -> None:
    told = {"sm_clock_mhz": 345, "throttle_reasons": None}
    tree = {**to_json(EVIDENCE), "machine": {}, "snapshots": {"machine": [told]}}
    (tmp_path / "x.json").write_text(json.dumps(tree))
    kept = read_gpu_evidence(tmp_path / "x.json")
    assert (kept.machine, kept.snapshots["machine"]) == (Machine(), (GpuSnapshot(sm_clock_mhz=345),))


def test_the_keys_of_the_file_are_described_beside_the_results() -> None:
    """Who reads a file of a GPU that is not at hand finds each key in ``benchmarks/results/README.md``."""
    page = (ROOT / "benchmarks/results/README.md").read_text(encoding="utf-8")
    described = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {field.name for field in fields(GpuEvidence)} - {"date", "schema"} <= described
    states = get_args(get_type_hints(GpuEvidence)["state"])
    assert all(f"`{state}`" in page for state in states)
