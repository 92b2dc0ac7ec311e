"""Owners of CUDA streams, events, graphs and memory, which release them. Python 3.10 syntax, numpy alone."""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from export.errors import RunnerError
from pipeline.runners.cuda.api import CudaApi, Direction, Kind

log = logging.getLogger(__name__)

_Self = TypeVar("_Self", bound="_Owner")


class _Owner:
    """A CUDA resource that is released once, by `close` or at the end of a with block.

    Args:
        cuda: the CUDA that created it.
        handle: of the resource.
    """

    _kind: Kind

    def __init__(self, cuda: CudaApi, handle: Any) -> None:
        self.cuda = cuda
        self._handle = handle

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """The handle of the resource.

        Raises:
            RunnerError: it was released.
        """
        if self._handle is None:
            raise RunnerError(f"Expected an open {self._kind}. Received: one that was closed. Make a new one.")
        return self._handle

    def close(self) -> None:
        """Release the resource. A failure is logged, not raised: it would hide the error that led here."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            self.cuda.release(self._kind, handle)
        except RunnerError as error:
            log.warning("%s", error)


class Stream(_Owner):
    """A CUDA stream that does not synchronize with the default stream."""

    _kind = "stream"

    def __init__(self, cuda: CudaApi) -> None:
        super().__init__(cuda, cuda.stream_create())

    def __int__(self) -> int:
        """Return the handle as the integer that TensorRT takes."""
        return self.cuda.stream_number(self.handle)

    def synchronize(self) -> None:
        """Wait until the stream is idle; errors of its work are raised here."""
        self.cuda.stream_synchronize(self.handle)

    def wait(self, event: Event) -> None:
        """Make later work in the stream wait for an event."""
        self.cuda.stream_wait_event(self.handle, event.handle)


class Event(_Owner):
    """A point in a stream, optionally with a time."""

    _kind = "event"

    def __init__(self, cuda: CudaApi, timed: bool = False) -> None:
        super().__init__(cuda, cuda.event_create(timed))

    def record(self, stream: Stream) -> None:
        """Record the event after the work that is in the stream now."""
        self.cuda.event_record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the event has completed."""
        self.cuda.event_synchronize(self.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Return the time from ``since`` to this event in milliseconds; both must have completed."""
        return self.cuda.event_elapsed_ms(since.handle, self.handle)


class Graph(_Owner):
    """A CUDA graph: work that was captured from a stream and is launched with one call.

    Args:
        cuda: with `CudaApi.graphs`.
        stream: nothing else may use it during the capture.
        enqueue: puts the work into the stream.
    """

    _kind = "graph"

    def __init__(self, cuda: CudaApi, stream: Stream, enqueue: Callable[[], object]) -> None:
        collects = gc.isenabled()
        gc.disable()  # a finaliser of another library that calls CUDA in this thread would break the capture
        try:
            super().__init__(cuda, cuda.capture(stream.handle, enqueue))
        finally:
            if collects:
                gc.enable()

    def launch(self, stream: Stream) -> None:
        """Queue the work."""
        self.cuda.graph_launch(self.handle, stream.handle)


class PinnedBuffer(_Owner):
    """Page-locked host memory, which the GPU reads and writes without the CPU.

    Attributes:
        array: a numpy view of the memory. It must not be used after `close`.
    """

    _kind = "pinned buffer"

    def __init__(self, cuda: CudaApi, shape: tuple[int, ...], dtype: Any) -> None:
        count = int(np.prod(shape))
        self.nbytes = count * np.dtype(dtype).itemsize
        super().__init__(cuda, cuda.host_alloc(self.nbytes))
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.handle)
        self.array: np.ndarray = np.frombuffer(raw, dtype=dtype, count=count).reshape(shape)

    def close(self) -> None:
        """Release the memory and empty the view."""
        self.array = np.empty((0,), self.array.dtype)
        super().close()


class DeviceBuffer(_Owner):
    """Memory on the current device; its address is a multiple of 256, as TensorRT requires."""

    _kind = "device buffer"

    def __init__(self, cuda: CudaApi, nbytes: int) -> None:
        self.nbytes = nbytes
        super().__init__(cuda, cuda.malloc(nbytes))

    def __int__(self) -> int:
        """Return the address."""
        return int(self.handle)

    def upload(self, source: int, nbytes: int, stream: Stream, offset: int = 0) -> None:
        """Queue a copy from an address in page-locked host memory to ``offset`` bytes after the start."""
        self._copy(self.handle + offset, source, nbytes, "to_device", stream, offset)

    def download(self, target: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy to an address in page-locked host memory, complete after ``stream.synchronize()``."""
        self._copy(target, self.handle, nbytes, "to_host", stream)

    def fill_from(self, source: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy from another address on the device."""
        self._copy(self.handle, source, nbytes, "on_device", stream)

    def copy_to(self, target: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy to another address on the device."""
        self._copy(target, self.handle, nbytes, "on_device", stream)

    def _copy(
        self, target: int, source: int, nbytes: int, direction: Direction, stream: Stream, offset: int = 0
    ) -> None:
        if not 0 <= offset + nbytes <= self.nbytes:
            raise RunnerError(f"Expected at most {self.nbytes} bytes to copy. Received: {offset + nbytes}.")
        self.cuda.memcpy_async(target, source, nbytes, direction, stream.handle)
