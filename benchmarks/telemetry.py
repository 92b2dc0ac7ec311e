"""Describe the machine and read the state of its GPUs, without the names of users, hosts or paths.

A Jetson has no NVML, so the state of its GPU is read from /sys. The files differ between boards and releases of
JetPack; values that are not found are None. The names are those documented for JetPack 5 and 6; this code has not been
run on a Jetson.
"""

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from export.tensorrt.driver import driver_status
from pipeline.artifacts.machine import Gpu, GpuSnapshot, Machine, describe_cpu, memory_bytes, system, versions_of

T = TypeVar("T")
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
    "simplejpeg",
    "pyarrow",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "pycuda",
    "nvidia-ml-py",
)
# nvidia-smi's names for the fields of a snapshot; those of throttle reasons differ between versions.
SMI = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "gpu_load_percent": "utilization.gpu",
    "memory_used_mib": "memory.used",
}
SMI_PATIENCE = 10.0  # seconds
# Tegra's own GPUs in /sys/class/devfreq: JetPack 6 uses the name gpu and an address, earlier releases the chip's name.
_TEGRA = re.compile(r"17000000\.gpu|[0-9a-f]+\.(ga10b|gv11b|gp10b|gm20b)")
_ZONE = re.compile(r"gpu[-_]therm(al)?", re.IGNORECASE)
# Power rails of Xavier, AGX Orin and Orin NX or Nano; the last one is the whole module.
_RAILS = ("GPU", "VDD_GPU_SOC", "VDD_CPU_GPU_CV", "VDD_IN")
_LOADS = ("sys/devices/platform/gpu.0/load", "sys/devices/gpu.0/load")


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
        gpus=_with_nvml([Gpu(device.name, device.compute_capability, device.memory) for device in status.devices]),
    )


def commit(code: Path = ROOT) -> str | None:
    """Return the commit that is checked out in a folder, None outside a repository.

    Args:
        code: the folder. Defaults to that of this code.
    """
    return (_output("git", "-C", str(code), "rev-parse", "HEAD") or "").strip() or None


def resident_bytes() -> int:
    """Return the memory of this process in bytes; 0 where the system does not report it (outside Linux)."""
    return _try(lambda: int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")) or 0


def gpu_snapshot(root: Path = Path("/")) -> tuple[GpuSnapshot, ...]:
    """Read clocks, temperature, power and load of each GPU, to detect throttling and other processes.

    Args:
        root: of the file system, whose /sys is read where NVML lists no GPU. Defaults to "/".

    Returns:
        tuple[GpuSnapshot, ...]: one for each GPU, from NVML, from /sys on a Jetson, or from the driver's nvidia-smi
        where nvidia-ml-py is not installed. Empty without any of them, or without a driver.
    """
    with _nvml() as nvml:
        snapshots = tuple(_snapshot(nvml, handle) for handle in _handles(nvml))
    return snapshots or _tegra(root) or (_nvidia_smi() if driver_status() else ())


def _nvidia_smi() -> tuple[GpuSnapshot, ...]:
    """Run the driver's nvidia-smi; empty where it is missing or fails."""
    query = f"--query-gpu={','.join(SMI.values())}"
    output = _output("nvidia-smi", query, "--format=csv,noheader,nounits", timeout=SMI_PATIENCE)
    return tuple(
        _smi_snapshot(values) for line in (output or "").splitlines() if len(values := line.split(",")) == len(SMI)
    )


def _smi_snapshot(values: Sequence[str]) -> GpuSnapshot:
    """Convert a line of nvidia-smi; values that are not numbers, such as "[N/A]", become None."""
    numbers: dict[str, Any] = {
        key: _try(partial(float if key == "power_w" else int, value)) for key, value in zip(SMI, values)
    }
    used = numbers.pop("memory_used_mib")
    return GpuSnapshot(**numbers, memory_used_bytes=None if used is None else used << 20)


def _snapshot(nvml: Any, handle: Any) -> GpuSnapshot:
    return GpuSnapshot(
        sm_clock_mhz=_try(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
        memory_clock_mhz=_try(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
        temperature_c=_try(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        power_w=_try(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        gpu_load_percent=_try(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        memory_used_bytes=_try(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
        throttle_reasons=_try(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
    )


def _with_nvml(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Add the values that only NVML has. It ignores CUDA_VISIBLE_DEVICES, so only a list of all GPUs is matched."""
    with _nvml() as nvml:
        handles = _handles(nvml)
        if len(handles) != len(gpus):
            return tuple(gpus)
        return tuple(
            replace(
                gpu,
                power_limit_w=_try(lambda h=handle: nvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000),
                pcie_generation=_try(lambda h=handle: int(nvml.nvmlDeviceGetMaxPcieLinkGeneration(h))),
                pcie_width=_try(lambda h=handle: int(nvml.nvmlDeviceGetMaxPcieLinkWidth(h))),
            )
            for gpu, handle in zip(gpus, handles)
        )


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """Yield pynvml, initialised, or None where the package or the driver is missing."""
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


def _handles(nvml: Any) -> list[Any]:
    """Return the handles of the GPUs that NVML lists; none without NVML."""
    return [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(_try(lambda: nvml.nvmlDeviceGetCount()) or 0)]


def _tegra(root: Path) -> tuple[GpuSnapshot, ...]:
    """Read clock, temperature, power and load of a Jetson's GPU; empty where /sys has none."""
    device = next((path for path in _matching(root, "sys/class/devfreq/*") if _TEGRA.fullmatch(path.name)), None)
    if device is None:
        return ()
    zones = _matching(root, "sys/class/thermal/thermal_zone*")
    temperature = next((_number(zone / "temp") for zone in zones if _ZONE.fullmatch(_text(zone / "type"))), None)
    loads = map(_number, (device / "device" / "load", *(root / name for name in _LOADS)))
    rail, power = _power(root)
    return (
        GpuSnapshot(
            sm_clock_mhz=_scaled(_number(device / "cur_freq"), 1e6),
            temperature_c=_scaled(temperature, 1000),  # thousandths of a degree Celsius
            power_w=power,
            gpu_load_percent=_scaled(next((load for load in loads if load is not None), None), 10),  # thousandths
            power_rail=rail,
        ),
    )


def _power(root: Path) -> tuple[str | None, float | None]:
    """Return the rail that is closest to the GPU alone and has voltage (mV) and current (mA), and its power in W."""
    watts: dict[str, float] = {}
    for label in _matching(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        channel = label.name.removeprefix("in").removesuffix("_label")
        millivolts, milliamperes = (_number(label.with_name(f"{kind}{channel}_input")) for kind in ("in", "curr"))
        if millivolts is not None and milliamperes is not None:
            watts[_text(label)] = millivolts * milliamperes / 1e6
    return next(((rail, watts[rail]) for rail in _RAILS if rail in watts), (None, None))


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(root.glob(pattern))


def _scaled(value: int | None, by: float) -> int | None:
    return None if value is None else round(value / by)


def _number(path: Path) -> int | None:
    return _try(lambda: int(_text(path)))


def _text(path: Path) -> str:
    """Return the text of a file; "" where it cannot be read, as for the sensor of a part that is switched off."""
    return (_try(partial(path.read_text, "ascii")) or "").strip()


def _output(*command: str, timeout: float | None = None) -> str | None:
    """Return the output of a program; None where it is missing, fails, or exceeds ``timeout`` seconds."""
    return _try(lambda: subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout)


def _try(read: Callable[..., T]) -> T | None:
    """Return the value, or None on any error: GPUs and boards differ in what they support."""
    try:
        return read()
    except Exception:  # pynvml has an exception class for each error code
        return None
