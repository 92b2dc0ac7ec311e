"""The benchmark's record, ``benchmark/benchmark.json``: types, reading and writing."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from export.errors import ProjectError
from export.records import read_record, without_none
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.fastest import Serves
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.machine import GpuSnapshot, Machine
from pipeline.artifacts.manifest import matches_manifest
from pipeline.artifacts.paths import BENCHMARK, Artifacts

SCHEMA = 3
PEER = "onnxruntime-tensorrt"  # timed for comparison only: not verified, and never served
GRAPH = "graph"
NO_GRAPH = "no graph: "
REMEDY = "Run the benchmark again: python -m benchmarks -c RECIPE."


@dataclass(frozen=True)
class Summary:
    """Summary statistics of latency samples; times in milliseconds.

    Attributes:
        n: Number of samples.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        images_per_second: Throughput of the median call; None where the clock was too coarse.
        p99_is_near_max: Whether there are fewer than 100 samples, so that the 99th percentile is close to the maximum.
        percentile_method: NumPy's name of the method.
    """

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    images_per_second: float | None
    p99_is_near_max: bool
    percentile_method: str


@dataclass(frozen=True)
class Compute(Summary):
    """Time of the engine alone, without copies between host and device.

    Attributes:
        includes: What a sample covers.
    """

    includes: str


@dataclass(frozen=True)
class BenchmarkRow:
    """Timing of one backend, file and batch size; times in milliseconds, None where it failed.

    Attributes:
        backend: "keras", "onnxruntime" (on the CPU), "onnxruntime-cuda", "tensorrt", or the peer
            "onnxruntime-tensorrt", ONNX Runtime's TensorRT execution provider.
        precision: "fp32", "fp16" or "int8".
        batch: Images per call.
        includes: What a sample covers.
        caveat: What a reader must know before comparing; "" for nothing.
        variant: Name of the engine where a precision has several; else "".
        file: File that was run.
        graph: For an engine: "graph" where a CUDA graph launched it, "no graph: " and the reason where one was
            requested and could not be captured, "" where none was requested or the batch was split.
        error: Why there are no numbers; None where there are.
        samples_ms: Time of each call, in the order of measurement.
        turns: Number of samples in each turn, in order; turns with the same index, of rows with the same batch size,
            belong to the same round.
        n: Number of samples; it and the fields up to `percentile_method` are those of `Summary`, copies included.
        compute: GPU time alone, for an engine that takes the batch in one run.
    """

    backend: Literal["keras", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
    precision: Precision
    batch: int
    includes: str
    caveat: str
    variant: str
    file: str
    graph: str = ""
    error: str | None = None
    samples_ms: tuple[float, ...] | None = None
    turns: tuple[int, ...] | None = None
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
        if sum(self.turns or ()) != len(self.samples_ms or ()) or any(count < 1 for count in self.turns or ()):
            raise ValueError("turns that do not add up to the samples")
        if self.graph not in ("", GRAPH) and not self.graph.startswith(NO_GRAPH):
            raise ValueError(f"the graph {self.graph!r:.40}")

    @property
    def name(self) -> str:
        """Precision, followed by the variant where there is one."""
        return f"{self.precision} {self.variant}" if self.variant else self.precision

    @property
    def artifact(self) -> str:
        """Path of the file that was run, relative to ``artifacts/<recipe>/``."""
        return f"build/{self.file}" if self.backend == "tensorrt" else self.file

    @property
    def refused_graph(self) -> str:
        """Why no CUDA graph was captured although one was requested; else ""."""
        reason = self.graph.removeprefix(NO_GRAPH)
        return f"launched without a CUDA graph: {reason}" if reason != self.graph else ""

    def to_dict(self) -> dict[str, object]:
        """Return the fields that are not None."""
        return without_none(self)


@dataclass(frozen=True)
class TimedModel:
    """The model that was timed.

    Attributes:
        size: Height and width of its input images in pixels.
        classes: Number of its classes.
    """

    size: tuple[int, int]
    classes: int


@dataclass(frozen=True)
class BenchmarkReport:
    """The benchmark of a recipe.

    Attributes:
        recipe: Name of the recipe.
        model: Model that was timed.
        machine: Machine that it ran on.
        commit: Git commit of this code; None outside a repository.
        gpu_before: Clocks, temperature and load of the GPUs before.
        gpu_after: The same after.
        results: One row per backend, precision, variant and batch size.
        serves: The fastest of the files that a GPU ran, at each batch size; None if a GPU ran none.
        schema: Version of this file format.
    """

    recipe: str
    model: TimedModel
    machine: Machine
    commit: str | None
    gpu_before: tuple[GpuSnapshot, ...]
    gpu_after: tuple[GpuSnapshot, ...]
    results: tuple[BenchmarkRow, ...]
    serves: Serves | None = None
    schema: int = SCHEMA


def read_benchmark(path: Path) -> BenchmarkReport:
    """Read a benchmark.

    Raises:
        ProjectError: It is missing, damaged, or of another schema; with the file and the key.
    """
    return read_record(BenchmarkReport, path, remedy=REMEDY, what="benchmark")


def read_serves(artifacts: Artifacts) -> tuple[Serves | None, str]:
    """Read which file is fastest from a recipe's benchmark.

    Args:
        artifacts: Artifacts of the recipe; the benchmark and its manifest are read.

    Returns:
        The record, or None where there is no valid one; and the reason, "" where there is no benchmark.
    """
    if not artifacts.has(BENCHMARK):
        return None, ""
    if not matches_manifest(artifacts, BENCHMARK):
        return None, f"{BENCHMARK} is not what the benchmark wrote. {REMEDY}"
    path = artifacts.path(BENCHMARK)
    return _read_serves(path, sha256_file(path))


@lru_cache(maxsize=8)
def _read_serves(path: Path, _: str) -> tuple[Serves | None, str]:
    """Cached by the file's digest, because reading it with all its samples takes half a second."""
    try:
        return read_benchmark(path).serves, ""
    except ProjectError as error:
        return None, str(error)
