"""Plan the steps of a visit to a GPU in the order of their importance.

The module needs Python 3.10 and numpy alone; it uses no library and no driver.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from benchmarks.gpu.checks import CHECKS, QUICK, Check
from benchmarks.gpu.forms import FORM_NAMES
from benchmarks.gpu.options import MAIN, Options
from benchmarks.gpu.steps import PlannedStep
from benchmarks.gpu.timings import WARM_UP
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.gpu_evidence import Form, Measures, Variant
from pipeline.artifacts.paths import FORMS, ONNX, TENSORRT8

MEASURES: dict[Variant, tuple[Measures, ...]] = {
    "throughput": ("compute", "infer", "stream", "stream pinned"),
    "latency": ("infer", "compute"),
}
FORM_MEASURES: dict[Variant, tuple[Measures, ...]] = {"throughput": ("compute",), "latency": ("compute", "infer")}
# Estimates for a ResNet-50, in seconds; they are corrected by measured times. TensorRT times kernels on the GPU while
# it builds, more of them at higher levels; TensorRT-RTX compiles when an engine is opened.
BUILD_BY_LEVEL = (10.0, 20.0, 40.0, 90.0, 150.0, 300.0)
DEFAULT_LEVEL = 3
BUILD_RTX, OPEN, CHECK, PARITY = 10.0, 2.0, 5.0, 5.0
# Build times are proportional to the size of the ONNX file, within limits, as the number of layers matters too.
RESNET50_BYTES: dict[Precision, float] = {"fp32": 102e6, "fp16": 51e6, "int8": 51e6}
LEAST, MOST = 0.1, 4.0
PEERS = {"eager": 10.0, "graphs": 15.0, "compile": 120.0}


class Work(Protocol):
    """The actions of the steps of a visit, and the conditions that are known only when a step is reached."""

    def usable(self, names: Sequence[str]) -> Sequence[str]:
        """Return the engines that exist and run on this machine."""

    def why_no_peer(self, model: Path) -> str:
        """Return why PyTorch cannot be timed; "" where it can be tried."""

    def look(self) -> None:
        """Describe the machine."""

    def build(self, precision: Precision, variant: Variant) -> None:
        """Build an engine."""

    def compare(self, precision: Precision, variant: Variant) -> None:
        """Compare its outputs with Keras'."""

    def time(self, variant: Variant, precisions: Sequence[Precision], measures: Measures) -> None:
        """Time engines in turns."""

    def check(self, check: Check, engine: str) -> None:
        """Run a check that needs a GPU."""

    def build_form(self, form: Form, variant: Variant) -> None:
        """Build the engine of another form of the INT8 file."""

    def contest(self, form: Form, variant: Variant, measures: Measures) -> None:
        """Time it in turns with the INT8 engine as shipped."""

    def cycle(self) -> None:
        """Open and close the smallest engine repeatedly, to find leaks."""

    def peer(self, mode: str, model: Path, variant: Variant, batch: int) -> None:
        """Time PyTorch beside the FP16 engine."""


@dataclass(frozen=True)
class Plan:
    """The steps of a visit.

    Attributes:
        options: of the command.
        flavour: of TensorRT.
        strongly_typed: whether it has strongly typed networks; TensorRT 8.6 has none.
    """

    options: Options
    flavour: str
    strongly_typed: bool

    def steps(self, work: Work) -> list[PlannedStep]:
        """Return all steps, the most important first; ``work`` has their actions."""
        selected = self.options.precisions
        main, others = [name for name in MAIN if name in selected], [name for name in selected if name not in MAIN]
        return [
            PlannedStep("machine", "machine", 1.0, work.look),
            *(step for variant in self.options.variants for step in self._group(work, variant, main)),
            *(step for variant in self.options.variants for step in self._forms(work, variant)),
            *(step for variant in self.options.variants for step in self._group(work, variant, others)),
            *self._checks(work),
            *self._peers(work),
        ]

    def _group(self, work: Work, variant: Variant, precisions: Sequence[Precision]) -> list[PlannedStep]:
        """Build engines of a variant, compare them with Keras, and time them in turns."""
        available = [precision for precision in precisions if self.source(precision).is_file()]
        times = [step for measures in MEASURES[variant] for step in self._times(work, variant, available, measures)]
        builds = [
            PlannedStep(
                *(f"build {precision}-{variant}", "build", self._build_seconds(precision)),
                *(partial(work.build, precision, variant), partial(str, self._why_absent(precision))),
                leads_to=tuple(step.name for step in times[:1]),
            )
            for precision in precisions
        ]
        parities = [
            PlannedStep(
                *(f"parity {precision}-{variant}", "parity", PARITY),
                *(partial(work.compare, precision, variant), partial(_why_not, work, [f"{precision}-{variant}"])),
            )
            for precision in available
        ]
        return [*builds, *parities, *times]

    def _times(
        self, work: Work, variant: Variant, precisions: Sequence[Precision], measures: Measures
    ) -> Iterator[PlannedStep]:
        """Yield one step, in which the engines take turns; with page-locked memory, a step for each engine."""
        for group in [[precision] for precision in precisions] if measures == "stream pinned" else [precisions]:
            rows = len(group) * (2 if measures == "infer" else 1)
            if group:
                yield PlannedStep(
                    f"time {variant} {measures} {'+'.join(group)}",
                    f"time {measures}",
                    rows * (OPEN + WARM_UP + self.options.seconds),  # calls that measure themselves take about as long
                    partial(work.time, variant, group, measures),
                    partial(_why_not, work, [f"{precision}-{variant}" for precision in group]),
                )

    def _forms(self, work: Work, variant: Variant) -> Iterator[PlannedStep]:
        """Build other forms of the INT8 file, where there are any, and time each in turns with the file as shipped."""
        for form in self.forms:
            name, shipped = f"{form}-{variant}", f"int8-{variant}"
            times = [
                PlannedStep(
                    *(f"time {variant} {measures} {form}", f"time {measures}"),
                    2 * (OPEN + WARM_UP + self.options.seconds),
                    partial(work.contest, form, variant, measures),
                    partial(_why_not_all, work, (shipped, name)),
                )
                for measures in FORM_MEASURES[variant]
            ]
            yield PlannedStep(
                *(f"build {name}", "build", self._build_seconds("int8")),
                *(partial(work.build_form, form, variant), partial(_why_not_all, work, (shipped,))),
                leads_to=(times[0].name,),
            )
            yield from times

    def _checks(self, work: Work) -> list[PlannedStep]:
        options = self.options
        engines = [
            f"{precision}-{variant}"
            for precision in (*MAIN, "fp32")
            for variant in options.variants
            if precision in options.precisions and self.source(precision).is_file()
        ]
        if options.checks == "none" or not engines:
            return []
        checks = {check.__name__.replace("_", " "): check for check in (QUICK if options.checks == "quick" else CHECKS)}
        steps = [
            PlannedStep(
                *(f"check {engine}: {name}", f"check {name}", CHECK),
                *(partial(work.check, check, engine), partial(_why_not, work, [engine])),
            )
            for name, check in checks.items()
            for engine in engines
        ]
        return [
            *steps,
            PlannedStep("leak cycles", "cycles", options.cycle_seconds, work.cycle, partial(_why_not, work, engines)),
        ]

    def _peers(self, work: Work) -> list[PlannedStep]:
        options = self.options
        model = options.artifacts / ONNX["fp32"]
        return [
            PlannedStep(
                *(f"PyTorch {mode}, batch {batch}", f"PyTorch {mode}", PEERS[mode] + 4 * options.seconds),
                *(partial(work.peer, mode, model, variant, batch), partial(work.why_no_peer, model)),
            )
            for mode in options.peers
            for variant, batch in ((variant, self.batch(variant)) for variant in options.variants)
        ]

    def batch(self, variant: Variant) -> int:
        """Return the largest batch of a variant's engines."""
        return self.options.batch if variant == "throughput" else 1

    def source(self, precision: str) -> Path:
        """Return the path of the ONNX file that an engine is built from; it need not exist."""
        return self.options.artifacts / engine_source(precision, self.strongly_typed)

    @property
    def forms(self) -> dict[Form, Path]:
        """The other forms of the INT8 file that the folder has, for this TensorRT; with their files."""
        names = {form: FORMS.get(form if self.strongly_typed else f"{form}-trt8") for form in FORM_NAMES}
        paths = {form: self.options.artifacts / name for form, name in names.items() if name is not None}
        return {form: path for form, path in paths.items() if "int8" in self.options.precisions and path.is_file()}

    def _why_absent(self, precision: str) -> str:
        """Return why there is no source to build an engine from; "" where there is."""
        if self.source(precision).is_file():
            return ""
        name = engine_source(precision, self.strongly_typed)
        setting = "; the recipe makes it with quantize.tensorrt8: true" if name in TENSORRT8.values() else ""
        return f"{name} is not in the folder{setting}"

    def _build_seconds(self, precision: Precision) -> float:
        level = DEFAULT_LEVEL if self.options.level is None else self.options.level
        seconds = BUILD_RTX if self.flavour == "rtx" else BUILD_BY_LEVEL[level]
        source = self.source(precision)
        share = source.stat().st_size / RESNET50_BYTES[precision] if source.is_file() else 1.0
        return seconds * min(max(share, LEAST), MOST)


def _why_not(work: Work, names: Sequence[str]) -> str:
    """Return why none of these engines can be used; "" where one can."""
    return "" if work.usable(names) else f"there is no engine {' or '.join(names)} that runs here"


def _why_not_all(work: Work, names: Sequence[str]) -> str:
    """Return why one of these engines cannot be used; "" where all can."""
    usable = work.usable(names)
    return next((f"there is no engine {name} that runs here" for name in names if name not in usable), "")
