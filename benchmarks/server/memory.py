"""The memory and the CPU time of a process and of those that it started, looked at while requests are answered."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import NamedTuple

import numpy as np

from benchmarks.inference.process import memory_of

LOOK_SECONDS = 0.5
PARTS = 10  # of the requests; growth is from the third of them, which begins at 20 %, to the last
_USER, _SYSTEM = 11, 12  # places of the times among the fields of /proc/PID/stat behind the name


class MemoryLook(NamedTuple):
    """Memory at a moment: number of requests that are done, and bytes."""

    done: int
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Memory of the server's processes while requests were answered, in MiB.

    Attributes:
        looks: number of times that it was looked at.
        most_mib: most of it.
        parts_mib: the median in each tenth of the requests; None where nobody looked.
        growth_mib: from the third tenth, which begins at 20 % of the requests, to the last. Where nobody looked in the
            third, the fourth or fifth is taken.
        slope_mib: growth with 1,000 requests, by least squares, from 20 % of them on.
    """

    looks: int
    most_mib: float | None
    parts_mib: tuple[float | None, ...]
    growth_mib: float | None
    slope_mib: float | None


def summarize(looks: Sequence[MemoryLook], requests: int) -> Memory:
    """Reduce looks to numbers.

    Args:
        looks: in order.
        requests: number of all requests.
    """
    parts: list[list[int]] = [[] for _ in range(PARTS)]
    for look in looks:
        parts[min(PARTS - 1, PARTS * look.done // requests)].append(look.bytes)
    medians = tuple(round(median(part) / 2**20, 2) if part else None for part in parts)
    start = next((part for part in medians[2 : PARTS // 2] if part is not None), None)
    end = medians[-1]
    later = np.array([look for look in looks if PARTS * look.done >= 2 * requests], dtype=float).reshape(-1, 2)
    slope = None
    if len(set(later[:, 0])) > 2:
        slope = round(float(np.polyfit(later[:, 0] / 1000, later[:, 1] / 2**20, 1)[0]), 4) + 0.0  # no -0.0
    return Memory(
        looks=len(looks),
        most_mib=round(max(look.bytes for look in looks) / 2**20, 2) if looks else None,
        parts_mib=medians,
        growth_mib=None if start is None or end is None else round(end - start, 2),
        slope_mib=slope,
    )


class MemoryWatch:
    """Look at the memory of a process and of those that it started, in a thread, while the with block runs.

    Args:
        pid: of the process.
        done: tells the number of requests that are done.
        interval: seconds between two looks. Defaults to 0.5.
    """

    def __init__(self, pid: int, done: Callable[[], int], interval: float = LOOK_SECONDS) -> None:
        self.looks: list[MemoryLook] = []
        self._pid, self._done, self._interval = pid, done, interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        due = time.monotonic()
        while True:
            self._look()
            due += self._interval
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return

    def _look(self) -> None:
        sizes = [memory.get("VmRSS", 0) for memory in map(memory_of, process_tree(self._pid))]
        if sum(sizes):
            self.looks.append(MemoryLook(self._done(), sum(sizes)))


def process_tree(pid: int) -> list[int]:
    """Return the numbers of a process and of all that it started, as far as they still run; Linux only."""
    found = [pid]
    for parent in found:  # which grows meanwhile
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text("ascii").split())
            except OSError:  # the thread has ended
                continue
    return found


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process and of all that it started and that still run; None outside Linux."""
    ticks = [taken for taken in map(_cpu_ticks, process_tree(pid)) if taken is not None]
    return sum(ticks) / _ticks_a_second() if ticks else None


def busy_seconds() -> float | None:
    """Return the CPU time of everything on this machine since it started; None outside Linux."""
    try:
        first = Path("/proc/stat").read_text("ascii").partition("\n")[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, first)
    return (user + nice + system + irq + softirq) / _ticks_a_second()


def _ticks_a_second() -> int:
    return os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[_USER]) + int(fields[_SYSTEM])
