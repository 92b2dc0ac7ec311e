"""Threads that decode and compute ahead of whoever reads the answers, within a fixed number of batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from export.errors import ImageStatus, add_note
from pipeline.inference.items import Item
from pipeline.inference.pace import Pace, Stage

_ANSWERS = 2  # batches whose answers wait for their reader


class Picture(NamedTuple):
    """A slot that holds an image; see `pipeline.data.decode.Decoded`."""

    width: int
    height: int
    damage: str


class Failure(NamedTuple):
    """A slot of zeros; see `export.errors.ImageError`, whose traceback would keep the file's bytes alive."""

    status: ImageStatus
    reason: str
    size: tuple[int, int] | None = None


class Batch:
    """Consecutive items, a slot each.

    Args:
        pixels: the buffer, uint8 (slots, height, width, 3); its content belongs to the batch until it is computed.

    Attributes:
        items: those of the slots in use.
        outcomes: theirs.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.items: list[Item] = []
        self.outcomes: list[Picture | Failure] = []
        self.waiting = 0  # slots that a thread still fills
        self.closed = False  # no further item joins


_PENDING = Failure("unreadable", "not decoded yet")
A = TypeVar("A")


class Overlap(Generic[A]):
    """A context manager: threads fill batches in the items' order, another one computes them, `answers` gives them.

    Threads wait where a buffer or the reader is missing, so that memory does not grow with the number of items. They
    end when the block ends, whatever ends it; what is being decoded or computed then is waited for.

    Args:
        items: of which numbers ascend within a batch; a thread takes the next one when it has time.
        decode: fills a slot, (height, width, 3), and says what it holds; called by all decode threads.
        compute: answers a batch; called by one thread.
        buffers: uint8 (slots, height, width, 3) each; at least two, so that decoding and computing overlap.
        threads: that decode.
        pace: gets the busy times.
    """

    def __init__(
        self,
        items: Iterable[Item],
        decode: Callable[[Item, np.ndarray], Picture | Failure],
        compute: Callable[[Batch], A],
        buffers: Sequence[np.ndarray],
        threads: int,
        pace: Pace,
    ) -> None:
        self._items = iter(items)
        self._decode = decode
        self._compute = compute
        self._slots = len(buffers[0])
        self._pace = pace
        self._feed = threading.Lock()  # of the items and the batch that they join
        self._filling: Batch | None = None
        self._changed = threading.Condition()  # of everything below
        self._free = deque(buffers)
        self._batches: deque[Batch] = deque()  # in order; not computed yet
        self._answers: deque[tuple[Batch, A]] = deque()
        self._no_more_items = self._no_more_answers = self._stopped = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._decode_items,), name=f"decode-{index}", daemon=True)
            for index in range(threads)
        ]
        self._threads.append(
            threading.Thread(target=self._guarded, args=(self._compute_batches,), name="compute", daemon=True)
        )

    def __enter__(self) -> Overlap[A]:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def answers(self) -> Iterator[tuple[Batch, A]]:
        """Yield batches with their answers, in order.

        Raises:
            BaseException: what a thread raised, after the batches that were answered before.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._answers or self._no_more_answers or self._error)
                if not self._answers:
                    if self._error is not None:
                        raise self._error
                    return
                answer = self._answers.popleft()
                self._changed.notify_all()
            yield answer

    def _stop(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._stopped = True
            self._error = self._error or error
            self._changed.notify_all()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._stop(error)

    @contextmanager
    def _busy(self, stage: Stage) -> Iterator[None]:
        began = self._pace.clock()
        try:
            yield
        finally:
            self._pace.add(stage, self._pace.clock() - began)

    def _decode_items(self) -> None:
        while (taken := self._take()) is not None:
            batch, slot, item = taken
            try:
                with self._busy("decode"):
                    outcome = self._decode(item, batch.pixels[slot])
            except BaseException as error:
                add_note(error, f"It happened with {item.path}.")
                raise
            with self._changed:
                batch.outcomes[slot] = outcome
                batch.waiting -= 1
                if batch.closed and not batch.waiting:
                    self._changed.notify_all()

    def _take(self) -> tuple[Batch, int, Item] | None:
        """Give the next item its slot; None: there is no item, or the run ends."""
        with self._feed:
            if self._no_more_items or self._stopped:
                return None
            item = next(self._items, None)
            batch = self._filling
            if item is None or batch is None or item.row != batch.items[-1].row + 1:
                batch = self._begin(item is None)
            if item is None or batch is None:
                return None
            with self._changed:
                batch.items.append(item)
                batch.outcomes.append(_PENDING)
                batch.waiting += 1
                if (item.row + 1) % self._slots == 0:
                    batch.closed, self._filling = True, None
            return batch, len(batch.items) - 1, item

    def _begin(self, end: bool) -> Batch | None:
        """Close the batch that is being filled and begin the next one, unless the items end here or the run does."""
        with self._changed:
            if self._filling is not None:
                self._filling.closed, self._filling = True, None
            self._no_more_items = end
            self._changed.notify_all()
            if end:
                return None
            self._changed.wait_for(lambda: self._free or self._stopped)
            if self._stopped:
                return None
            self._filling = Batch(self._free.popleft())
            self._batches.append(self._filling)
            return self._filling

    def _compute_batches(self) -> None:
        while (batch := self._decoded()) is not None:
            with self._busy("compute"):
                answer = self._compute(batch)
            with self._changed:
                self._free.append(batch.pixels)
                self._changed.notify_all()
                self._changed.wait_for(lambda: len(self._answers) < _ANSWERS or self._stopped)
                if self._stopped:
                    return
                self._answers.append((batch, answer))
                self._changed.notify_all()
        with self._changed:
            self._no_more_answers = True
            self._changed.notify_all()

    def _decoded(self) -> Batch | None:
        """Wait for the next batch to be decoded; None: there is none, or the run ends."""

        def ready() -> bool:
            whole = bool(self._batches) and self._batches[0].closed and not self._batches[0].waiting
            return whole or self._stopped or (self._no_more_items and not self._batches)

        with self._changed:
            self._changed.wait_for(ready)
            return None if self._stopped or not self._batches else self._batches.popleft()
