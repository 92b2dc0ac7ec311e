"""What a visit to a GPU is to do: its steps in the order of their worth, and their expected seconds.

Python 3.10 syntax, numpy alone; no library and no driver is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu_checks import CHECKS, QUICK, Check
from benchmarks.gpu_options import MAIN, Options
from benchmarks.gpu_steps import Planned, with_reason
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


class Plan:
    """The steps of a visit. What they do is said by the class that makes them.

    Args:
        options: what was asked for.
        flavour: of TensorRT.
        strongly_typed: whether it is; what is not is TensorRT 8.6.
    """

    def __init__(self, options: Options, flavour: str, strongly_typed: bool) -> None:
        self.options, self.flavour, self.strongly_typed = options, flavour, strongly_typed

    def steps(self) -> list[Planned]:
        """All steps, in the order of their worth."""
        options = self.options
        steps = [Planned("machine", "machine", 1.0, self._machine)]
        groups: list[tuple[Variant, tuple[Precision, ...]]] = [
            *((variant, tuple(one for one in MAIN if one in options.precisions)) for variant in options.variants),
            *((variant, tuple(one for one in options.precisions if one not in MAIN)) for variant in options.variants),
        ]
        for variant, precisions in groups:
            steps += self._group(variant, precisions)
        return [*steps, *self._checks(), *self._peers()]

    def _group(self, variant: Variant, precisions: tuple[Precision, ...]) -> list[Planned]:
        """Build engines of a variant, compare them with Keras, and time them in turns."""
        there = tuple(one for one in precisions if self._source(one).is_file())
        absent = [one for one in precisions if one not in there]
        times = [step for measures in MEASURES[variant] for step in self._times(variant, there, measures)]
        builds, parities = [], []
        for precision in precisions:
            name = f"{precision}-{variant}"
            build = Planned(
                *(f"build {name}", "build", self._build_seconds(precision), partial(self._build, precision, variant)),
                leads_to=tuple(step.name for step in times[:1]),
            )
            if precision in absent:
                builds.append(with_reason(build, self._why_absent(precision)))
                continue
            builds.append(build)
            compare = partial(self._compare, precision, variant)
            parities.append(Planned(f"parity {name}", "parity", PARITY, compare, partial(self._why_not, [name])))
        return [*builds, *parities, *times]

    def _times(self, variant: Variant, precisions: tuple[Precision, ...], measures: Measures) -> list[Planned]:
        """One step, in which the engines take turns; of page-locked memory one for each engine."""
        alone = measures == "stream pinned"
        steps = []
        for group in [(one,) for one in precisions] if alone else [precisions] if precisions else []:
            rows = len(group) * (2 if measures == "infer" else 1)
            work = partial(self._time, variant, group, measures)
            names = [f"{one}-{variant}" for one in group]
            # Calls that measure themselves are a fixed number, about as long.
            seconds = rows * (OPEN + WARM_UP + self.options.seconds)
            name = f"time {variant} {measures} {'+'.join(group)}"
            steps.append(Planned(name, f"time {measures}", seconds, work, partial(self._why_not, names)))
        return steps

    def _checks(self) -> list[Planned]:
        options = self.options
        if options.checks == "none":
            return []
        engines = [
            f"{precision}-{variant}"
            for precision in (*MAIN, "fp32")
            for variant in options.variants
            if precision in options.precisions and self._source(precision).is_file()
        ]
        steps = []
        for check in QUICK if options.checks == "quick" else CHECKS:
            name = check.__name__.replace("_", " ")
            steps += [
                Planned(f"check {one}: {name}", f"check {name}", CHECK, partial(self._check, check, one),
                        partial(self._why_not, [one]))
                for one in engines
            ]  # fmt: skip
        cycles = Planned("leak cycles", "cycles", options.cycle_seconds, self._cycle, partial(self._why_not, engines))
        return [*steps, cycles] if engines else steps

    def _peers(self) -> list[Planned]:
        options = self.options
        model = options.artifacts / ONNX["fp32"]
        return [
            Planned(
                *(f"PyTorch {mode}, batch {batch}", f"PyTorch {mode}", PEERS[mode] + 4 * options.seconds),
                *(partial(self._peer, mode, model, variant, batch), partial(self._why_no_peer, model)),
            )
            for mode in options.peers
            for variant, batch in ((one, self._batch(one)) for one in options.variants)
        ]

    def _batch(self, variant: Variant) -> int:
        return self.options.batch if variant == "throughput" else 1

    def _source_name(self, precision: str) -> str:
        return engine_source(precision, self.strongly_typed)

    def _source(self, precision: str) -> Path:
        return self.options.artifacts / self._source_name(precision)

    def _why_absent(self, precision: str) -> str:
        name = self._source_name(precision)
        made = "; the recipe makes it with quantize.tensorrt8: true" if name in TENSORRT8.values() else ""
        return f"{name} is not in the folder{made}"

    def _build_seconds(self, precision: Precision) -> float:
        level = DEFAULT_LEVEL if self.options.level is None else self.options.level
        seconds = BUILD_RTX if self.flavour == "rtx" else BUILD_BY_LEVEL[level]
        source = self._source(precision)
        share = source.stat().st_size / RESNET50_BYTES[precision] if source.is_file() else 1.0
        return seconds * min(max(share, LEAST), MOST)

    def _why_not(self, names: Sequence[str]) -> str:
        """Why none of these engines can be used; "" where one can."""
        return "" if self._usable(names) else f"there is no engine {' or '.join(names)} that runs here"

    def _usable(self, names: Sequence[str]) -> list[str]:
        """Those of some engines that are there and run here."""
        raise NotImplementedError

    def _why_no_peer(self, model: Path) -> str:
        """Why PyTorch cannot be timed; "" where it can be tried."""
        raise NotImplementedError

    def _machine(self) -> None:
        raise NotImplementedError

    def _build(self, precision: Precision, variant: Variant) -> None:
        raise NotImplementedError

    def _compare(self, precision: Precision, variant: Variant) -> None:
        raise NotImplementedError

    def _time(self, variant: Variant, precisions: Sequence[str], measures: Measures) -> None:
        raise NotImplementedError

    def _check(self, check: Check, name: str) -> None:
        raise NotImplementedError

    def _cycle(self) -> None:
        raise NotImplementedError

    def _peer(self, mode: str, model: Path, variant: Variant, batch: int) -> None:
        raise NotImplementedError
