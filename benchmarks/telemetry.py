"""What the machine is and what its GPUs are doing: beside every number, and nothing that names a person or a host.

A Jetson has no NVML: what its GPU is doing is read from /sys. Which files there are differs between boards and releases
of JetPack, so that whatever is not found stays None. The names are those that others read on boards with JetPack 5 and
6; this code was never run on one.
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
# Names below /sys/class/devfreq of Tegra's own GPUs: JetPack 6 says gpu at Tegra's address, earlier ones the chip.
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
        gpus=_with_nvml([Gpu(one.name, one.compute_capability, one.memory) for one in status.devices]),
    )


def commit() -> str | None:
    """The commit that this code is of, None outside a repository."""
    said = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    return None if said is None else said.strip()


def peak_memory_mib() -> int | None:
    """The most memory that this process has held so far; None where the system does not say (outside Linux).

    ru_maxrss would count what the parent held before exec.
    """
    peak = re.search(r"^VmHWM:\s+(\d+) kB", _text(Path("/proc/self/status")), re.MULTILINE)
    return int(peak[1]) // 1024 if peak is not None else None


def resident_bytes() -> int:
    """The memory that this process holds now; 0 where the system does not say (outside Linux)."""
    return _ask(lambda: int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")) or 0


def gpu_snapshot(root: Path = Path("/")) -> tuple[GpuSnapshot, ...]:
    """Read clocks, temperature, power and load of each GPU now, to see throttling and other people's work.

    Args:
        root: of the file system, whose /sys is read where NVML lists no GPU. Defaults to "/".

    Returns:
        tuple[GpuSnapshot, ...]: one a GPU. A Jetson, which has no NVML, tells what it does in /sys.
        Elsewhere without nvidia-ml-py the driver's nvidia-smi is asked. Empty without either, or without a driver.
    """
    with _nvml() as nvml:
        found = tuple(_snapshot(nvml, handle) for handle in _handles(nvml))
    return found or _tegra(root) or (_nvidia_smi() if driver_status() else ())


def _nvidia_smi() -> tuple[GpuSnapshot, ...]:
    """Ask the tool that comes with the driver; empty where it is not there or fails."""
    query = f"--query-gpu={','.join(SMI.values())}"
    told = _output("nvidia-smi", query, "--format=csv,noheader,nounits", patience=SMI_PATIENCE)
    lines = [line.split(",") for line in (told or "").splitlines()]
    return tuple(_smi_snapshot(values) for values in lines if len(values) == len(SMI))


def _smi_snapshot(values: Sequence[str]) -> GpuSnapshot:
    """What it told of a GPU; what is no number, as "[N/A]", is None."""
    kinds: dict[str, Callable[[str], Any]] = {"power_w": float}
    read = {key: _ask(partial(kinds.get(key, int), value)) for key, value in zip(SMI, values)}
    used = read.pop("memory_used_mib")
    return GpuSnapshot(**read, memory_used_bytes=None if used is None else used << 20)


def _snapshot(nvml: Any, handle: Any) -> GpuSnapshot:
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
        handles = _handles(nvml)
        if len(handles) != len(gpus):
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
def _nvml() -> Iterator[Any]:
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


def _handles(nvml: Any) -> list[Any]:
    """The GPUs that NVML lists; none without it."""
    count = _ask(lambda: nvml.nvmlDeviceGetCount()) or 0
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _tegra(root: Path) -> tuple[GpuSnapshot, ...]:
    """Clock, temperature, power and load of a Jetson's GPU; empty where /sys shows none."""
    device = next((path for path in _matching(root, "sys/class/devfreq/*") if _TEGRA.fullmatch(path.name)), None)
    if device is None:
        return ()
    zones = _matching(root, "sys/class/thermal/thermal_zone*")
    temperature = next((_number(one / "temp") for one in zones if _ZONE.fullmatch(_text(one / "type"))), None)
    loads = map(_number, (device / "device" / "load", *(root / name for name in _LOADS)))
    rail, power = _power(root)
    snapshot = GpuSnapshot(
        sm_clock_mhz=_scaled(_number(device / "cur_freq"), 1e6),
        temperature_c=_scaled(temperature, 1000),  # thousandths of a degree Celsius
        power_w=power,
        gpu_load_percent=_scaled(next((load for load in loads if load is not None), None), 10),  # thousandths
        power_rail=rail,
    )
    return (snapshot,)


def _power(root: Path) -> tuple[str | None, float | None]:
    """The rail closest to the GPU alone that tells voltage (mV) and current (mA), and its power in watts."""
    watts: dict[str, float] = {}
    for label in _matching(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        channel = label.name.removeprefix("in").removesuffix("_label")
        millivolts, milliamperes = (_number(label.with_name(f"{what}{channel}_input")) for what in ("in", "curr"))
        if millivolts is not None and milliamperes is not None:
            watts[_text(label)] = millivolts * milliamperes / 1e6
    return next(((rail, watts[rail]) for rail in _RAILS if rail in watts), (None, None))


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(root.glob(pattern))


def _scaled(value: int | None, by: float) -> int | None:
    return None if value is None else round(value / by)


def _number(path: Path) -> int | None:
    return _ask(lambda: int(_text(path)))


def _text(path: Path) -> str:
    """What a file says; "" where it says nothing, as a sensor of a part that sleeps."""
    return (_ask(partial(path.read_text, "ascii")) or "").strip()


def _output(*command: str, patience: float | None = None) -> str | None:
    """What a program prints; None where it is not there, fails, or takes longer than its seconds."""
    run = partial(subprocess.run, command, capture_output=True, text=True, check=True, timeout=patience)
    return _ask(lambda: run().stdout)


def _ask(question: Callable[..., T]) -> T | None:
    """Ask for one value; GPUs and boards differ in what they answer."""
    try:
        return question()
    except Exception:  # pynvml raises a class of its own for each code
        return None
