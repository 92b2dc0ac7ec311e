"""What a machine is, and what its GPUs are doing: beside every number that is measured, and nothing that names anybody.

`benchmarks.telemetry` finds it out. What cannot be found out is None. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cpu:
    """A processor."""

    model: str | None = None
    cores: int | None = None
    usable_cores: int | None = None
    features: tuple[str, ...] = ()


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
