"""The record of a visit to a GPU: engines, parity, timings, checks, targets and steps; and the texts that present it.

The file is written after every step, so that an interrupted visit leaves a complete record of the steps so far.
Standard library only, Python 3.10 syntax.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from export.records import read_record
from export.tensorrt.sidecar import BatchProfile, Precision
from export.words import listed
from pipeline.artifacts.machine import GpuSnapshot, Machine
from pipeline.artifacts.parity_report import Parity

SCHEMA = 2
MOST = 500  # entries of each kind in a record; a complete visit has a hundred steps
LARGEST = 1e12  # upper bound of every number in a timed row
FOLDER = "evidence"  # in a recipe's artifacts
ENGINE, WITHOUT_GRAPHS = "engine", "engine without graphs"  # names of timed rows; PyTorch's are "PyTorch <mode>"

StepState = Literal["pending", "running", "done", "skipped", "error"]
Variant = Literal["throughput", "latency"]
Measures = Literal["compute", "infer", "stream", "stream pinned"]
Form = Literal["plain", "trunk-fp16"]
REMEDY = "Run python -m benchmarks.gpu_evidence on the GPU machine again."


@dataclass(frozen=True)
class Step:
    """One step of a visit.

    Attributes:
        name: Such as "build fp16-throughput".
        state: State of the step; "running" in the file of a visit that ended during this step.
        seconds: Duration; None before it ended.
        expected_seconds: Duration expected when it started; None before.
        why: Why it was skipped or failed, in the library's words.
    """

    name: str
    state: StepState = "pending"
    seconds: float | None = None
    expected_seconds: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Gpu:
    """The GPU of the visit, and its driver."""

    name: str
    compute_capability: str
    driver_version: str | None
    cuda_version: str | None


@dataclass(frozen=True)
class Model:
    """The model that the engines were built from.

    Attributes:
        name: Name of the recipe and of its folder.
        keras_sha256: sha256 of the Keras model, the reference of the engines.
        size: Height and width of its input images in pixels.
        classes: Number of its classes.
        test_images: Number of test images with Keras' logits.
        as_verified: Whether the file with these logits is the one that the verify stage wrote.
        altered: Files that differ from the record in their bundle.
        own_thresholds: Whether the thresholds are those in the verify stage's verdict; False: the defaults.
    """

    name: str
    keras_sha256: str
    size: tuple[int, int]
    classes: int
    test_images: int
    as_verified: bool
    altered: tuple[str, ...] = ()
    own_thresholds: bool = True


@dataclass(frozen=True)
class EngineEvidence:
    """An engine that was built in the visit.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        variant: "throughput" (up to the largest batch) or "latency" (batch size 1).
        profile: Batch sizes.
        flavour: "tensorrt" or "rtx".
        tensorrt_version: Version of the library that built it.
        onnx_sha256: sha256 of the ONNX file that it was built from.
        plan_sha256: sha256 of the plan.
        plan_bytes: Size of the plan in bytes.
        seconds: Duration of the build.
        options: Build options, see `export.tensorrt.options.options_record`.
        network_layers: Number of parsed layers by kind.
        asked_convolutions: Requested number of convolutions by type.
        convolutions: Number of convolutions by type in the engine; None where the library did not tell.
        warnings: Differences between the engine and the request.
        refused: Why this project does not load it on this GPU; "" where it does.
        library: The library's own message about an engine that is refused.
        layers: Number of layers, of which most are one kernel; None where the library did not tell, like what follows.
        reformats: Number of layers that only change a format.
        activations: Number of convolutions with an activation behind them.
        fused_activations: Number of those whose layer computes the activation too.
    """

    precision: Precision
    variant: Variant
    profile: BatchProfile
    flavour: str
    tensorrt_version: str
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    seconds: float | None
    options: Mapping[str, Any]
    network_layers: Mapping[str, int]
    asked_convolutions: Mapping[str, int]
    convolutions: Mapping[str, int] | None
    warnings: tuple[str, ...] = ()
    refused: str = ""
    library: str = ""
    layers: int | None = None
    reformats: int | None = None
    activations: int | None = None
    fused_activations: int | None = None


@dataclass(frozen=True)
class FormContest:
    """The INT8 engine as shipped, timed in turns with one of another form of its file.

    Attributes:
        form: "plain" (not shifted) or "trunk-fp16".
        variant: Variant of both engines.
        batch: Images per batch.
        measures: What was timed, see `TimedRow`.
        rounds: Rounds that were compared.
        shipped_ms: Median time of a call of the engine as shipped, in milliseconds; None with an error.
        form_ms: The same of the other form.
        ratio: Time as shipped over that of the other form: geometric mean over the rounds; above 1 the choice of the
            quantize stage costs time.
        interval: Its 95 % confidence interval; None with too few rounds.
        error: Why there are no times; "" where there are.

    Raises:
        ValueError: There are both a ratio and an error, or neither; or a number is out of range.
    """

    form: Form
    variant: Variant
    batch: int
    measures: Measures
    rounds: int = 0
    shipped_ms: float | None = None
    form_ms: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    error: str = ""

    def __post_init__(self) -> None:
        if (self.ratio is None) != bool(self.error):
            raise ValueError("a contest has either a ratio or an error")
        numbers = (self.ratio, self.shipped_ms, self.form_ms, *(self.interval or ()))
        if wrong := [number for number in numbers if number is not None and not 0 < number <= LARGEST]:
            raise ValueError(f"a contest with the number {wrong[0]:g}")


@dataclass(frozen=True)
class TimedRow:
    """Timing of an engine, or of PyTorch, at one batch size.

    Attributes:
        name: "engine", "engine without graphs", or "PyTorch <mode>".
        precision: "fp32", "fp16" or "int8".
        variant: Variant of the engine; for PyTorch, of the engine that it is compared with.
        batch: Images per batch.
        batches: Batches per call.
        measures: "compute" (without copies), "infer" (host to host), "stream" (many overlapped batches per call),
            "stream pinned" (the same from page-locked memory).
        includes: Description of what the time covers, from pixels to predictions.
        graphs: Whether a CUDA graph launched it; None where that does not apply, as with streams.
        beside: What it was timed in turns with, if that is PyTorch; "": the other engines.
        n: Number of calls.
        p50_ms: Median time of a call in milliseconds; None with an error, like all that follow.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        images_per_second: Throughput of the median call.
        p99_is_near_max: Whether there were fewer than 100 calls.
        error: Why there are no times; "" where there are.

    Raises:
        ValueError: There are both times and an error, or neither; or a number is out of range.
    """

    name: str
    precision: Precision
    variant: Variant
    batch: int
    batches: int
    measures: Measures
    includes: str
    graphs: bool | None = None
    beside: str = ""
    n: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    images_per_second: float | None = None
    p99_is_near_max: bool | None = None
    error: str = ""

    def __post_init__(self) -> None:
        if (self.p50_ms is None) != bool(self.error):
            raise ValueError("a timed row has either times or an error")
        if not all(1 <= size <= LARGEST for size in (self.batch, self.batches)):
            raise ValueError(f"a timed row of {self.batches} times {self.batch} images")
        numbers = (self.n, self.p50_ms, self.p90_ms, self.p99_ms, self.mean_ms, self.images_per_second)
        if wrong := [number for number in numbers if number is not None and not 0 <= number <= LARGEST]:
            raise ValueError(f"a timed row with the number {wrong[0]:g}")


@dataclass(frozen=True)
class CheckRow:
    """Result of a check in `benchmarks.gpu.checks` for one engine; "error" if the check itself failed to run."""

    check: str
    engine: str
    result: Literal["pass", "fail", "skipped", "error"]
    detail: str


@dataclass(frozen=True)
class Target:
    """A performance target of the project.

    Attributes:
        target: What is measured, on which hardware and in which unit.
        limit: Value to reach or not to exceed.
        measured: Measured value; None where there is none.
        met: Whether the target is met; None where that is open.
        why: Why it is open.

    Raises:
        ValueError: The target is judged without a measured value.
    """

    target: str
    limit: float
    measured: float | None
    met: bool | None
    why: str = ""

    def __post_init__(self) -> None:
        if self.met is not None and self.measured is None:
            raise ValueError(f"the target {self.target[:80]!r} is judged, and nothing was measured")


@dataclass(frozen=True)
class GpuEvidence:
    """The results of one visit.

    Attributes:
        date: When it began, UTC, to the minute.
        commit: Git commit of this code; None where it is unknown.
        state: How it ended; "running" in the file of a visit that was killed.
        gpu: GPU of the visit.
        flavour: "tensorrt" or "rtx".
        tensorrt_version: Version of the library.
        machine: Machine with the GPU; empty until it was described.
        model: Model that the engines were built from.
        asked: Options of the command.
        steps: Steps in the planned order.
        engines: Engines by name, ``<precision>-<variant>``.
        parity: Comparison with Keras, whose candidates are names of engines; None before there is one.
        timings: All timed rows.
        checks: All checks.
        forms: Engines of other forms of the INT8 file by name, ``<form>-<variant>``.
        contests: Their times against those of the INT8 engines as shipped.
        targets: Targets, judged where that was possible.
        snapshots: Clocks, power and temperature right after each step.
        schema: Version of this file format.

    Raises:
        ValueError: Two steps have the same name, or a kind has more than `MOST` entries.
    """

    date: str
    commit: str | None
    state: Literal["running", "finished", "interrupted", "cut short"]
    gpu: Gpu
    flavour: str
    tensorrt_version: str
    machine: Machine
    model: Model
    asked: Mapping[str, Any]
    steps: tuple[Step, ...] = ()
    engines: Mapping[str, EngineEvidence] = field(default_factory=dict)
    parity: Parity | None = None
    timings: tuple[TimedRow, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    forms: Mapping[str, EngineEvidence] = field(default_factory=dict)
    contests: tuple[FormContest, ...] = ()
    targets: tuple[Target, ...] = ()
    snapshots: Mapping[str, tuple[GpuSnapshot, ...]] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if len({step.name for step in self.steps}) != len(self.steps):
            raise ValueError("two steps of one name")
        names = ("steps", "engines", "timings", "checks", "forms", "contests", "targets", "snapshots")
        kinds = {name: getattr(self, name) for name in names}
        for kind, entries in {**kinds, "comparisons": self.parity.hops if self.parity else ()}.items():
            if len(entries) > MOST:
                raise ValueError(f"{len(entries):,} {kind}, where a visit has at most {MOST}")

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each failed step, check or comparison, and each row without numbers."""
        hops = self.parity.hops if self.parity else ()
        refused: dict[str, list[str]] = {}
        for name, engine in (*self.engines.items(), *self.forms.items()):
            if engine.refused:
                refused.setdefault(engine.refused, []).append(name)
        return (
            *(f"{step.name}: {step.why}" for step in self.steps if step.state == "error"),
            *(f"{listed(names)} {'is' if len(names) == 1 else 'are'} not loaded here: {why}"
              for why, names in refused.items()),
            *(f"{hop.candidate} against Keras: {hop.why}" for hop in hops if hop.verdict == "fail"),
            *(f"{check.engine}, {check.check.replace('_', ' ')}: {check.detail}" for check in self.checks
              if check.result in ("fail", "error")),
            *(f"{row.name}, {row.precision}, batch {row.batch}, {row.measures}: {row.error}" for row in self.timings
              if row.error),
            *(f"{row.form} against int8 as shipped, batch {row.batch}, {row.measures}: {row.error}"
              for row in self.contests if row.error),
        )  # fmt: skip


def read_gpu_evidence(path: Path) -> GpuEvidence:
    """Read the record of a visit.

    Raises:
        ProjectError: It is missing, damaged, of another schema, or contradicts itself; with the file and the key.
    """
    return read_record(GpuEvidence, path, remedy=REMEDY, what="evidence from a GPU")


NAMES = "An engine is called by its type and what it is for: throughput by large batches, or the latency of one image."
STATES: Mapping[str, str] = {
    "running": "The visit is under way, or was ended from outside: this is what was known by then.",
    "interrupted": "The visit was interrupted from the keyboard: this is what was known by then.",
    "cut short": "A step did not end and the visit was cut short: this is what was known by then.",
    "finished": "",
}
PEERS: Mapping[str, str] = {
    "PyTorch eager": "PyTorch eager: channels last, one kernel launched after another.",
    "PyTorch graphs": "PyTorch graphs: channels last, launched by a CUDA graph.",
    "PyTorch compile": "PyTorch compile: channels last, by torch.compile.",
}
_TELEMETRY = (  # field of a snapshot, its name and unit
    ("sm_clock_mhz", "GPU clock", "MHz"),
    ("memory_clock_mhz", "memory clock", "MHz"),
    ("power_w", "power", "W"),
    ("temperature_c", "temperature", "°C"),
)
CHECKS: Mapping[str, str] = {"pass": "passed", "fail": "failed", "error": "could not be made", "skipped": "skipped"}


def library(evidence: GpuEvidence) -> str:
    """Return the library's name and version."""
    return f"{'TensorRT-RTX' if evidence.flavour == 'rtx' else 'TensorRT'} {evidence.tensorrt_version}"


def count_results(results: Iterable[object], names: Mapping[Any, str]) -> str:
    """Return the number of each result, such as "3 passed, 1 failed"; results that do not occur are left out."""
    counts = Counter(results)
    return ", ".join(f"{counts[key]} {name}" for key, name in names.items() if counts[key])


def short_commit(evidence: GpuEvidence) -> str:
    """Return the first 10 characters of the commit, or "unknown"."""
    return evidence.commit[:10] if evidence.commit else "unknown"


def telemetry_ranges(evidence: GpuEvidence) -> str:
    """Return the ranges of the first GPU's clocks, power and temperature after the steps; "" without snapshots."""
    snapshots = [gpus[0] for gpus in evidence.snapshots.values() if gpus]
    ranges = []
    for key, name, unit in _TELEMETRY:
        values = [getattr(snapshot, key) for snapshot in snapshots]
        if values := [value for value in values if value is not None and math.isfinite(value)]:
            low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
            ranges.append(f"{name} {low if low == high else f'{low} to {high}'} {unit}")
    return ", ".join(ranges)


def unfinished_steps(evidence: GpuEvidence) -> dict[str, list[str]]:
    """Return the names of the steps that did not run to the end, by reason."""
    ended = evidence.state != "running"
    reasons: dict[StepState, str] = {
        "running": "the visit ended in it" if ended else "it is under way, or the visit was ended in it",
        "pending": "the visit ended before" if ended else "its turn has not come, or the visit was ended before",
    }
    names: dict[str, list[str]] = {}
    for step in evidence.steps:
        if step.state in ("skipped", "running", "pending"):
            names.setdefault(reasons.get(step.state, step.why or "no reason is known"), []).append(step.name)
    return names
