"""What a visit to a GPU is to do: its steps in the order of their worth, and their expected seconds.

Python 3.10 syntax, numpy alone; no library and no driver is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from benchmarks.gpu_checks import CHECKS, QUICK, Check
from benchmarks.gpu_options import MAIN, Options
from benchmarks.gpu_steps import Planned
from benchmarks.gpu_timings import WARM_UP
from export.sidecar import Precision
from pipeline.gpu_evidence import Measures, Variant
from pipeline.layout import ONNX, TENSORRT8, engine_source

MEASURES: dict[Variant, tuple[Measures, ...]] = {
    "throughput": ("compute", "infer", "stream", "stream pinned"),
    "latency": ("infer", "compute"),
}
# Guesses for a ResNet-50, in seconds; they are corrected by what is measured. TensorRT times kernels on the GPU while
# it builds, the more of them the higher the level; TensorRT-RTX compiles when an engine is opened.
BUILD_BY_LEVEL = (10.0, 20.0, 40.0, 90.0, 150.0, 300.0)
DEFAULT_LEVEL = 3
BUILD_RTX, OPEN, CHECK, PARITY = 10.0, 2.0, 5.0, 5.0
# Smaller and larger models build in proportion to their ONNX files, within limits: the layers count too.
RESNET50_BYTES: dict[Precision, float] = {"fp32": 102e6, "fp16": 51e6, "int8": 51e6}
LEAST, MOST = 0.1, 4.0
PEERS = {"eager": 10.0, "graphs": 15.0, "compile": 120.0}


class Work(Protocol):
    """What the steps of a visit do, and what is known when their turn comes."""

    def usable(self, names: Sequence[str]) -> Sequence[str]:
        """Those of some engines that are there and run here."""

    def why_no_peer(self, model: Path) -> str:
        """Why PyTorch cannot be timed; "" where it can be tried."""

    def look(self) -> None:
        """Describe the machine."""

    def build(self, precision: Precision, variant: Variant) -> None:
        """Build an engine."""

    def compare(self, precision: Precision, variant: Variant) -> None:
        """Compare its answers with Keras'."""

    def time(self, variant: Variant, precisions: Sequence[str], measures: Measures) -> None:
        """Time engines in turns."""

    def check(self, check: Check, engine: str) -> None:
        """Look for what only a GPU shows."""

    def cycle(self) -> None:
        """Open and close the smallest engine again and again."""

    def peer(self, mode: str, model: Path, variant: Variant, batch: int) -> None:
        """Time PyTorch beside the FP16 engine."""


@dataclass(frozen=True)
class Plan:
    """Which steps a visit has.

    Attributes:
        options: what was asked for.
        flavour: of TensorRT.
        strongly_typed: whether it is; what is not is TensorRT 8.6.
    """

    options: Options
    flavour: str
    strongly_typed: bool

    def steps(self, work: Work) -> list[Planned]:
        """All steps, in the order of their worth; ``work`` does them."""
        options = self.options
        steps = [Planned("machine", "machine", 1.0, work.look)]
        for precisions in (MAIN, tuple(one for one in options.precisions if one not in MAIN)):
            for variant in options.variants:
                steps += self._group(work, variant, [one for one in precisions if one in options.precisions])
        return [*steps, *self._checks(work), *self._peers(work)]

    def _group(self, work: Work, variant: Variant, precisions: Sequence[Precision]) -> list[Planned]:
        """Build engines of a variant, compare them with Keras, and time them in turns."""
        there = [one for one in precisions if self.source(one).is_file()]
        times = [step for measures in MEASURES[variant] for step in self._times(work, variant, there, measures)]
        builds, parities = [], []
        for precision in precisions:
            name = f"{precision}-{variant}"
            builds.append(
                Planned(
                    *(f"build {name}", "build", self._build_seconds(precision)),
                    *(partial(work.build, precision, variant), partial(str, self._why_absent(precision))),
                    leads_to=tuple(step.name for step in times[:1]),
                )
            )
            if precision in there:
                compare = partial(work.compare, precision, variant)
                parities.append(Planned(f"parity {name}", "parity", PARITY, compare, partial(_why_not, work, [name])))
        return [*builds, *parities, *times]

    def _times(
        self, work: Work, variant: Variant, precisions: Sequence[Precision], measures: Measures
    ) -> Iterator[Planned]:
        """One step, in which the engines take turns; of page-locked memory one for each engine."""
        for group in [[one] for one in precisions] if measures == "stream pinned" else [precisions]:
            rows = len(group) * (2 if measures == "infer" else 1)
            names = [f"{one}-{variant}" for one in group]
            if names:
                yield Planned(
                    f"time {variant} {measures} {'+'.join(group)}",
                    f"time {measures}",
                    rows * (OPEN + WARM_UP + self.options.seconds),  # calls that measure themselves take about as long
                    partial(work.time, variant, group, measures),
                    partial(_why_not, work, names),
                )

    def _checks(self, work: Work) -> list[Planned]:
        options = self.options
        engines = [
            f"{precision}-{variant}"
            for precision in (*MAIN, "fp32")
            for variant in options.variants
            if precision in options.precisions and self.source(precision).is_file()
        ]
        if options.checks == "none" or not engines:
            return []
        steps = []
        for check in QUICK if options.checks == "quick" else CHECKS:
            name = check.__name__.replace("_", " ")
            steps += [
                Planned(f"check {one}: {name}", f"check {name}", CHECK, partial(work.check, check, one),
                        partial(_why_not, work, [one]))
                for one in engines
            ]  # fmt: skip
        why_not = partial(_why_not, work, engines)
        return [*steps, Planned("leak cycles", "cycles", options.cycle_seconds, work.cycle, why_not)]

    def _peers(self, work: Work) -> list[Planned]:
        options = self.options
        model = options.artifacts / ONNX["fp32"]
        return [
            Planned(
                *(f"PyTorch {mode}, batch {batch}", f"PyTorch {mode}", PEERS[mode] + 4 * options.seconds),
                *(partial(work.peer, mode, model, variant, batch), partial(work.why_no_peer, model)),
            )
            for mode in options.peers
            for variant, batch in ((one, self.batch(one)) for one in options.variants)
        ]

    def batch(self, variant: Variant) -> int:
        """The largest batch of a variant's engines."""
        return self.options.batch if variant == "throughput" else 1

    def source(self, precision: str) -> Path:
        """The ONNX file that an engine is built from; it need not be there."""
        return self.options.artifacts / engine_source(precision, self.strongly_typed)

    def _why_absent(self, precision: str) -> str:
        """Why an engine has nothing to be built from; "" where it has."""
        name = engine_source(precision, self.strongly_typed)
        if self.source(precision).is_file():
            return ""
        made = "; the recipe makes it with quantize.tensorrt8: true" if name in TENSORRT8.values() else ""
        return f"{name} is not in the folder{made}"

    def _build_seconds(self, precision: Precision) -> float:
        level = DEFAULT_LEVEL if self.options.level is None else self.options.level
        seconds = BUILD_RTX if self.flavour == "rtx" else BUILD_BY_LEVEL[level]
        source = self.source(precision)
        share = source.stat().st_size / RESNET50_BYTES[precision] if source.is_file() else 1.0
        return seconds * min(max(share, LEAST), MOST)


def _why_not(work: Work, names: Sequence[str]) -> str:
    """Why none of these engines can be used; "" where one can."""
    return "" if work.usable(names) else f"there is no engine {' or '.join(names)} that runs here"
