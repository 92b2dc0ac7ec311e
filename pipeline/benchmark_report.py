"""What the benchmark measured, as a file: ``benchmark/benchmark.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from export.records import from_json, read_record, to_json
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.layout import Precision

SCHEMA = 2
REMEDY = "Run the benchmark again: python -m benchmarks -c RECIPE."


@dataclass(frozen=True)
class Compute:
    """What the engine alone takes, without the copies; times in milliseconds.

    Attributes:
        includes: what a sample covers.
        n: samples.
        p50_ms: median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: mean.
        images_per_second: of the median call; None where the clock was too coarse.
        p99_is_near_max: fewer than 100 samples, so that it is about the largest.
        percentile_method: numpy's name.
    """

    includes: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    images_per_second: float | None
    p99_is_near_max: bool
    percentile_method: str


@dataclass(frozen=True)
class BenchmarkRow:
    """One thing that was timed; times in milliseconds, None where it failed.

    Attributes:
        backend: "keras", "onnxruntime" or "tensorrt".
        precision: "fp32", "fp16" or "int8".
        batch: images a call.
        includes: what a sample covers.
        caveat: what a reader must know before comparing; "" for nothing.
        variant: which engine of this precision, where there are several.
        file: that was run.
        error: why there are no numbers.
        samples_ms: each call, in the order of measuring.
        n: how many; and the numbers of `Compute`, copies included.
        compute: of an engine that takes the batch at once: its GPU's part.
    """

    backend: Literal["keras", "onnxruntime", "tensorrt"]
    precision: Precision
    batch: int
    includes: str
    caveat: str
    variant: str
    file: str
    error: str | None = None
    samples_ms: tuple[float, ...] | None = None
    n: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    images_per_second: float | None = None
    p99_is_near_max: bool | None = None
    percentile_method: str | None = None
    compute: Compute | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.samples_ms is None) or (self.p50_ms is None) == (self.error is None):
            raise ValueError("a row with an error and numbers, or with neither")

    @property
    def name(self) -> str:
        """The precision, with the variant where there is one."""
        return f"{self.precision} {self.variant}" if self.variant else self.precision

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what does not apply is left out."""
        return {key: value for key, value in to_json(self).items() if value is not None}


@dataclass(frozen=True)
class Cpu:
    """A processor."""

    model: str | None
    cores: int | None
    usable_cores: int | None
    features: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """A GPU; what only NVML knows is None without it."""

    name: str
    compute_capability: str
    memory_bytes: int
    power_limit_w: float | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None


@dataclass(frozen=True)
class Machine:
    """What `benchmarks.telemetry.machine` says."""

    cpu: Cpu
    memory_bytes: int | None
    os: str
    python: str
    packages: Mapping[str, str]
    driver_version: str | None
    cuda_version: str | None
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class BenchmarkReport:
    """The benchmark of a recipe.

    Attributes:
        recipe: its name.
        model: size and number of classes.
        machine: that it ran on.
        commit: of this code; None outside a repository.
        gpu_before: clocks, temperature and load of the GPUs before.
        gpu_after: and after.
        results: a row a backend, precision, variant and batch.
        schema: of this file.
    """

    recipe: str
    model: Mapping[str, Any]
    machine: Machine
    commit: str | None
    gpu_before: tuple[Mapping[str, Any], ...]
    gpu_after: tuple[Mapping[str, Any], ...]
    results: tuple[BenchmarkRow, ...]
    schema: int = SCHEMA


def read_machine(tree: Mapping[str, Any]) -> Machine:
    """The machine that `benchmarks.telemetry.machine` described."""
    return from_json(Machine, dict(tree), "this machine's description", error=PipelineError, remedy="Report it.")


def read_benchmark(path: Path) -> BenchmarkReport:
    """Read a benchmark.

    Raises:
        PipelineError: missing, damaged, or of another schema; with the file and the key.
    """
    return read_record(BenchmarkReport, path, error=PipelineError, remedy=REMEDY, what="benchmark")


def write_benchmark(path: Path, report: BenchmarkReport) -> None:
    """Write a benchmark."""
    given = {field.name: getattr(report, field.name) for field in fields(report)}
    tree = {key: to_json(value) if key == "machine" else value for key, value in given.items()}
    write_json(path, tree | {"results": [row.to_json() for row in report.results]})
