"""What a visit to a GPU showed, as a file: engines, parity, timings, checks, targets, and which steps were made.

The file is written after every step, so that whatever ends a visit leaves a whole record of what was known by then.
Standard library only, Python 3.10 syntax.

What the report and the Markdown page say alike of a visit to a GPU. Python 3.10 syntax, standard library alone.
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
from pipeline.artifacts.parity_report import Hop, Overall, overall_verdict
from pipeline.recipe.schema import Thresholds

SCHEMA = 2
MOST = 500  # of each kind in a record; a visit with everything has a hundred steps
LARGEST = 1e12  # of the numbers of a timed row; none comes near it
FOLDER = "evidence"  # below a recipe's artifacts
ENGINE, WITHOUT_GRAPHS = "engine", "engine without graphs"  # names of timed rows; PyTorch's are "PyTorch <mode>"

StepState = Literal["pending", "running", "done", "skipped", "error"]
Variant = Literal["throughput", "latency"]
Measures = Literal["compute", "infer", "stream", "stream pinned"]
REMEDY = "Run python -m benchmarks.gpu_evidence on the GPU machine again."


@dataclass(frozen=True)
class Step:
    """One step of a visit.

    Attributes:
        name: such as "build fp16-throughput".
        state: "running" in a file whose visit has ended: it ended in this step.
        seconds: it took; None before it ended.
        expected_seconds: what it was expected to take when its turn came; None before.
        why: it was skipped, or failed, in the library's own words.
    """

    name: str
    state: StepState = "pending"
    seconds: float | None = None
    expected_seconds: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Gpu:
    """The GPU that everything ran on, and its driver."""

    name: str
    compute_capability: str
    driver_version: str | None
    cuda_version: str | None


@dataclass(frozen=True)
class Model:
    """The model that the engines are of.

    Attributes:
        name: of the recipe, as its folder is named.
        keras_sha256: of the Keras model whose answers the engines are held against.
        size: height and width of its images.
        classes: how many it tells apart.
        test_images: how many answers of Keras there are.
        as_verified: whether those are the very file that the verify stage wrote.
        altered: files that are not as the bundle that brought them recorded.
        own_thresholds: whether the verdict of its verify stage was there, whose thresholds judge; else the defaults do.
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
        variant: "throughput" (up to the largest batch) or "latency" (a batch of 1).
        profile: its batch sizes.
        flavour: "tensorrt" or "rtx".
        tensorrt_version: of the library that built it.
        onnx_sha256: of the file that it was built from.
        plan_sha256: of the plan.
        plan_bytes: size of the plan.
        seconds: the build took.
        options: how it was built, see `export.tensorrt.options.described`.
        network_layers: kind to number, as parsed.
        asked_convolutions: type to number, as asked for.
        convolutions: type to number, as the engine has them; None where the library did not tell.
        warnings: where the engine differs from what was asked for.
        refused: why this project does not load it on this GPU; "" where it does.
        library: what the library itself says of an engine that is refused.
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


@dataclass(frozen=True)
class Parity:
    """The engines' answers against Keras'; a hop's candidate is the name of an engine.

    Raises:
        ValueError: the verdict is not that of the hops.
    """

    verdict: Overall
    thresholds: Mapping[str, Thresholds]
    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        if (expected := overall_verdict(self.hops)) != self.verdict:
            raise ValueError(f"the verdict {self.verdict!r} over hops whose verdict is {expected!r}")


@dataclass(frozen=True)
class TimedRow:
    """One thing that was timed at one batch size.

    Attributes:
        name: "engine", "engine without graphs", or "PyTorch <mode>".
        precision: what it computes in.
        variant: of the engine; that of the engine beside it for PyTorch.
        batch: images a batch.
        batches: that one call holds.
        measures: "compute" (no copies), "infer" (host to host), "stream" (many batches a call, overlapped), "stream
            pinned" (the same from page-locked memory).
        includes: what of the way from pixels to answers the time holds, in words.
        graphs: whether a CUDA graph launched it; None where that is no question, as of streams.
        beside: in turns with what it was timed, where that is PyTorch; "" else: with the other engines.
        n: calls that were timed.
        p50_ms: median of a call, in milliseconds; None with an error, as all that follow.
        p90_ms: of ten calls nine took at most as long.
        p99_ms: of a hundred 99 did.
        mean_ms: over the calls.
        images_per_second: of the median call.
        p99_is_near_max: the calls were fewer than a hundred.
        error: why there are no times; "" where there are.

    Raises:
        ValueError: times and an error, or neither; or numbers that no clock and no counter gives.
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
        numbers = (self.n, self.p50_ms, self.p90_ms, self.p99_ms, self.mean_ms, self.images_per_second)
        if not all(1 <= one <= LARGEST for one in (self.batch, self.batches)):
            raise ValueError(f"a timed row of {self.batches} times {self.batch} images")
        if wrong := [one for one in numbers if one is not None and not 0 <= one <= LARGEST]:
            raise ValueError(f"a timed row with the number {wrong[0]:g}")


@dataclass(frozen=True)
class CheckRow:
    """What a check of `benchmarks.gpu.checks` saw of an engine; "error": the check itself could not be made."""

    check: str
    engine: str
    result: Literal["pass", "fail", "skipped", "error"]
    detail: str


@dataclass(frozen=True)
class Target:
    """A number that the project wants to reach.

    Attributes:
        target: what is measured, where and in which unit.
        limit: to reach, or not to exceed.
        measured: None where it was not.
        met: None where it is open.
        why: it is open.

    Raises:
        ValueError: judged without a number.
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
    """All that one visit showed.

    Attributes:
        date: when it began, UTC, to the minute.
        commit: of this code; None where nobody knows.
        state: how it ended; "running" in a file that nobody writes any more: it was killed.
        gpu: what it ran on.
        flavour: "tensorrt" or "rtx".
        tensorrt_version: of the library.
        machine: that the GPU is in; with nothing in it before it was described.
        model: what the engines are of.
        asked: the options of the command.
        steps: in the order in which they were planned.
        engines: by name, ``<precision>-<variant>``.
        parity: None before there is a comparison.
        timings: every row.
        checks: every check.
        targets: as far as they could be judged.
        snapshots: step to clocks, power and temperature right after it.
        schema: of this file.

    Raises:
        ValueError: two steps of one name, or more of a kind than a visit can have.
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
    targets: tuple[Target, ...] = ()
    snapshots: Mapping[str, tuple[GpuSnapshot, ...]] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError("two steps of one name")
        kinds = {name: len(getattr(self, name)) for name in ("steps", "engines", "timings", "checks", "targets")}
        kinds |= {"snapshots": len(self.snapshots), "comparisons": len(self.parity.hops) if self.parity else 0}
        for kind, number in kinds.items():
            if number > MOST:
                raise ValueError(f"{number:,} {kind}, where a visit has at most {MOST}")

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, a sentence each: failed steps, checks and comparisons, and rows without their numbers."""
        hops = self.parity.hops if self.parity else ()
        refused: dict[str, list[str]] = {}
        for name, one in self.engines.items():
            if one.refused:
                refused.setdefault(one.refused, []).append(name)
        return (
            *(f"{one.name}: {one.why}" for one in self.steps if one.state == "error"),
            *(f"{listed(names)} {'is' if len(names) == 1 else 'are'} not loaded here: {why}"
              for why, names in refused.items()),
            *(f"{one.candidate} against Keras: {one.why}" for one in hops if one.verdict == "fail"),
            *(f"{one.engine}, {one.check.replace('_', ' ')}: {one.detail}" for one in self.checks
              if one.result in ("fail", "error")),
            *(f"{one.name}, {one.precision}, batch {one.batch}, {one.measures}: {one.error}" for one in self.timings
              if one.error),
        )  # fmt: skip


def read_gpu_evidence(path: Path) -> GpuEvidence:
    """Read what a visit showed.

    Raises:
        ProjectError: missing, damaged, of another schema, or at odds with itself; with the file and the key.
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
_READ = (
    ("sm_clock_mhz", "GPU clock", "MHz"),
    ("memory_clock_mhz", "memory clock", "MHz"),
    ("power_w", "power", "W"),
    ("temperature_c", "temperature", "°C"),
)
CHECKS: Mapping[str, str] = {"pass": "passed", "fail": "failed", "error": "could not be made", "skipped": "skipped"}
_SHORT = 10  # characters of a commit, as Git shortens it


def library(evidence: GpuEvidence) -> str:
    """The library's name and version."""
    return f"{'TensorRT-RTX' if evidence.flavour == 'rtx' else 'TensorRT'} {evidence.tensorrt_version}"


def counted(results: Iterable[object], names: Mapping[Any, str]) -> str:
    """How many there are of each result, in words; of what there is none is left out."""
    counts = Counter(results)
    return ", ".join(f"{counts[key]} {words}" for key, words in names.items() if counts[key])


def short_commit(evidence: GpuEvidence) -> str:
    """The commit, as people write it; the file has all of it."""
    return evidence.commit[:_SHORT] if evidence.commit else "unknown"


def clocks(evidence: GpuEvidence) -> str:
    """The range of what was read of the first GPU after the steps; "" where nothing was."""
    read = [gpus[0] for gpus in evidence.snapshots.values() if gpus]
    said = []
    for key, name, unit in _READ:
        told = [getattr(one, key) for one in read]
        values = [value for value in told if value is not None and math.isfinite(value)]
        if values:
            low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
            said.append(f"{name} {low if low == high else f'{low} to {high}'} {unit}")
    return ", ".join(said)


def not_made(evidence: GpuEvidence) -> dict[str, list[str]]:
    """Names of the steps that were not made, or not to the end, by the reason."""
    ended = evidence.state != "running"
    reasons: dict[StepState, str] = {
        "running": "the visit ended in it" if ended else "it is under way, or the visit was ended in it",
        "pending": "the visit ended before" if ended else "its turn has not come, or the visit was ended before",
    }
    named: dict[str, list[str]] = {}
    for step in evidence.steps:
        if step.state in ("skipped", "running", "pending"):
            named.setdefault(reasons.get(step.state, step.why or "no reason is known"), []).append(step.name)
    return named
