"""CUDA by cuda-bindings (12.9.1 and later, 13), with every return code checked.

All calls go through the runtime API and therefore use the device's primary context, as TensorRT, PyTorch and CuPy do.
Python 3.10 syntax.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from export.errors import DeviceUnavailableError, OutOfMemoryError, RunnerError
from export.tensorrt.driver import driver_status
from pipeline.runners.cuda.api import RESTART, SMALLER, STICKY, CudaApi, Direction, Kind

NO_DEVICE = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")
_DIRECTIONS = {
    "to_device": "cudaMemcpyHostToDevice",
    "to_host": "cudaMemcpyDeviceToHost",
    "on_device": "cudaMemcpyDeviceToDevice",
}


def runtime() -> ModuleType:
    """Return ``cuda.bindings.runtime``.

    Raises:
        RunnerError: cuda-bindings is not installed, or too old to have it.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise RunnerError(
            f"Expected the package cuda-bindings, 12.9.1 or later. Received: {error}. "
            "Install it: pip install -r requirements-gpu.txt."
        ) from error


def driver_api() -> ModuleType:
    """Return ``cuda.bindings.driver``."""
    return importlib.import_module("cuda.bindings.driver")


def check(result: tuple[Any, ...], doing: str) -> Any:
    """Check the return code of a runtime call.

    Args:
        result: what the call returned: the code, then its values.
        doing: description of the call for the message, such as "copying pixels to the device".

    Returns:
        None, the only value, or a tuple of the values.

    Raises:
        DeviceUnavailableError: no device, and no driver.
        OutOfMemoryError: not enough device memory.
        RunnerError: any other error code.
    """
    code, *values = result
    if int(code) == 0:
        return None if not values else values[0] if len(values) == 1 else tuple(values)
    name = getattr(code, "name", str(code))
    if name in NO_DEVICE:
        status = driver_status()
        reason = status.reason or f"driver {status.driver_version}, which runs CUDA up to {status.cuda_version}"
        message = (
            f"Expected an NVIDIA GPU and a driver for cuda-bindings' CUDA. Received: {name} while {doing}: {reason}. "
            "Update the driver, or install the cuda-bindings of the CUDA version that it runs."
        )
        # An outdated driver is an error to fix, not a machine without a device.
        raise RunnerError(message) if status else DeviceUnavailableError(message, status.reason)
    message = f"Expected CUDA to succeed at {doing}. Received: {name} ({int(code)}): {_describe(code)}."
    if name == "cudaErrorMemoryAllocation":
        raise OutOfMemoryError(message + SMALLER)
    raise RunnerError(message + (RESTART if name in STICKY else ""))


def _describe(code: Any) -> str:
    try:
        error, text = runtime().cudaGetErrorString(code)
        return text.decode(errors="replace") if int(error) == 0 else "no description"
    except Exception:  # a failure here must not replace the error that is described
        return "no description"


class CudaBindings(CudaApi):
    """`CudaApi` by ``cuda.bindings.runtime``."""

    name = "cuda-bindings"
    graphs = True

    def __init__(self) -> None:
        self._rt, self._driver = runtime(), driver_api()
        self._kinds = {direction: getattr(self._rt.cudaMemcpyKind, name) for direction, name in _DIRECTIONS.items()}
        self._releases = {
            "device buffer": (self._rt.cudaFree, "releasing device memory"),
            "pinned buffer": (self._rt.cudaFreeHost, "releasing pinned memory"),
            "stream": (self._rt.cudaStreamDestroy, "releasing a stream"),
            "event": (self._rt.cudaEventDestroy, "releasing an event"),
            "graph": (self._rt.cudaGraphExecDestroy, "releasing a graph"),
        }

    @contextmanager
    def scope(self, device: int) -> Iterator[None]:
        """Make a device's primary context current in this thread for a with block, and restore the previous one."""
        before = check(self._rt.cudaGetDevice(), "asking for the current device")
        # cudaSetDevice replaces the current context of this thread, which may be one of PyCUDA's.
        code, context = self._driver.cuCtxGetCurrent()
        check(self._rt.cudaSetDevice(device), f"choosing device {device}")
        try:
            yield
        finally:
            if int(code) == 0 and int(context):
                check(self._driver.cuCtxSetCurrent(context), "returning to the context of before")
            elif before != device:
                check(self._rt.cudaSetDevice(before), f"returning to device {before}")

    def malloc(self, nbytes: int) -> int:
        """Allocate device memory and return its address."""
        return int(check(self._rt.cudaMalloc(nbytes), f"allocating {nbytes} bytes on the device"))

    def host_alloc(self, nbytes: int) -> int:
        """Allocate page-locked host memory and return its address."""
        return int(check(self._rt.cudaHostAlloc(nbytes, 0), f"pinning {nbytes} bytes of host memory"))

    def release(self, kind: Kind, handle: Any) -> None:
        """Release a resource."""
        free, doing = self._releases[kind]
        check(free(handle), doing)

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total memory of the device in bytes."""
        free, total = check(self._rt.cudaMemGetInfo(), "asking for the free memory")
        return int(free), int(total)

    def stream_create(self) -> Any:
        """Create a stream that does not synchronize with the default stream."""
        return check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "creating a stream")

    def stream_number(self, stream: Any) -> int:
        """Return the handle as the integer that TensorRT and DLPack take."""
        return int(stream)

    def stream_synchronize(self, stream: Any) -> None:
        """Wait until the stream is idle; errors of its work are raised here."""
        check(self._rt.cudaStreamSynchronize(stream), "waiting for the stream")

    def stream_wait_event(self, stream: Any, event: Any) -> None:
        """Make later work in the stream wait for an event."""
        check(self._rt.cudaStreamWaitEvent(stream, event, 0), "letting a stream wait for an event")

    def event_create(self, timed: bool) -> Any:
        """Create an event; without timing it costs less."""
        flags = 0 if timed else self._rt.cudaEventDisableTiming
        return check(self._rt.cudaEventCreateWithFlags(flags), "creating an event")

    def event_record(self, event: Any, stream: Any) -> None:
        """Record the event after the work that is in the stream now."""
        check(self._rt.cudaEventRecord(event, stream), "recording an event")

    def event_synchronize(self, event: Any) -> None:
        """Wait until the event has completed."""
        check(self._rt.cudaEventSynchronize(event), "waiting for an event")

    def event_elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the time between two timed, completed events in milliseconds."""
        return float(check(self._rt.cudaEventElapsedTime(start, end), "reading a time"))

    def memcpy_async(self, target: int, source: int, nbytes: int, direction: Direction, stream: Any) -> None:
        """Queue a copy; host memory must be page-locked."""
        check(
            self._rt.cudaMemcpyAsync(target, source, nbytes, self._kinds[direction], stream),
            f"copying {nbytes} bytes {direction.replace('_', ' ')}",
        )

    def is_on_device(self, address: int, device: int) -> bool:
        """Whether an address is in the memory of this device."""
        attributes = check(self._rt.cudaPointerGetAttributes(address), "asking where an array is")
        kinds = self._rt.cudaMemoryType
        on_gpu = attributes.type in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return on_gpu and int(attributes.device) == device

    def wait_for_foreign_stream(self, number: int | None) -> None:
        """Wait for another library's stream, given by its integer handle, or for the whole device (None)."""
        if number is None:
            check(self._rt.cudaDeviceSynchronize(), "waiting for the device")
        else:
            check(self._rt.cudaStreamSynchronize(number), "waiting for another library's stream")

    def capture(self, stream: Any, enqueue: Callable[[], object]) -> Any:
        """Capture the work that ``enqueue`` puts into the stream, without running it; return an executable graph."""
        # Thread-local: allocations by other threads during the capture do not concern this graph.
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(self._rt.cudaStreamBeginCapture(stream, mode), "beginning a graph")
        try:
            enqueue()
        except BaseException:
            code, graph = self._rt.cudaStreamEndCapture(stream)
            if int(code) == 0 and int(graph) != 0:
                check(self._rt.cudaGraphDestroy(graph), "releasing a recorded graph")
            self._rt.cudaGetLastError()  # clear the error of the failed capture, which the next check would raise
            raise
        graph = check(self._rt.cudaStreamEndCapture(stream), "recording a graph")
        try:
            return check(self._rt.cudaGraphInstantiate(graph, 0), "preparing a graph")
        finally:
            self._rt.cudaGraphDestroy(graph)  # unchecked: an error would hide the one above or lose the result

    def graph_launch(self, graph: Any, stream: Any) -> None:
        """Queue a graph."""
        check(self._rt.cudaGraphLaunch(graph, stream), "launching a graph")
