"""CUDA by PyCUDA, for programs with a context of PyCUDA; without CUDA graphs, which PyCUDA does not support.

It uses the context that is current in the calling thread, as after ``import pycuda.autoinit``, or else the device's
primary context, which TensorRT, PyTorch and CuPy share. Python 3.10 syntax, numpy alone.
"""

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from export.errors import OutOfMemoryError, RunnerError
from pipeline.runners.cuda.api import RESTART, SMALLER, STICKY, CudaApi, Direction, Kind

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which PyCUDA has no name


def driver() -> ModuleType:
    """Return ``pycuda.driver``, initialised.

    Raises:
        RunnerError: PyCUDA is not installed, or there is no driver, which its import requires.
    """
    try:
        module = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise RunnerError(
            f"Expected the package pycuda and an NVIDIA driver. Received: {error}. "
            "Install it: pip install -r requirements-pycuda.txt, or choose runtime.cuda: bindings."
        ) from error
    module.init()
    return module


class PyCuda(CudaApi):
    """`CudaApi` by ``pycuda.driver``."""

    name = "PyCUDA"
    graphs = False

    def __init__(self) -> None:
        self._drv = driver()
        self._context: Any = None  # that owns the memory
        self._memory: dict[int, Any] = {}  # PyCUDA's objects, by address

    @contextmanager
    def scope(self, device: int) -> Iterator[None]:
        """Make the runner's context current in this thread for a with block, and restore the previous one after it."""
        current = self._drv.Context.get_current()
        if self._context is None:
            self._context = self._choose(current, device)
        if current is not None and current == self._context:
            yield
            return
        self._do("entering the context", self._context.push)
        try:
            yield
        finally:
            self._do("leaving the context", self._drv.Context.pop)

    def _choose(self, current: Any, device: int) -> Any:
        expected = self._do(f"choosing device {device}", self._drv.Device, device)
        if current is None:
            return self._do(f"entering device {device}", expected.retain_primary_context)
        received = self._drv.Context.get_device()
        if received != expected:
            raise RunnerError(
                f"Expected PyCUDA's current context on device {device}. Received: one on {received.name()}. "
                "Push the context of the runner's device, or set runtime.device to that of the context."
            )
        return current

    def malloc(self, nbytes: int) -> int:
        """Allocate device memory and return its address."""
        return self._keep(self._do(f"allocating {nbytes} bytes on the device", self._drv.mem_alloc, nbytes))

    def _keep(self, memory: Any, address: int | None = None) -> int:
        address = int(memory) if address is None else address
        self._memory[address] = memory
        return address

    def host_alloc(self, nbytes: int) -> int:
        """Allocate page-locked host memory and return its address."""
        array = self._do(f"pinning {nbytes} bytes of host memory", self._drv.pagelocked_empty, (nbytes,), np.uint8)
        return self._keep(array.base, array.ctypes.data)

    def release(self, kind: Kind, handle: Any) -> None:
        """Release memory; PyCUDA releases streams and events with their last reference, which is ``handle``."""
        if kind in ("device buffer", "pinned buffer"):
            self._do(f"releasing {kind.replace('buffer', 'memory')}", self._memory.pop(handle).free)

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total memory of the device in bytes."""
        free, total = self._do("asking for the free memory", self._drv.mem_get_info)
        return int(free), int(total)

    def stream_create(self) -> Any:
        """Create a stream that does not synchronize with the default stream."""
        return self._do("creating a stream", self._drv.Stream, _NON_BLOCKING)

    def stream_number(self, stream: Any) -> int:
        """Return the handle as the integer that TensorRT and DLPack take."""
        return int(stream.handle)

    def stream_synchronize(self, stream: Any) -> None:
        """Wait until the stream is idle; errors of its work are raised here."""
        self._do("waiting for the stream", stream.synchronize)

    def stream_wait_event(self, stream: Any, event: Any) -> None:
        """Make later work in the stream wait for an event."""
        self._do("letting a stream wait for an event", stream.wait_for_event, event)

    def event_create(self, timed: bool) -> Any:
        """Create an event; without timing it costs less."""
        flags = self._drv.event_flags
        return self._do("creating an event", self._drv.Event, flags.DEFAULT if timed else flags.DISABLE_TIMING)

    def event_record(self, event: Any, stream: Any) -> None:
        """Record the event after the work that is in the stream now."""
        self._do("recording an event", event.record, stream)

    def event_synchronize(self, event: Any) -> None:
        """Wait until the event has completed."""
        self._do("waiting for an event", event.synchronize)

    def event_elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the time between two timed, completed events in milliseconds."""
        return float(self._do("reading a time", end.time_since, start))

    def memcpy_async(self, target: int, source: int, nbytes: int, direction: Direction, stream: Any) -> None:
        """Queue a copy; host memory must be page-locked."""
        doing = f"copying {nbytes} bytes {direction.replace('_', ' ')}"
        if nbytes == 0:
            return
        if direction == "to_device":
            self._do(doing, self._drv.memcpy_htod_async, target, _bytes_at(source, nbytes), stream)
        elif direction == "to_host":
            self._do(doing, self._drv.memcpy_dtoh_async, _bytes_at(target, nbytes), source, stream)
        else:
            self._do(doing, self._drv.memcpy_dtod_async, target, source, nbytes, stream)

    def is_on_device(self, address: int, device: int) -> bool:
        """Whether an address is in the memory of the context's device."""
        try:
            self._drv.mem_get_address_range(address)
        except self._drv.Error:
            return False
        return True

    def wait_for_foreign_stream(self, number: int | None) -> None:
        """Wait for the whole device: PyCUDA cannot wait for a stream that it did not create."""
        self._do("waiting for the device", self._drv.Context.synchronize)

    def _do(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._drv.MemoryError as error:
            raise OutOfMemoryError(f"Expected CUDA to succeed at {doing}. Received: {error}.{SMALLER}") from error
        except self._drv.Error as error:
            sticky = any(text in str(error) for text in STICKY.values())
            raise RunnerError(
                f"Expected CUDA to succeed at {doing}. Received: {error}.{RESTART if sticky else ''}"
            ) from error


def _bytes_at(address: int, nbytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
