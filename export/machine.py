"""What this machine is: processor, memory, system, versions of packages. No host name, no user name, no paths.

What cannot be found out is None. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

# Instruction sets that decide how fast INT8 and FP16 can be on a CPU.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_fp16", "asimddp", "i8mm")


def cpu() -> dict[str, Any]:
    """Describe the processor: ``model``, ``cores``, ``usable_cores`` (that this process may use), ``features``."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "model": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in CPU_FEATURES if name in flags],
    }


def describe_cpu() -> str:
    """Model and usable cores, for people."""
    found = cpu()
    return f"{found['model']}, {found['usable_cores']} cores"


def memory_bytes() -> int | None:
    """The memory of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def system() -> str:
    """Name of the distribution, kernel and architecture."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    release = platform.release().partition("-")[0]  # what follows may name who built it
    kernel = f"{platform.system()} {release} {platform.machine()}"
    return f"{name} ({kernel})" if name else kernel


def version_of(package: str) -> str | None:
    """The version of an installed package, which is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    return {name: version for name in packages if (version := version_of(name)) is not None}


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
