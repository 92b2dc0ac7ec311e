"""What the machine is and what its GPUs are doing: beside every number, and nothing that names a person or a host."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.tegra import ROOT as FILE_SYSTEM
from benchmarks.tegra import tegra_snapshot
from export.driver import driver_status
from pipeline.machine import Gpu, GpuSnapshot, Machine, describe_cpu, memory_bytes, system, versions_of

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = (
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tf2onnx",
    "pillow",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "pycuda",
    "nvidia-ml-py",
)
# What nvidia-smi calls what a snapshot holds; throttle reasons have other names from version to version.
SMI = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "gpu_load_percent": "utilization.gpu",
    "memory_used_mib": "memory.used",
}
SMI_PATIENCE = 10.0  # seconds


def machine() -> Machine:
    """Describe the machine: processor, memory, system, packages, GPUs. No host name, no user name, no paths."""
    status = driver_status()
    return Machine(
        cpu=describe_cpu(),
        memory_bytes=memory_bytes(),
        os=system(),
        python=platform.python_version(),
        packages=versions_of(PACKAGES),
        driver_version=status.driver_version,
        cuda_version=status.cuda_version,
        gpus=_with_nvml([Gpu(one.name, one.compute_capability, one.memory) for one in status.devices]),
    )


def commit() -> str | None:
    """The commit that this code is of, None outside a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mib() -> int | None:
    """The most memory that this process has held so far, None where the system does not say (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (1024 * 1024 if platform.system() == "Darwin" else 1024))


def resident_bytes() -> int:
    """The memory that this process holds now; 0 where the system does not say (outside Linux)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError):
        return 0


def gpu_snapshot(root: Path = FILE_SYSTEM) -> tuple[GpuSnapshot, ...]:
    """Read clocks, temperature, power and load of each GPU now, to see throttling and other people's work.

    Args:
        root: of the file system, whose /sys is read where NVML lists no GPU. Defaults to "/".

    Returns:
        tuple[GpuSnapshot, ...]: one a GPU. A Jetson, which has no NVML, tells what it does in /sys, see
        `benchmarks.tegra`. Elsewhere without nvidia-ml-py the driver's nvidia-smi is asked. Empty without either, or
        without a driver.
    """
    with _nvml() as nvml:
        found = tuple(_snapshot(nvml, handle) for handle in _handles(nvml)) if nvml is not None else ()
    if not found and (tegra := tegra_snapshot(root)):
        found = (tegra,)
    return found or (_nvidia_smi() if driver_status() else ())


def _nvidia_smi() -> tuple[GpuSnapshot, ...]:
    """Ask the tool that comes with the driver; empty where it is not there or fails."""
    query = [f"--query-gpu={','.join(SMI.values())}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=True, timeout=SMI_PATIENCE)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    lines = [line.split(",") for line in told.stdout.splitlines()]
    return tuple(_smi_snapshot(values) for values in lines if len(values) == len(SMI))


def _smi_snapshot(values: Sequence[str]) -> GpuSnapshot:
    """What it told of a GPU; what is no number, as "[N/A]", is None."""
    kinds: dict[str, Callable[[str], float]] = {"power_w": float}
    read = {key: _ask(partial(kinds.get(key, int), value)) for key, value in zip(SMI, values)}
    used = read.pop("memory_used_mib")
    return GpuSnapshot(**read, memory_used_bytes=None if used is None else used << 20)


def _snapshot(nvml: ModuleType, handle: Any) -> GpuSnapshot:
    return GpuSnapshot(
        sm_clock_mhz=_ask(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
        memory_clock_mhz=_ask(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
        temperature_c=_ask(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        power_w=_ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        gpu_load_percent=_ask(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        memory_used_bytes=_ask(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
        throttle_reasons=_ask(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
    )


def _with_nvml(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Add what only NVML knows. It numbers GPUs without CUDA_VISIBLE_DEVICES, so only a full list is matched."""
    with _nvml() as nvml:
        if nvml is None or len(handles := _handles(nvml)) != len(gpus):
            return tuple(gpus)
        return tuple(
            replace(
                gpu,
                power_limit_w=_ask(lambda h=handle: nvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000),
                pcie_generation=_ask(lambda h=handle: int(nvml.nvmlDeviceGetMaxPcieLinkGeneration(h))),
                pcie_width=_ask(lambda h=handle: int(nvml.nvmlDeviceGetMaxPcieLinkWidth(h))),
            )
            for gpu, handle in zip(gpus, handles)
        )


@contextlib.contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    """Give pynvml, started, or None where the package or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # ImportError, or NVML's own error without a driver
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _handles(nvml: ModuleType) -> list[Any]:
    count = _ask(nvml.nvmlDeviceGetCount) or 0
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _ask(question: Callable[..., Any]) -> Any:
    """Ask NVML for one value; GPUs differ in what they answer."""
    try:
        return question()
    except Exception:  # pynvml raises a class of its own for each code
        return None
