"""What the benchmark measured, as a file: ``benchmark/benchmark.json``."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from export.errors import ProjectError
from export.records import read_record, to_json, without_none
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.fastest import Serves
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.machine import GpuSnapshot, Machine
from pipeline.artifacts.manifest import as_recorded
from pipeline.artifacts.paths import BENCHMARK, Artifacts

SCHEMA = 3
PEER = "onnxruntime-tensorrt"  # it is timed beside ours, not verified, and does not serve
GRAPH = "graph"
NO_GRAPH = "no graph: "
REMEDY = "Run the benchmark again: python -m benchmarks -c RECIPE."


@dataclass(frozen=True)
class Summary:
    """Samples reduced to the numbers of a report; times in milliseconds.

    Attributes:
        n: samples.
        p50_ms: median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: mean.
        images_per_second: of the median call; None where the clock was too coarse.
        p99_is_near_max: fewer than 100 samples, so that it is about the largest.
        percentile_method: numpy's name.
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
    """What the engine alone takes, without the copies.

    Attributes:
        includes: what a sample covers.
    """

    includes: str


@dataclass(frozen=True)
class BenchmarkRow:
    """One thing that was timed; times in milliseconds, None where it failed.

    Attributes:
        backend: "keras", "onnxruntime" (on the CPU), "onnxruntime-cuda", "tensorrt", or the peer
            "onnxruntime-tensorrt", ONNX Runtime's own use of TensorRT.
        precision: "fp32", "fp16" or "int8".
        batch: images a call.
        includes: what a sample covers.
        caveat: what a reader must know before comparing; "" for nothing.
        variant: which engine of this precision, where there are several.
        file: that was run.
        error: why there are no numbers.
        graph: of an engine: "graph" where a CUDA graph ran it, "no graph: " and why where one was asked for and could
            not be made, "" where none was asked for, or the batch runs in pieces.
        samples_ms: each call, in the order of measuring.
        turns: how many of them each turn gave, in order; turns of equal number, of rows of one batch size, were taken
            in the same round.
        n: how many; and the numbers of `Compute`, copies included.
        compute: of an engine that takes the batch at once: its GPU's part.
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
        """The precision, with the variant where there is one."""
        return f"{self.precision} {self.variant}" if self.variant else self.precision

    @property
    def artifact(self) -> str:
        """The file that was run, below the artifacts."""
        return f"build/{self.file}" if self.backend == "tensorrt" else self.file

    @property
    def refused_graph(self) -> str:
        """Why there was no CUDA graph although one was asked for; "" elsewhere."""
        why = self.graph.removeprefix(NO_GRAPH)
        return f"launched without a CUDA graph: {why}" if why != self.graph else ""

    def to_dict(self) -> dict[str, object]:
        """Return what applies."""
        return without_none(self)


@dataclass(frozen=True)
class TimedModel:
    """What was timed: height and width of its images, and how many classes it tells apart."""

    size: tuple[int, int]
    classes: int


@dataclass(frozen=True)
class BenchmarkReport:
    """The benchmark of a recipe.

    Attributes:
        recipe: its name.
        model: that was timed.
        machine: that it ran on.
        commit: of this code; None outside a repository.
        gpu_before: clocks, temperature and load of the GPUs before.
        gpu_after: and after.
        results: a row a backend, precision, variant and batch.
        serves: which file is fastest at each batch size, of those that a GPU ran; None without any.
        schema: of this file.
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
        ProjectError: missing, damaged, or of another schema; with the file and the key.
    """
    return read_record(BenchmarkReport, path, remedy=REMEDY, what="benchmark")


def read_serves(artifacts: Artifacts) -> tuple[Serves | None, str]:
    """What the benchmark of a recipe says of the fastest file.

    Args:
        artifacts: of the recipe; the benchmark and its manifest are read.

    Returns:
        tuple: None where there is nothing that counts; and why, "" where there is no benchmark.
    """
    if not artifacts.has(BENCHMARK):
        return None, ""
    if not as_recorded(artifacts, BENCHMARK):
        return None, f"{BENCHMARK} is not what the benchmark wrote. {REMEDY}"
    path = artifacts.path(BENCHMARK)
    return _read_serves(path, sha256_file(path))


@lru_cache(maxsize=8)
def _read_serves(path: Path, _: str) -> tuple[Serves | None, str]:
    """The same, of a file by its digest: with all its samples it takes half a second to read."""
    try:
        return read_benchmark(path).serves, ""
    except ProjectError as error:
        return None, str(error)


def write_benchmark(path: Path, report: BenchmarkReport) -> None:
    """Write a benchmark."""
    write_json(path, to_json(report))
