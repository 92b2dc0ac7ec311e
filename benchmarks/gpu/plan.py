"""What a visit to a GPU is to do: its steps in the order of their worth, and their making, as far as the time goes.

Python 3.10 syntax, numpy alone; no library and no driver is asked.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Protocol

from benchmarks.gpu.checks import CHECKS, QUICK, Check
from benchmarks.gpu.options import MAIN, Options
from benchmarks.gpu.record import Record
from benchmarks.gpu.timings import WARM_UP, words_of
from export.tensorrt.sidecar import Precision
from export.words import count
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.gpu_evidence import Measures, Step, Variant
from pipeline.artifacts.paths import ONNX, TENSORRT8

log = logging.getLogger("benchmarks.gpu")

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


@dataclass(frozen=True)
class Planned:
    """A step of a visit.

    Attributes:
        name: of the step.
        kind: steps of a kind take alike: what one took corrects what the next ones are expected to take.
        seconds: it is expected to take where nothing of its kind was measured yet.
        work: makes it; whatever it raises is the step's error.
        why_not: asked when its turn comes: why it cannot be made; "" where it can, as ``str()`` does.
        leads_to: later steps that it is made for; it is left out where the first of them no longer fits behind it.
    """

    name: str
    kind: str
    seconds: float
    work: Callable[[], None]
    why_not: Callable[[], str] = str
    leads_to: tuple[str, ...] = ()


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

    def time(self, variant: Variant, precisions: Sequence[Precision], measures: Measures) -> None:
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
        builds = [
            Planned(
                *(f"build {precision}-{variant}", "build", self._build_seconds(precision)),
                *(partial(work.build, precision, variant), partial(str, self._why_absent(precision))),
                leads_to=tuple(step.name for step in times[:1]),
            )
            for precision in precisions
        ]
        parities = [
            Planned(
                *(f"parity {precision}-{variant}", "parity", PARITY),
                *(partial(work.compare, precision, variant), partial(_why_not, work, [f"{precision}-{variant}"])),
            )
            for precision in there
        ]
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
        checks = {one.__name__.replace("_", " "): one for one in (QUICK if options.checks == "quick" else CHECKS)}
        steps = [
            Planned(
                *(f"check {one}: {name}", f"check {name}", CHECK),
                *(partial(work.check, check, one), partial(_why_not, work, [one])),
            )
            for name, check in checks.items()
            for one in engines
        ]
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
        if self.source(precision).is_file():
            return ""
        name = engine_source(precision, self.strongly_typed)
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


class Estimates:
    """Expected seconds: a guess for each step, times what steps of its kind took over what was guessed for them."""

    def __init__(self) -> None:
        self._ratios: dict[str, list[float]] = defaultdict(list)

    def expect(self, step: Planned) -> float:
        """Give the seconds that a step is expected to take by now."""
        return step.seconds * fmean(self._ratios[step.kind] or [1.0])

    def learn(self, step: Planned, seconds: float) -> None:
        """Take what a step took."""
        if step.seconds > 0:
            self._ratios[step.kind].append(seconds / step.seconds)


def make_steps(
    steps: Sequence[Planned],
    record: Record,
    seconds: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Make the steps in their order, those that most is worth first; what no longer fits is left out, with the reason.

    Args:
        steps: all of them, with names of their own.
        record: what is known is written there before and after each step.
        seconds: in which it is to be done, from now on; None: as long as it takes.
        clock: seconds, monotonic. Defaults to ``time.monotonic``.

    Raises:
        KeyboardInterrupt: of the person at the keyboard; the step that it ended is recorded so.
    """
    began, estimates, by_name = clock(), Estimates(), {step.name: step for step in steps}
    record.change(steps=tuple(map(Step, by_name)))
    _say_plan(steps, seconds)
    for number, step in enumerate(steps, 1):
        expected = round(estimates.expect(step), 1)
        left = None if seconds is None else seconds - (clock() - began)
        try:
            why = step.why_not() or too_long(step, by_name, estimates, left)
        except Exception as error:  # asking may load a library
            why = words_of(error)
        if why:
            log.warning("%s is skipped: %s", step.name, why)
            record.step(step.name, state="skipped", expected_seconds=expected, why=why)
            continue
        within = "" if left is None else f" of {left:.0f} s left"
        log.info("%d/%d %s, about %.0f s%s", number, len(steps), step.name, expected, within)
        record.step(step.name, state="running", expected_seconds=expected)
        started = clock()
        try:
            step.work()
        except KeyboardInterrupt:
            record.step(step.name, state="error", seconds=round(clock() - started, 3), why="interrupted")
            raise
        except (Exception, SystemExit) as error:  # whatever a library raises: the other steps are to be made as well
            log.error("%s failed: %s", step.name, error)
            record.step(step.name, state="error", seconds=round(clock() - started, 3), why=words_of(error))
        else:
            estimates.learn(step, clock() - started)
            record.step(step.name, state="done", seconds=round(clock() - started, 3))


def too_long(step: Planned, by_name: Mapping[str, Planned], estimates: Estimates, left: float | None) -> str:
    """Why a step no longer fits into the seconds that are left; "" where it does, and where there is no limit."""
    if left is None:
        return ""
    expected = estimates.expect(step)
    behind = next((by_name[name] for name in step.leads_to), None)
    needed = expected + (estimates.expect(behind) if behind else 0.0)
    if needed <= left:
        return ""
    purpose = f" with {behind.name}, which it is made for" if behind else ""
    return f"it takes about {needed:.0f} s{purpose}; {max(left, 0):.0f} s are left"


def _say_plan(steps: Sequence[Planned], seconds: float | None) -> None:
    total = sum(step.seconds for step in steps)
    limit = "" if seconds is None else f", and at most {seconds / 60:g}: what no longer fits is skipped"
    log.info(
        "%s, about %s by a first guess%s", count(len(steps), "step"), count(round(total / 60) or 1, "minute"), limit
    )
