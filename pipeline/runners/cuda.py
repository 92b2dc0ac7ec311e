"""Device memory, pinned memory, streams and events: a thin layer over cuda-bindings (12.6 and later, 13).

Every return code is checked. Everything goes through the runtime API and so through the device's primary context,
which TensorRT uses too. cuda-bindings is imported when the first thing is made. Python 3.10 syntax, numpy alone.
"""

from __future__ import annotations

import ctypes
import logging
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any

import numpy as np

from export.driver import Device, DriverStatus, driver_status
from pipeline.errors import DeviceUnavailableError, RunnerError

__all__ = [
    "Device",
    "DeviceBuffer",
    "DriverStatus",
    "Event",
    "PinnedBuffer",
    "Stream",
    "check",
    "driver_status",
    "runtime",
    "set_device",
]

log = logging.getLogger(__name__)

# After one of these every later call in the process fails as well.
_STICKY = (
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchTimeout",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalInstruction",
    "cudaErrorMisalignedAddress",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorAssert",
    "cudaErrorECCUncorrectable",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorContained",
    "cudaErrorTensorMemoryLeak",
    "cudaErrorExternalDevice",
    "cudaErrorUnknown",
)
_NO_DEVICE = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")


def runtime() -> ModuleType:
    """Return ``cuda.bindings.runtime``.

    Raises:
        RunnerError: cuda-bindings is not installed, or too old to have it.
    """
    try:
        import cuda.bindings.runtime as module
    except ImportError as error:
        raise RunnerError(
            f"Expected the package cuda-bindings, 12.6 or later. Received: {error}. "
            "Install it: pip install -r requirements-gpu.txt."
        ) from error
    return module


def check(result: tuple[Any, ...], doing: str) -> Any:
    """Check the return code of a runtime call.

    Args:
        result: what the call returned: the code, then its values.
        doing: what was being done, for the message: "copying pixels to the device".

    Returns:
        None, the one value, or a tuple of the values.

    Raises:
        DeviceUnavailableError: the code says that there is no device, and there is no driver.
        RunnerError: any other code but success.
    """
    code, *values = result
    if int(code) == 0:
        return None if not values else values[0] if len(values) == 1 else tuple(values)
    name = getattr(code, "name", str(code))
    if name in _NO_DEVICE:
        status = driver_status()
        had = status.reason or f"driver {status.driver_version}, which runs CUDA up to {status.cuda_version}"
        message = (
            f"Expected an NVIDIA GPU and a driver for cuda-bindings' CUDA. Received: {name} while {doing}: {had}. "
            "Update the driver, or install the cuda-bindings of the CUDA version that it runs."
        )
        # A driver that is there and too old is a failure to mend, not an absent device.
        raise RunnerError(message) if status else DeviceUnavailableError(message, status.reason)
    remedy = _remedy(name)
    raise RunnerError(
        f"Expected CUDA to succeed at {doing}. Received: {name} ({int(code)}): {_describe(code)}.{remedy}"
    )


def _remedy(name: str) -> str:
    if name in _STICKY:
        return " Restart this process: after this error the GPU context takes no further work."
    if name == "cudaErrorMemoryAllocation":
        return " Use a smaller batch profile, or free the GPU's memory (see nvidia-smi)."
    return ""


def _describe(code: Any) -> str:
    try:
        error, text = runtime().cudaGetErrorString(code)
        return text.decode(errors="replace") if int(error) == 0 else "no description"
    except Exception:  # only a message: it must not replace the error that it is for
        return "no description"


def set_device(index: int) -> None:
    """Make a device the current one of this thread.

    Raises:
        RunnerError: no such device.
    """
    check(runtime().cudaSetDevice(index), f"choosing device {index}")


class _Owner(ABC):
    """Something that CUDA gave and that has to be given back; a context manager, closed once."""

    _what = "resource"
    handle: Any = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give it back. A failure is logged, not raised: it would hide the error that led here."""
        handle, self.handle = self.handle, None
        if handle is None:
            return
        try:
            check(self._release(handle), f"releasing a {self._what}")
        except RunnerError as error:
            log.warning("%s", error)

    @abstractmethod
    def _release(self, handle: Any) -> tuple[Any, ...]:
        """Call what gives the handle back; return what that returns."""

    def _open(self) -> Any:
        if self.handle is None:
            raise RunnerError(f"Expected an open {self._what}. Received: one that was closed. Make a new one.")
        return self.handle


class Stream(_Owner):
    """A CUDA stream that does not wait for the default stream."""

    _what = "stream"

    def __init__(self) -> None:
        cudart = runtime()
        self.handle = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "creating a stream")

    def __int__(self) -> int:
        """Give the handle as the number that TensorRT takes."""
        return int(self._open())

    def synchronize(self) -> None:
        """Wait until everything in the stream is done; errors of that work are raised here."""
        check(runtime().cudaStreamSynchronize(self._open()), "waiting for the stream")

    def _release(self, handle: Any) -> tuple[Any, ...]:
        return runtime().cudaStreamDestroy(handle)


class Event(_Owner):
    """A point in a stream, with a time."""

    _what = "event"

    def __init__(self) -> None:
        self.handle = check(runtime().cudaEventCreate(), "creating an event")

    def record(self, stream: Stream) -> None:
        """Put the event behind what is in the stream now."""
        check(runtime().cudaEventRecord(self._open(), stream._open()), "recording an event")

    def synchronize(self) -> None:
        """Wait until the event has happened."""
        check(runtime().cudaEventSynchronize(self._open()), "waiting for an event")

    def elapsed_ms(self, since: Event) -> float:
        """Give the time from ``since`` to this event in milliseconds; both must have happened."""
        return float(check(runtime().cudaEventElapsedTime(since._open(), self._open()), "reading a time"))

    def _release(self, handle: Any) -> tuple[Any, ...]:
        return runtime().cudaEventDestroy(handle)


class PinnedBuffer(_Owner):
    """Page-locked host memory, which the GPU copies from and to without the processor.

    Attributes:
        array: a numpy view of the memory. It must not be used after `close`.
    """

    _what = "pinned buffer"

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        cudart = runtime()
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        self.nbytes = count * kind.itemsize
        self.handle = int(check(cudart.cudaHostAlloc(self.nbytes, 0), f"pinning {self.nbytes} bytes of host memory"))
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.handle)
        self.array: np.ndarray = np.frombuffer(raw, dtype=kind, count=count).reshape(shape)

    def close(self) -> None:
        """Give the memory back and empty the view."""
        self.array = np.empty((0,), self.array.dtype)
        super().close()

    def _release(self, handle: Any) -> tuple[Any, ...]:
        return runtime().cudaFreeHost(handle)


class DeviceBuffer(_Owner):
    """Memory on the current device."""

    _what = "device buffer"

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.handle = int(check(runtime().cudaMalloc(nbytes), f"allocating {nbytes} bytes on the device"))

    def __int__(self) -> int:
        """Give the address."""
        return int(self._open())

    def upload(self, source: PinnedBuffer, nbytes: int, stream: Stream) -> None:
        """Queue a copy of the first ``nbytes`` of a pinned buffer to the device."""
        self._fits(nbytes, source)
        cudart = runtime()
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(
            cudart.cudaMemcpyAsync(self._open(), source._open(), nbytes, kind, stream._open()),
            "copying to the device",
        )

    def download(self, target: PinnedBuffer, nbytes: int, stream: Stream) -> None:
        """Queue a copy of the first ``nbytes`` to a pinned buffer; there after ``stream.synchronize()``."""
        self._fits(nbytes, target)
        cudart = runtime()
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(
            cudart.cudaMemcpyAsync(target._open(), self._open(), nbytes, kind, stream._open()),
            "copying from the device",
        )

    def _fits(self, nbytes: int, other: PinnedBuffer) -> None:
        if not 0 <= nbytes <= min(self.nbytes, other.nbytes):
            raise RunnerError(f"Expected at most {min(self.nbytes, other.nbytes)} bytes to copy. Received: {nbytes}.")

    def _release(self, handle: Any) -> tuple[Any, ...]:
        return runtime().cudaFree(handle)
