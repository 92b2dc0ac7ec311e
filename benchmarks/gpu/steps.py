"""Run the steps of a visit to a GPU in their order, within the time limit, by estimates that measured times correct.

The module needs Python 3.10 and numpy alone; it uses no library and no driver.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.gpu.record import Record
from benchmarks.gpu.timings import error_text
from export.words import count
from pipeline.artifacts.gpu_evidence import Step

log = logging.getLogger("benchmarks.gpu")


@dataclass(frozen=True)
class PlannedStep:
    """A step of a visit.

    Attributes:
        name: of the step.
        kind: steps of one kind share the correction of their estimates.
        seconds: estimated duration, before a step of its kind was measured.
        work: runs the step; an exception is the step's error.
        why_not: called before the step; returns why it cannot run, "" where it can, as ``str()`` does.
        leads_to: later steps that need it; it is left out where the first of them no longer fits after it.
    """

    name: str
    kind: str
    seconds: float
    work: Callable[[], None]
    why_not: Callable[[], str] = str
    leads_to: tuple[str, ...] = ()


class Estimates:
    """Expected durations: the first estimate, scaled by the measured over the estimated time of steps of its kind."""

    def __init__(self) -> None:
        self._ratios: dict[str, list[float]] = defaultdict(list)

    def expect(self, step: PlannedStep) -> float:
        """Return the expected seconds of a step."""
        return step.seconds * fmean(self._ratios[step.kind] or [1.0])

    def learn(self, step: PlannedStep, seconds: float) -> None:
        """Record the measured seconds of a step."""
        if step.seconds > 0:
            self._ratios[step.kind].append(seconds / step.seconds)


def run_steps(
    steps: Sequence[PlannedStep],
    record: Record,
    seconds: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the steps in their order; those that no longer fit are skipped, with the reason.

    Args:
        steps: all steps, with unique names.
        record: updated before and after each step.
        seconds: time limit from now on; None: no limit.
        clock: seconds, monotonic. Defaults to ``time.monotonic``.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the interrupted step is recorded.
    """
    began, estimates, by_name = clock(), Estimates(), {step.name: step for step in steps}
    record.change(steps=tuple(map(Step, by_name)))
    minutes = round(sum(step.seconds for step in steps) / 60) or 1
    limit = "" if seconds is None else f", and at most {seconds / 60:g}: what no longer fits is skipped"
    log.info("%s, about %s by a first guess%s", count(len(steps), "step"), count(minutes, "minute"), limit)
    for number, step in enumerate(steps, 1):
        expected = round(estimates.expect(step), 1)
        left = None if seconds is None else seconds - (clock() - began)
        try:
            why = step.why_not() or why_too_long(step, by_name, estimates, left)
        except Exception as error:  # the question may load a library
            why = error_text(error)
        if why:
            log.warning("%s is skipped: %s", step.name, why)
            record.step(step.name, state="skipped", expected_seconds=expected, why=why)
            continue
        remaining = "" if left is None else f" of {left:.0f} s left"
        log.info("%d/%d %s, about %.0f s%s", number, len(steps), step.name, expected, remaining)
        record.step(step.name, state="running", expected_seconds=expected)
        started = clock()
        try:
            step.work()
        except KeyboardInterrupt:
            record.step(step.name, state="error", seconds=round(clock() - started, 3), why="interrupted")
            raise
        except (Exception, SystemExit) as error:  # any error of a library: the other steps still run
            log.error("%s failed: %s", step.name, error)
            record.step(step.name, state="error", seconds=round(clock() - started, 3), why=error_text(error))
        else:
            estimates.learn(step, clock() - started)
            record.step(step.name, state="done", seconds=round(clock() - started, 3))


def why_too_long(
    step: PlannedStep, by_name: Mapping[str, PlannedStep], estimates: Estimates, left: float | None
) -> str:
    """Return why a step no longer fits into the seconds that are left; "" where it does or there is no limit."""
    following = next((by_name[name] for name in step.leads_to), None)
    needed = estimates.expect(step) + (estimates.expect(following) if following else 0.0)
    if left is None or needed <= left:
        return ""
    purpose = f" with {following.name}, which needs it" if following else ""
    return f"it takes about {needed:.0f} s{purpose}; {max(left, 0):.0f} s are left"
