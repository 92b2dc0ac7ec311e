"""Is there an NVIDIA driver here, and which GPUs? Asked with ctypes, before any CUDA library is touched.

TensorRT 8.6 kills the process when it is used without a driver, so the answer has to come from outside.
Standard library only, Python 3.10 syntax: this runs on GPU machines that hold nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

AMPERE = (8, 0)  # compute capability of the first GPU generation after Turing
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute of the compute capability, stable since CUDA 5


@dataclass(frozen=True)
class Device:
    """One GPU as the driver lists it (CUDA_VISIBLE_DEVICES applies)."""

    name: str
    compute_capability: str  # "8.9"
    memory: int  # bytes


@dataclass(frozen=True)
class DriverStatus:
    """What the driver says. ``reason`` is empty when ``available``, else one sentence for a person."""

    available: bool
    reason: str
    driver_version: str | None = None  # of the kernel driver, "580.95.05"
    cuda_version: str | None = None  # the newest CUDA this driver runs, "13.0"
    devices: tuple[Device, ...] = ()

    def __bool__(self) -> bool:
        return self.available


def driver_status() -> DriverStatus:
    """Ask the driver, without any package and without creating a CUDA context.

    Returns:
        DriverStatus: ``available`` is true when the driver starts and lists one GPU or more. Never raises.
    """
    try:
        return _ask(_load_cuda())
    except OSError as error:
        missing = "No such file" in str(error) or "could not find" in str(error).lower()
        detail = "its library libcuda is not on this machine" if missing else str(error)
        return DriverStatus(False, f"no NVIDIA driver ({detail})")
    except (AttributeError, ValueError, TypeError) as error:
        return DriverStatus(False, f"the CUDA driver library is not usable: {error!r}. Reinstall the NVIDIA driver")


def as_numbers(version: str) -> tuple[int, ...]:
    """Give "10.13.0.35" or "8.6" as numbers, which compare as versions do; what is none of up to 9 digits ends them."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal() or len(part) > 9:
            break
        numbers.append(int(part))
    return tuple(numbers)


def _load_cuda() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _ask(cuda: Any) -> DriverStatus:
    code = cuda.cuInit(0)
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else None
    driver_version = _kernel_driver_version()
    if code != 0:
        reason = f"the driver does not start: {_error_name(cuda, code)}. Check `nvidia-smi`"
        return DriverStatus(False, reason, driver_version, cuda_version)
    count = ctypes.c_int(0)
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        reason = "the driver lists no GPU. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        return DriverStatus(False, reason, driver_version, cuda_version)
    devices = tuple(_device(cuda, index) for index in range(count.value))
    return DriverStatus(True, "", driver_version, cuda_version, devices)


def _device(cuda: Any, index: int) -> Device:
    handle = ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t(0)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    for code in (
        cuda.cuDeviceGet(ctypes.byref(handle), index),
        cuda.cuDeviceGetName(name, len(name), handle),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle),
    ):
        if code != 0:
            raise ValueError(f"device {index}: {_error_name(cuda, code)}")
    return Device(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _error_name(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value:
        return f"{text.value.decode(errors='replace')} ({code})"
    return f"CUDA error {code}"


def _kernel_driver_version() -> str | None:
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() != 0:
            return None
        try:
            return text.value.decode() if nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0 else None
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
