"""Query the NVIDIA driver and its GPUs, and tell which TensorRT versions support which GPUs.

The driver is queried with ctypes before any CUDA library is loaded, because TensorRT 8.6 kills the process when it is
used without a driver. Classic TensorRT does not list the GPUs that it supports, so they are tabulated here by version,
from NVIDIA's support matrices and release notes; other features are looked up by name in `export.tensorrt.library`.
The module needs Python 3.10 and the standard library alone, because it runs on GPU machines without other packages.
"""

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
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
    """The state of the driver. ``reason`` is empty when ``available``, else one sentence for the user."""

    available: bool
    reason: str
    driver_version: str | None = None  # of the kernel driver, "580.95.05"
    cuda_version: str | None = None  # the newest CUDA this driver runs, "13.0"
    devices: tuple[Device, ...] = ()

    def __bool__(self) -> bool:
        return self.available


def driver_status() -> DriverStatus:
    """Query the driver, without any package and without creating a CUDA context.

    Returns:
        DriverStatus: ``available`` is true when the driver starts and lists one GPU or more. Never raises.
    """
    try:
        return _query(_load_cuda())
    except OSError as error:
        missing = "No such file" in str(error) or "could not find" in str(error).lower()
        detail = "its library libcuda is not on this machine" if missing else str(error)
        return DriverStatus(False, f"no NVIDIA driver ({detail})")
    except (AttributeError, ValueError, TypeError) as error:
        return DriverStatus(False, f"the CUDA driver library is not usable: {error!r}. Reinstall the NVIDIA driver")


def version_numbers(version: str) -> tuple[int, ...]:
    """Return "10.13.0.35" or "8.6" as numbers, up to the first part that is not a number of up to 9 digits."""
    return tuple(map(int, takewhile(lambda part: part.isdecimal() and len(part) <= 9, version.split("."))))


def _load_cuda() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _query(cuda: Any) -> DriverStatus:
    code = cuda.cuInit(0)
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else None
    driver_version = _kernel_driver_version()
    if code != 0:
        return DriverStatus(
            False,
            f"the driver does not start: {_error_name(cuda, code)}. Check `nvidia-smi`",
            driver_version,
            cuda_version,
        )
    count = ctypes.c_int(0)
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        return DriverStatus(
            False,
            "the driver lists no GPU. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
            driver_version,
            cuda_version,
        )
    return DriverStatus(True, "", driver_version, cuda_version, tuple(_device(cuda, at) for at in range(count.value)))


def _device(cuda: Any, index: int) -> Device:
    handle, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t(0)
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
    known = cuda.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
    return f"{known.decode(errors='replace')} ({code})" if known else f"CUDA error {code}"


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


NAMES: Mapping[str, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Generations:
    """The GPUs that a range of versions supports, by compute capability.

    Attributes:
        name: the versions, for display.
        since: the first version of the range.
        until: the first version after the range; None: the range is open.
        oldest: the oldest supported compute capability.
        newest: the newest supported compute capability; None: not known.
        listed: compute capabilities that NVIDIA lists.
        complete: whether only the listed ones are supported. Defaults to False: not known.
    """

    name: str
    since: tuple[int, ...]
    until: tuple[int, ...] | None
    oldest: tuple[int, int]
    newest: tuple[int, int] | None
    listed: tuple[str, ...]
    complete: bool = False

    def supports(self, compute_capability: str) -> bool | None:
        """Whether these versions support a GPU; None: not known."""
        if compute_capability in self.listed:
            return True
        numbers = version_numbers(compute_capability)
        outside = numbers < self.oldest or (self.newest is not None and numbers > self.newest)
        return False if outside or self.complete else None


_TO_HOPPER = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0")
GENERATIONS: Mapping[str, tuple[Generations, ...]] = {
    "tensorrt": (
        Generations("8.6", (8, 6), (8, 7), (5, 0), (9, 0), ("7.0", *_TO_HOPPER)),
        # 10.0 dropped Maxwell and Pascal, 10.5 Volta; 10.8 added Blackwell.
        Generations("10.0 to 10.4", (10, 0), (10, 5), (7, 0), (9, 0), ("7.0", *_TO_HOPPER)),
        Generations("10.5 to 10.7", (10, 5), (10, 8), (7, 5), (9, 0), _TO_HOPPER),
        Generations("10.8 or later", (10, 8), None, (7, 5), None, ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")),
    ),
    # The members of ComputeCapability in 1.7.1, for machines where the library is not installed.
    "rtx": (
        Generations("1", (1,), None, (7, 5), (12, 1), ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"), complete=True),
    ),
}

# Versions whose names the contract tests read from their bindings: the first, and the first one after them.
CHECKED: Mapping[str, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = {
    "tensorrt": (((8, 6), (8, 7)), ((10, 0), (10, 17)), ((11, 0), (11, 5))),
    "rtx": (((1, 7, 1), (1, 7, 2)),),
}
# Versions that built engines in this project's own tests.
BUILT: Mapping[str, tuple[tuple[int, ...], ...]] = {"tensorrt": (), "rtx": ((1, 7, 1),)}
_TYPED, _TYPED_FULLY = (10, 0), (10, 12)  # the first version with strong typing, and the first where it is complete


def supports(flavour: str, version: str, compute_capability: str) -> bool | None:
    """Tell whether a version of TensorRT supports a GPU.

    Args:
        flavour: "tensorrt" or "rtx".
        version: such as "10.3.0".
        compute_capability: of the GPU, such as "8.7".

    Returns:
        bool | None: None where it is not known and has to be tried.
    """
    rows = GENERATIONS.get(flavour, ())
    row = next((row for row in rows if _within(version_numbers(version), row.since, row.until)), None)
    return row.supports(compute_capability) if row else None


def supporting(compute_capability: str) -> str:
    """Name the newest classic TensorRT that supports a GPU; "TensorRT" where the latest does, "" where none does."""
    fitting = [row for row in GENERATIONS["tensorrt"] if row.supports(compute_capability) is not False]
    if not fitting:
        return ""
    return "TensorRT" if fitting[-1].until is None and len(fitting) > 1 else f"TensorRT {fitting[-1].name}"


def supports_advised(compute_capability: str) -> bool:
    """Tell whether the newest classic TensorRT, the recommended one, supports a GPU as far as is known."""
    return GENERATIONS["tensorrt"][-1].supports(compute_capability) is not False


def no_support(flavour: str, compute_capability: str) -> str:
    """Return a short message that a flavour does not support this GPU, with what to build with instead."""
    instead = supporting(compute_capability)
    return f"{NAMES[flavour]} does not support this GPU; " + (
        f"build with {instead}" if instead else "no TensorRT that is known does, use the ONNX file"
    )


def is_checked(flavour: str, version: str) -> bool:
    """Tell whether the names that the code uses were checked against the bindings of this version."""
    return any(_within(version_numbers(version), since, until) for since, until in CHECKED.get(flavour, ()))


def untested_note(flavour: str, version: str) -> str:
    """Return a note on what was not tested with a version; "" where this project's tests build engines with it."""
    numbers = version_numbers(version)
    if any(numbers[: len(built)] == built for built in BUILT.get(flavour, ())):
        return ""
    if not is_checked(flavour, version):
        return "unproven: a version that was not checked"
    partly = "; its strong typing is complete from 10.12 only" if _within(numbers, _TYPED, _TYPED_FULLY) else ""
    return f"unproven: names checked against the bindings; never built here{partly}"


def _within(version: tuple[int, ...], since: tuple[int, ...], until: tuple[int, ...] | None) -> bool:
    return since <= version and (until is None or version < until)
