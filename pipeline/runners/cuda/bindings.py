"""CUDA by cuda-bindings (12.9.1 and later, 13), with every return code checked.

Everything goes through the runtime API and so through the device's primary context, which TensorRT, PyTorch and CuPy
use too. Python 3.10 syntax.
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
        doing: what was being done, for the message: "copying pixels to the device".

    Returns:
        None, the one value, or a tuple of the values.

    Raises:
        DeviceUnavailableError: the code says that there is no device, and there is no driver.
        OutOfMemoryError: the device has not the memory.
        RunnerError: any other code but success.
    """
    code, *values = result
    if int(code) == 0:
        return None if not values else values[0] if len(values) == 1 else tuple(values)
    name = getattr(code, "name", str(code))
    if name in NO_DEVICE:
        status = driver_status()
        had = status.reason or f"driver {status.driver_version}, which runs CUDA up to {status.cuda_version}"
        message = (
            f"Expected an NVIDIA GPU and a driver for cuda-bindings' CUDA. Received: {name} while {doing}: {had}. "
            "Update the driver, or install the cuda-bindings of the CUDA version that it runs."
        )
        # A driver that is there and too old is a failure to mend, not an absent device.
        raise RunnerError(message) if status else DeviceUnavailableError(message, status.reason)
    message = f"Expected CUDA to succeed at {doing}. Received: {name} ({int(code)}): {_describe(code)}."
    if name == "cudaErrorMemoryAllocation":
        raise OutOfMemoryError(message + SMALLER)
    raise RunnerError(message + (RESTART if name in STICKY else ""))


def _describe(code: Any) -> str:
    try:
        error, text = runtime().cudaGetErrorString(code)
        return text.decode(errors="replace") if int(error) == 0 else "no description"
    except Exception:  # only a message: it must not replace the error that it is for
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
        """Make a device's primary context current in this thread for a with block; afterwards it is as it was."""
        before = check(self._rt.cudaGetDevice(), "asking for the current device")
        # cudaSetDevice puts the primary context in the place of one that PyCUDA, say, has made current here.
        code, context = self._driver.cuCtxGetCurrent()
        found = int(context) if int(code) == 0 else 0
        check(self._rt.cudaSetDevice(device), f"choosing device {device}")
        try:
            yield
        finally:
            if found:
                check(self._driver.cuCtxSetCurrent(context), "returning to the context of before")
            elif before != device:
                check(self._rt.cudaSetDevice(before), f"returning to device {before}")

    def malloc(self, nbytes: int) -> int:
        """Allocate device memory; give its address."""
        return int(check(self._rt.cudaMalloc(nbytes), f"allocating {nbytes} bytes on the device"))

    def host_alloc(self, nbytes: int) -> int:
        """Allocate page-locked host memory; give its address."""
        return int(check(self._rt.cudaHostAlloc(nbytes, 0), f"pinning {nbytes} bytes of host memory"))

    def release(self, kind: Kind, handle: Any) -> None:
        """Give back what was given."""
        free, doing = self._releases[kind]
        check(free(handle), doing)

    def memory_info(self) -> tuple[int, int]:
        """Give the free and the total memory of the device in bytes."""
        free, total = check(self._rt.cudaMemGetInfo(), "asking for the free memory")
        return int(free), int(total)

    def stream_create(self) -> Any:
        """Make a stream that does not wait for the default stream."""
        return check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "creating a stream")

    def stream_number(self, stream: Any) -> int:
        """Give the handle as the number that TensorRT and DLPack take."""
        return int(stream)

    def stream_synchronize(self, stream: Any) -> None:
        """Wait until everything in the stream is done; errors of that work are raised here."""
        check(self._rt.cudaStreamSynchronize(stream), "waiting for the stream")

    def stream_wait_event(self, stream: Any, event: Any) -> None:
        """Let what is put into the stream from now on wait for an event."""
        check(self._rt.cudaStreamWaitEvent(stream, event, 0), "letting a stream wait for an event")

    def event_create(self, timed: bool) -> Any:
        """Make an event; untimed ones cost less."""
        flags = 0 if timed else self._rt.cudaEventDisableTiming
        return check(self._rt.cudaEventCreateWithFlags(flags), "creating an event")

    def event_record(self, event: Any, stream: Any) -> None:
        """Put the event behind what is in the stream now."""
        check(self._rt.cudaEventRecord(event, stream), "recording an event")

    def event_synchronize(self, event: Any) -> None:
        """Wait until the event has happened."""
        check(self._rt.cudaEventSynchronize(event), "waiting for an event")

    def event_elapsed_ms(self, start: Any, end: Any) -> float:
        """Give the time between two timed events that have happened, in milliseconds."""
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
        """Wait for another library's stream, given as its number, or for the whole device (None)."""
        if number is None:
            check(self._rt.cudaDeviceSynchronize(), "waiting for the device")
        else:
            check(self._rt.cudaStreamSynchronize(number), "waiting for another library's stream")

    def capture(self, stream: Any, enqueue: Callable[[], object]) -> Any:
        """Record what this thread puts into the stream, instead of running it; give a graph that can be launched."""
        # Of this thread: what other threads allocate meanwhile is no concern of this graph.
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(self._rt.cudaStreamBeginCapture(stream, mode), "beginning a graph")
        try:
            enqueue()
        except BaseException:
            self._abort_capture(stream)
            raise
        graph = check(self._rt.cudaStreamEndCapture(stream), "recording a graph")
        try:
            return check(self._rt.cudaGraphInstantiate(graph, 0), "preparing a graph")
        finally:
            self._rt.cudaGraphDestroy(graph)  # a failure would show again at the next call; the graph must not be lost

    def _abort_capture(self, stream: Any) -> None:
        """End a recording that failed, whatever state it is in."""
        code, graph = self._rt.cudaStreamEndCapture(stream)
        if int(code) == 0 and int(graph) != 0:
            check(self._rt.cudaGraphDestroy(graph), "releasing a recorded graph")
        self._rt.cudaGetLastError()  # a broken capture leaves its error behind; the next check must not find it

    def graph_launch(self, graph: Any, stream: Any) -> None:
        """Queue a graph."""
        check(self._rt.cudaGraphLaunch(graph, stream), "launching a graph")
