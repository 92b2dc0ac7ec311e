"""Streams, events, graphs and memory, each an object that gives back what CUDA gave; by `pipeline.runners.cuda.api`.

Python 3.10 syntax, numpy alone.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from export.errors import RunnerError
from pipeline.runners.cuda.api import CudaApi, Kind

log = logging.getLogger(__name__)


_Self = TypeVar("_Self", bound="_Owner")


class _Owner:
    """Something that CUDA gave and that has to be given back; a context manager, closed once.

    Args:
        cuda: who gave it.
        handle: what it gave.
    """

    _what: Kind

    def __init__(self, cuda: CudaApi, handle: Any) -> None:
        self.cuda = cuda
        self._handle = handle

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """What CUDA gave; refused once it was given back."""
        if self._handle is None:
            raise RunnerError(f"Expected an open {self._what}. Received: one that was closed. Make a new one.")
        return self._handle

    def close(self) -> None:
        """Give it back. A failure is logged, not raised: it would hide the error that led here."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            self.cuda.release(self._what, handle)
        except RunnerError as error:
            log.warning("%s", error)


class Stream(_Owner):
    """A CUDA stream that does not wait for the default stream."""

    _what = "stream"

    def __init__(self, cuda: CudaApi) -> None:
        super().__init__(cuda, cuda.stream_create())

    def __int__(self) -> int:
        """Give the handle as the number that TensorRT takes."""
        return self.cuda.stream_number(self.handle)

    def synchronize(self) -> None:
        """Wait until everything in the stream is done; errors of that work are raised here."""
        self.cuda.stream_synchronize(self.handle)

    def wait(self, event: Event) -> None:
        """Let what is put into the stream from now on wait for an event."""
        self.cuda.stream_wait_event(self.handle, event.handle)


class Event(_Owner):
    """A point in a stream; with a time, if asked for."""

    _what = "event"

    def __init__(self, cuda: CudaApi, timed: bool = False) -> None:
        super().__init__(cuda, cuda.event_create(timed))

    def record(self, stream: Stream) -> None:
        """Put the event behind what is in the stream now."""
        self.cuda.event_record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the event has happened."""
        self.cuda.event_synchronize(self.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Give the time from ``since`` to this event in milliseconds; both must have happened."""
        return self.cuda.event_elapsed_ms(since.handle, self.handle)


class Graph(_Owner):
    """Work of a stream that was recorded and is launched with one call.

    Args:
        cuda: with `CudaApi.graphs`.
        stream: nothing else may use it meanwhile.
        enqueue: puts the work into the stream.
    """

    _what = "graph"

    def __init__(self, cuda: CudaApi, stream: Stream, enqueue: Callable[[], object]) -> None:
        collects = gc.isenabled()
        gc.disable()  # a finaliser of another library that calls CUDA in this thread would spoil the recording
        try:
            super().__init__(cuda, cuda.capture(stream.handle, enqueue))
        finally:
            if collects:
                gc.enable()

    def launch(self, stream: Stream) -> None:
        """Queue the work."""
        self.cuda.graph_launch(self.handle, stream.handle)


class PinnedBuffer(_Owner):
    """Page-locked host memory, which the GPU copies from and to without the processor.

    Attributes:
        array: a numpy view of the memory. It must not be used after `close`.
    """

    _what = "pinned buffer"

    def __init__(self, cuda: CudaApi, shape: tuple[int, ...], dtype: Any) -> None:
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        self.nbytes = count * kind.itemsize
        super().__init__(cuda, cuda.host_alloc(self.nbytes))
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.handle)
        self.array: np.ndarray = np.frombuffer(raw, dtype=kind, count=count).reshape(shape)

    def close(self) -> None:
        """Give the memory back and empty the view."""
        self.array = np.empty((0,), self.array.dtype)
        super().close()


class DeviceBuffer(_Owner):
    """Memory on the current device; its address is a multiple of 256, as TensorRT wants it."""

    _what = "device buffer"

    def __init__(self, cuda: CudaApi, nbytes: int) -> None:
        self.nbytes = nbytes
        super().__init__(cuda, cuda.malloc(nbytes))

    def __int__(self) -> int:
        """Give the address."""
        return int(self.handle)

    def upload(self, source: int, nbytes: int, stream: Stream, offset: int = 0) -> None:
        """Queue a copy from an address in page-locked host memory to ``offset`` bytes behind the start."""
        self._fits(offset + nbytes)
        self.cuda.memcpy_async(self.handle + offset, source, nbytes, "to_device", stream.handle)

    def download(self, target: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy to an address in page-locked host memory; there after ``stream.synchronize()``."""
        self._fits(nbytes)
        self.cuda.memcpy_async(target, self.handle, nbytes, "to_host", stream.handle)

    def fill_from(self, source: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy from another address on the device."""
        self._fits(nbytes)
        self.cuda.memcpy_async(self.handle, source, nbytes, "on_device", stream.handle)

    def copy_to(self, target: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy to another address on the device."""
        self._fits(nbytes)
        self.cuda.memcpy_async(target, self.handle, nbytes, "on_device", stream.handle)

    def _fits(self, nbytes: int) -> None:
        if not 0 <= nbytes <= self.nbytes:
            raise RunnerError(f"Expected at most {self.nbytes} bytes to copy. Received: {nbytes}.")
