"""Dynamic batching: requests that arrive together are computed together, behind a queue of a fixed length.

Everything but the computing happens on the event loop, so there are no locks: one task collects a batch, a thread that
owns the runner computes it, and meanwhile the next requests wait in line.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from export.words import count
from pipeline.runners.base import Outputs, split_batches
from pipeline.server.errors import RequestError, busy


class Computed(NamedTuple):
    """The answer to the images of one request."""

    outputs: Outputs  # a row for each of its images
    batch: int  # images that were computed with them, theirs included
    queued: float  # seconds in line, before the runner or a thread that decodes
    seconds: float  # of the runner


class _Waiting(NamedTuple):
    pixels: np.ndarray
    answer: asyncio.Future[Computed]
    since: float


class Batcher:
    """Computes images in batches; an async context manager, which computes what is left before it ends.

    Args:
        compute: gives the outputs for uint8 (N, height, width, 3); it is called in ``thread``, never twice at a time.
        thread: an executor of one thread.
        max_batch: images that are computed at once, at most. A request with more is several, so that it takes no more
            memory, and not computed to its end when its client is gone; any other is never split.
        max_delay: seconds that the first image waits for others, at most, while nothing is computed.
        expected: whether others are on their way, for which it would wait. Defaults to: always.
        capacity: images that wait, at most.
        on_batch: is told how many images were computed. Defaults to doing nothing.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], Outputs],
        thread: Executor,
        *,
        max_batch: int,
        max_delay: float,
        capacity: int,
        expected: Callable[[], bool] = lambda: True,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._compute, self._thread = compute, thread
        self._max_batch, self._max_delay, self._capacity = max_batch, max_delay, capacity
        self._expected, self._on_batch = expected, on_batch
        self._line: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.waiting = 0  # images in line

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task

    async def submit(self, pixels: np.ndarray) -> Computed:
        """Return the answer to the images of one request.

        Args:
            pixels: uint8, (N, height, width, 3), at least one image.

        Raises:
            RequestError: 503 where the line is full; 413 where it never has room for so many.
            RunnerError: the runner failed.
        """
        images = len(pixels)
        if images > self._capacity:
            raise RequestError(
                413, f"Expected at most {count(self._capacity, 'image')} at once. Received: {images}.", "too_large"
            )
        if self._stopping or self.waiting + images > self._capacity:
            raise busy(
                f"Expected room for {count(images, 'image')} in the queue. Received: {self.waiting} of "
                f"{self._capacity} places taken. Ask again later."
            )
        futures = [self._line_up(piece) for piece in split_batches(pixels, self._max_batch)]
        self._arrived.set()
        if len(futures) == 1:
            return await futures[0]
        try:
            parts = await asyncio.gather(*futures)
        finally:  # where one failed the others are not computed any more
            for future in futures:
                future.cancel()
        logits, probabilities = (np.concatenate(rows) for rows in zip(*(part.outputs[:2] for part in parts)))
        return Computed(
            Outputs(logits, probabilities),
            max(part.batch for part in parts),
            parts[0].queued,
            sum(part.seconds for part in parts),
        )

    def _line_up(self, pixels: np.ndarray) -> asyncio.Future[Computed]:
        future: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._line.append(_Waiting(pixels, future, time.perf_counter()))
        self.waiting += len(pixels)
        return future

    async def _work(self) -> None:
        while True:
            if not await self._some():
                return
            await self._answer(self._take())

    async def _some(self) -> bool:
        """Wait until there is a batch; False at the end."""
        while not self._line:
            if self._stopping:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        until = self._line[0].since + self._max_delay
        while self.waiting < self._max_batch and not self._stopping and self._expected():
            left = until - time.perf_counter()
            if left <= 0:
                break
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        return True

    def _take(self) -> list[_Waiting]:
        """Take from the line what fits into a batch; what nobody waits for any more is left out."""
        batch: list[_Waiting] = []
        images = 0
        while self._line and (not batch or images + len(self._line[0].pixels) <= self._max_batch):
            request = self._line.popleft()
            self.waiting -= len(request.pixels)
            if not request.answer.done():  # cancelled
                batch.append(request)
                images += len(request.pixels)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        began = time.perf_counter()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
            images = len(outputs.logits)
            self._on_batch(images)
        except Exception as error:  # of this batch alone: the next is answered
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        seconds = time.perf_counter() - began
        row = 0
        for request in batch:
            rows = slice(row, row := row + len(request.pixels))
            if not request.answer.done():
                part = Outputs(outputs.logits[rows], outputs.probabilities[rows])
                request.answer.set_result(Computed(part, images, began - request.since, seconds))

    def _run(self, batch: list[_Waiting]) -> Outputs:
        pixels = batch[0].pixels if len(batch) == 1 else np.concatenate([request.pixels for request in batch])
        return self._compute(pixels)
