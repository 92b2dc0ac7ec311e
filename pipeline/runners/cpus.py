"""How many CPUs this process may use: its affinity, the quota of its container, cores with two threads. Portable."""

from __future__ import annotations

import math
import os
from pathlib import Path

_SYSTEM = Path("/sys")


def usable_cpus(system: Path = _SYSTEM) -> int:
    """Return how many logical CPUs this process may use, at least 1.

    Its affinity (`taskset`, cpusets) and the quota of its container (`docker run --cpus`) both count; half a CPU counts
    as one.

    Args:
        system: where the kernel's files are. Defaults to ``/sys``.
    """
    return max(1, math.ceil(min(len(_affinity()), _quota(system))))


def usable_cores(system: Path = _SYSTEM) -> int:
    """Return how many cores this process may use, at least 1: logical CPUs of one core count once.

    Two threads of a matrix product on one core are no faster than one.

    Args:
        system: where the kernel's files are. Defaults to ``/sys``.
    """
    cores = {_core(system, cpu) for cpu in _affinity()}
    return max(1, min(len(cores), usable_cpus(system)))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _core(system: Path, cpu: int) -> str:
    """Name the core of a logical CPU by the list of its threads; where the kernel does not say, each is a core."""
    siblings = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(siblings) or str(cpu)


def _quota(system: Path) -> float:
    """Return the CPUs that the container's scheduler grants; infinite without a limit."""
    first, _, period = _read(system / "fs/cgroup/cpu.max").partition(" ")  # version 2: "200000 100000" or "max 100000"
    if not period:  # version 1; -1 is no limit
        first = _read(system / "fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read(system / "fs/cgroup/cpu/cpu.cfs_period_us")
    try:
        share = int(first) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf
    return share if share > 0 else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
