"""Makes the steps of a visit in their order, each if it still fits, and whatever one of them raises.

Python 3.10 syntax, standard library alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu_record import Record
from benchmarks.gpu_timings import words_of
from pipeline.gpu_evidence import DONE, ERROR, RUNNING, SKIPPED
from pipeline.words import count

log = logging.getLogger("benchmarks.gpu")


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


class Estimates:
    """Expected seconds: a guess for each step, times what steps of its kind took over what was guessed for them."""

    def __init__(self) -> None:
        self._ratios: dict[str, list[float]] = {}

    def expect(self, step: Planned) -> float:
        """Give the seconds that a step is expected to take by now."""
        seen = self._ratios.get(step.kind)
        return step.seconds * (sum(seen) / len(seen) if seen else 1.0)

    def learn(self, step: Planned, seconds: float) -> None:
        """Take what a step took."""
        if step.seconds > 0:
            self._ratios.setdefault(step.kind, []).append(seconds / step.seconds)


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
    record.plan(by_name)
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
            record.step(step.name, state=SKIPPED, expected_seconds=expected, why=why)
            continue
        within = "" if left is None else f" of {left:.0f} s left"
        log.info("%d/%d %s, about %.0f s%s", number, len(steps), step.name, expected, within)
        record.step(step.name, state=RUNNING, expected_seconds=expected)
        started = clock()
        try:
            step.work()
        except KeyboardInterrupt:
            record.step(step.name, state=ERROR, seconds=round(clock() - started, 3), why="interrupted")
            raise
        except (Exception, SystemExit) as error:  # whatever a library raises: the other steps are to be made as well
            log.error("%s failed: %s", step.name, error)
            record.step(step.name, state=ERROR, seconds=round(clock() - started, 3), why=words_of(error))
        else:
            estimates.learn(step, clock() - started)
            record.step(step.name, state=DONE, seconds=round(clock() - started, 3))


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
