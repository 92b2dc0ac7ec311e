"""Description of a machine and of the state of its GPUs, recorded with every measurement.

It holds nothing that identifies a person or a host; what is unknown is None. `benchmarks.telemetry` queries the GPUs.
Standard library only, Python 3.10 syntax.
"""

import contextlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

# Instruction sets that decide the speed of INT8 and FP16 on a CPU.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_fp16", "asimddp", "i8mm")


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        model: Model name.
        cores: Number of logical cores.
        usable_cores: Number of cores that this process may use.
        features: Those of `CPU_FEATURES` that it has.
    """

    model: str | None = None
    cores: int | None = None
    usable_cores: int | None = None
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model}, {self.usable_cores} cores"


@dataclass(frozen=True)
class Gpu:
    """A GPU; the fields with a default come from NVML and are None without it."""

    name: str
    compute_capability: str
    memory_bytes: int
    power_limit_w: float | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None


@dataclass(frozen=True)
class Machine:
    """A machine; the defaults stand for one that has not been described yet.

    Attributes:
        cpu: Processor.
        memory_bytes: Total memory in bytes.
        os: Distribution and kernel.
        python: Version of Python.
        packages: Versions by name of the packages that matter to a benchmark.
        driver_version: Version of NVIDIA's driver.
        cuda_version: Newest CUDA version that the driver supports.
        gpus: GPUs that CUDA lists.
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
    """State of a GPU at one moment.

    Attributes:
        sm_clock_mhz: Clock of the multiprocessors in MHz.
        memory_clock_mhz: Clock of the memory in MHz.
        temperature_c: Temperature in degrees Celsius.
        power_w: Power in watts.
        gpu_load_percent: Utilisation in the time before, in percent.
        memory_used_bytes: Memory in use by all processes, in bytes.
        throttle_reasons: NVML's bit mask.
        power_rail: On a Jetson, the rail that ``power_w`` was read from; on an Orin it supplies more than the GPU.
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
    info: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        first = (line.partition(":") for line in file.read().partition("\n\n")[0].splitlines())
        info = {key.strip(): value.strip() for key, _, value in first}
    flags = (info.get("flags") or info.get("Features") or "").split()
    return Cpu(
        model=info.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        features=tuple(name for name in CPU_FEATURES if name in flags),
    )


def memory_bytes() -> int | None:
    """Return the total memory of the machine in bytes; None where it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def system() -> str:
    """Return the name of the distribution, the kernel and the architecture."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    release = platform.release().partition("-")[0]  # the rest may name a host or a person
    kernel = f"{platform.system()} {release} {platform.machine()}"
    return f"{name} ({kernel})" if name else kernel


def version_of(package: str) -> str | None:
    """Return the version of an installed package without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: version for name in packages if (version := version_of(name)) is not None}


def peak_memory_mib() -> int | None:
    """Return the peak memory of this process in MiB; None where the system does not report it (outside Linux).

    ru_maxrss would include the parent's memory before exec.
    """
    try:
        status = Path("/proc/self/status").read_text("ascii", errors="replace")
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) // 1024 if peak is not None else None
