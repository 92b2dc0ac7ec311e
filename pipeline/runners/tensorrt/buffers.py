"""Buffers of an engine, several sets of them, so that copies and inference overlap.

A slot is one set: page-locked memory and device memory for each tensor, and the events of its progress. A lane is a
stream with its execution contexts. Python 3.10 syntax, numpy alone.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from export.errors import RunnerError
from export.tensorrt.sidecar import INPUT
from pipeline.runners.cuda.api import CudaApi
from pipeline.runners.cuda.resources import DeviceBuffer, Event, PinnedBuffer, Stream
from pipeline.runners.tensorrt.engine import EngineContext

log = logging.getLogger(__name__)

SLOTS = 3  # one uploads, one computes, one downloads
_PARALLEL_BYTES = 4 << 20  # below this size, starting threads takes longer than it saves
_COPY_THREADS = 4


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; ``row`` is its shape without the batch."""

    name: str
    row: tuple[int, ...]
    dtype: np.dtype

    @cached_property
    def row_bytes(self) -> int:
        """Size of one image's row in bytes."""
        return int(np.prod(self.row)) * self.dtype.itemsize


@dataclass(frozen=True)
class Lane:
    """A stream and the execution contexts that run in it, one at a time, in the same activation memory.

    Attributes:
        stream: where they run.
        context: runs any batch size.
        tuned: runs the batch sizes in ``sizes``; on TensorRT-RTX with kernels for each size, on the others it is
            ``context``.
        sizes: batch sizes.
    """

    stream: Stream
    context: EngineContext
    tuned: EngineContext
    sizes: frozenset[int]

    def run(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Queue the inference of a batch whose tensors are at these addresses."""
        context = self.tuned if batch in self.sizes else self.context
        context.prepare(batch, addresses)
        context.enqueue(self.stream)


class Slot:
    """Memory for one batch, and the events of its progress.

    Args:
        cuda: the CUDA of the runner.
        stack: releases the memory and events.
        tensors: of the engine, the input first.
        batch: maximum number of images.
    """

    def __init__(self, cuda: CudaApi, stack: ExitStack, tensors: Sequence[Tensor], batch: int) -> None:
        self.host = {t.name: stack.enter_context(PinnedBuffer(cuda, (batch, *t.row), t.dtype)) for t in tensors}
        self.device = {t.name: stack.enter_context(DeviceBuffer(cuda, batch * t.row_bytes)) for t in tensors}
        self.addresses: Mapping[str, int] = {name: int(buffer) for name, buffer in self.device.items()}
        self.uploaded = stack.enter_context(Event(cuda))
        self.computed = stack.enter_context(Event(cuda))
        self.downloaded = stack.enter_context(Event(cuda))


class BufferRing:
    """Moves batches through a GPU: page-locked memory, upload, compute, download, page-locked memory.

    Args:
        cuda: the CUDA of the runner.
        stack: releases the memory, streams and threads.
        tensors: of the engine, the input first.
        batch: maximum number of images in a slot.
        min_batch: the smallest batch of the engine; a smaller one is padded with black images.
        lanes: used in turns.
    """

    def __init__(
        self,
        cuda: CudaApi,
        stack: ExitStack,
        tensors: Sequence[Tensor],
        batch: int,
        min_batch: int,
        lanes: Sequence[Lane],
    ) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.batch = batch
        self.lanes = lanes
        self._min_batch = min_batch
        count = max(SLOTS, len(lanes) + 2)
        count += -count % len(lanes)  # each slot always runs in the same lane, whose addresses then change less often
        self.slots = [Slot(cuda, stack, tensors, batch) for _ in range(count)]
        self._up = stack.enter_context(Stream(cuda))
        self._down = stack.enter_context(Stream(cuda))
        self._copiers = stack.enter_context(ThreadPoolExecutor(_COPY_THREADS, thread_name_prefix="stage"))
        self._threads = min(_COPY_THREADS, os.cpu_count() or 1)

    def upload(self, slot: Slot, pixels: np.ndarray, pinned: bool, stream: Stream) -> int:
        """Queue the copies of a batch to the device.

        Args:
            slot: whose memory is used.
            pixels: uint8, (n, height, width, 3), n at most the batch of the slot.
            pinned: whether they are contiguous in page-locked memory, so that they are uploaded from there.
            stream: where the upload is queued.

        Returns:
            int: the batch size to run: n, or the engine's smallest.
        """
        count = len(pixels)
        batch = max(count, self._min_batch)
        staging = slot.host[INPUT].array
        if not pinned:
            self._copy(staging[:count], pixels)
            pixels = staging
        row = self.tensors[INPUT].row_bytes
        slot.device[INPUT].upload(pixels.ctypes.data, count * row, stream)
        if batch > count:
            staging[count:batch] = 0
            slot.device[INPUT].upload(staging[count:].ctypes.data, (batch - count) * row, stream, offset=count * row)
        return batch

    def download(self, slot: Slot, names: Sequence[str], count: int, stream: Stream) -> None:
        """Queue the copies of ``count`` rows of these outputs to page-locked memory."""
        for name in names:
            slot.device[name].download(slot.host[name].handle, count * self.tensors[name].row_bytes, stream)

    def run(self, pixels: np.ndarray, pinned: bool, names: Sequence[str]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Classify more images than one slot holds: uploads, inference and downloads overlap.

        Args:
            pixels: uint8, (N, height, width, 3).
            pinned: as for `upload`.
            names: outputs to fetch.

        Yields:
            Index of a batch's first image, and the batch's rows of each output, in page-locked memory: copy them
            before the next step.
        """
        running: deque[tuple[Slot, int, int]] = deque()
        for index, start in enumerate(range(0, len(pixels), self.batch)):
            slot, lane = self.slots[index % len(self.slots)], self.lanes[index % len(self.lanes)]
            if len(running) == len(self.slots):
                yield self._collect(*running.popleft(), names)
            piece = pixels[start : start + self.batch]
            batch = self.upload(slot, piece, pinned, self._up)
            slot.uploaded.record(self._up)
            lane.stream.wait(slot.uploaded)
            lane.run(batch, slot.addresses)
            slot.computed.record(lane.stream)
            self._down.wait(slot.computed)
            self.download(slot, names, len(piece), self._down)
            slot.downloaded.record(self._down)
            running.append((slot, start, len(piece)))
        while running:
            yield self._collect(*running.popleft(), names)

    @staticmethod
    def _collect(slot: Slot, start: int, count: int, names: Sequence[str]) -> tuple[int, list[np.ndarray]]:
        slot.downloaded.synchronize()
        return start, [slot.host[name].array[:count] for name in names]

    def settle(self) -> None:
        """Wait until all streams are idle after a failure, before the next call begins."""
        for stream in (self._up, *(lane.stream for lane in self.lanes), self._down):
            try:
                stream.synchronize()
            except RunnerError as error:
                log.debug("%s", error)  # the same failure, reported by each stream that it stopped

    def _copy(self, target: np.ndarray, source: np.ndarray) -> None:
        """Copy rows; many bytes in threads, because one CPU core copies slower than a GPU classifies."""
        if source.nbytes < _PARALLEL_BYTES or self._threads == 1:
            np.copyto(target, source)
            return
        parts = min(self._threads, len(source))
        list(self._copiers.map(np.copyto, np.array_split(target, parts), np.array_split(source, parts)))
