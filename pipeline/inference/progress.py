"""What a person sees of a run while it works: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from export.words import count
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)

EVERY: Final = 10.0  # seconds between two lines


class Progress:
    """A context manager that shows rows written, those without an answer, images per second, and the time left.

    Rows of an earlier run that is continued count as done, but not for the speed. On a terminal the lines are debug
    messages, so that a log file has them.

    Args:
        total: rows of the run.
        done: rows of an earlier run that stay. Defaults to 0.
        failed: of these, rows without an answer. Defaults to 0.
        quiet: show no bar. Lines are log messages, which ``--quiet`` leaves out. Defaults to False.
        bar: whether there is a terminal for a bar. Defaults to None: whether standard error is one.
        clock: gives seconds. Defaults to `time.monotonic`.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        failed: int = 0,
        *,
        quiet: bool = False,
        bar: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.failed = total, done, failed
        self._start = done
        self._clock = clock
        self._began = self._said = clock()
        on_terminal = bool(sys.stderr and sys.stderr.isatty()) if bar is None else bar
        self._level = logging.DEBUG if on_terminal else logging.INFO
        self._bar: Any = None
        if on_terminal and not quiet:
            self._bar = progress_bar(total=total, initial=done, desc="  infer", unit="img", disable=False)
            self._show_failures()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, rows: int, failed: int = 0) -> None:
        """Count rows that were written.

        Args:
            rows: their number.
            failed: of these, rows without an answer. Defaults to 0.
        """
        self.done += rows
        self.failed += failed
        if self._bar is not None:
            if failed:
                self._show_failures()
            self._bar.update(rows)
        now = self._clock()
        if now - self._said >= EVERY:
            self._said = now
            log.log(self._level, "%s", self.line(now - self._began))

    def line(self, seconds: float) -> str:
        """Return the state in a line.

        Args:
            seconds: since this run began.
        """
        rate = (self.done - self._start) / seconds if seconds > 0 else 0.0
        left = f", {duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""
        return f"  {self.done:,} of {count(self.total, 'image')}, {self.failed:,} failed, {_rate(rate)} images/s{left}"

    def _show_failures(self) -> None:
        if self.failed:
            self._bar.set_postfix_str(f"{self.failed:,} failed", refresh=False)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as "3 min 51 s"."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days:,} d {hour} h"
    if hours:
        return f"{hours} h {minute} min"
    return f"{minutes} min {second} s" if minutes else f"{second} s"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
