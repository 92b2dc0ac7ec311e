"""What a machine is, and what its GPUs are doing: beside every number that is measured, and nothing that names anybody.

`benchmarks.telemetry` asks the GPUs. What cannot be found out is None. Standard library only, Python 3.10 syntax.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

# Instruction sets that decide how fast INT8 and FP16 can be on a CPU.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_fp16", "asimddp", "i8mm")


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        model: as it names itself.
        cores: logical ones.
        usable_cores: that this process may use.
        features: those of `CPU_FEATURES` that it has.
    """

    model: str | None = None
    cores: int | None = None
    usable_cores: int | None = None
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model}, {self.usable_cores} cores"


@dataclass(frozen=True)
class Gpu:
    """A GPU; what only NVML knows is None without it."""

    name: str
    compute_capability: str
    memory_bytes: int
    power_limit_w: float | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None


@dataclass(frozen=True)
class Machine:
    """A machine; one of which nothing was told yet has the defaults.

    Attributes:
        cpu: its processor.
        memory_bytes: all of it.
        os: distribution and kernel.
        python: version.
        packages: name to version, of those that matter to a benchmark.
        driver_version: of NVIDIA's driver.
        cuda_version: the newest that the driver takes.
        gpus: those that CUDA lists.
    """

    cpu: Cpu = field(default_factory=Cpu)
    memory_bytes: int | None = None
    os: str | None = None
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    driver_version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class GpuSnapshot:
    """What a GPU is doing at one moment.

    Attributes:
        sm_clock_mhz: of the multiprocessors.
        memory_clock_mhz: of its memory.
        temperature_c: degrees Celsius.
        power_w: watts.
        gpu_load_percent: of the time before.
        memory_used_bytes: by everybody.
        throttle_reasons: NVML's bit mask.
        power_rail: of a Jetson: the rail that ``power_w`` is of, which on an Orin is never the GPU's alone.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    gpu_load_percent: int | None = None
    memory_used_bytes: int | None = None
    throttle_reasons: int | None = None
    power_rail: str | None = None


def describe_cpu() -> Cpu:
    """Describe the processor of this machine."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return Cpu(
        model=info.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        features=tuple(name for name in CPU_FEATURES if name in flags),
    )


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
