"""The record of a machine, and the benchmark that holds it: what is read, and what is refused by its key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from export.errors import ProjectError
from export.records import to_json
from pipeline.artifacts.benchmark_report import BenchmarkReport, TimedModel, read_benchmark
from pipeline.artifacts.files import write_json
from pipeline.artifacts.machine import Gpu, GpuSnapshot, Machine, describe_cpu

REPORT = BenchmarkReport(
    "toy",
    TimedModel((32, 48), 3),
    Machine(describe_cpu(), 1 << 34, "Linux", "3.12.1", {"numpy": "2.4"}, gpus=(Gpu("A GPU", "9.0", 1 << 37),)),
    None,
    (GpuSnapshot(1980, power_w=300.0),),
    (GpuSnapshot(345),),
    (),
)


def test_the_processor_of_this_machine() -> None:
    cpu = describe_cpu()
    assert cpu.cores == os.cpu_count()
    assert str(cpu) == f"{cpu.model}, {cpu.usable_cores} cores"


def test_a_benchmark_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "b.json", REPORT)
    assert read_benchmark(tmp_path / "b.json") == REPORT


def test_a_benchmark_of_before_snapshots_had_all_keys_is_read(tmp_path: Path) -> None:
    tree = {**to_json(REPORT), "gpu_before": [{"sm_clock_mhz": 1980, "power_w": 300.0}], "gpu_after": []}
    (tmp_path / "b.json").write_text(json.dumps(tree))
    assert read_benchmark(tmp_path / "b.json").gpu_before == REPORT.gpu_before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {}}, "'model.size' of type a list"),
        ({"machine": {"cpu": "fast"}}, "'machine.cpu' of type an object"),
        ({"gpu_after": [{"power_w": "much"}]}, r"'gpu_after\[0\].power_w' of type a number"),
        ({"schema": 1}, "of schema 3 .* Received: schema 1. Run the benchmark again: python -m benchmarks -c RECIPE"),
    ],
)
def test_a_damaged_benchmark_is_one_sentence_with_the_key(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(to_json(REPORT) | change))
    with pytest.raises(ProjectError, match=said):
        read_benchmark(tmp_path / "b.json")
