"""Several GPUs of one machine: a process for each, which takes shards until none is left.

The parent hands the shards out and counts. A process that ends before its shard does, killed or out of memory, gives it
back: another one goes on with it from the first row that is not on the disk. The processes end with the parent: its
pipes are how they get work, and they end when these close.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from export.errors import ProjectError, RunnerError
from export.words import count, listed
from pipeline.inference.gpu_worker import Failed, Idle, Next, Opener, Shard, Written, work_for
from pipeline.inference.pace import Pace
from pipeline.inference.rows import Row

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 10.0  # for a process to write what it has, before it is killed
_MOST_LOSSES: Final = 2  # processes that one shard may cost: the fault is the shard's then


def parse_gpus(text: str, devices: int) -> tuple[int, ...]:
    """Return the GPUs that ``--gpus`` names, in that order.

    Args:
        text: "all", or indices with commas between, such as "0,1".
        devices: number of GPUs of this machine.

    Raises:
        ProjectError: it names none, one twice, or one that this machine has not.
    """
    if not devices:
        raise ProjectError(f"Expected GPUs for --gpus {text}. Received: a machine without any. Leave the option out.")
    if text.strip() == "all":
        return tuple(range(devices))
    there = f"this machine has {count(devices, 'GPU')}: {listed(range(devices), most=16)}"
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise ProjectError(f'Expected --gpus "all", or numbers as in "0,1". Received: {text!r}; {there}.')
    indices = tuple(map(int, words))
    if unknown := [index for index in indices if index >= devices]:
        raise ProjectError(f"Expected --gpus with GPUs of this machine. Received: {listed(unknown)}; {there}.")
    if len(set(indices)) != len(indices):
        raise ProjectError(f"Expected --gpus with each GPU once. Received: {text!r}.")
    return indices


def divide_threads(threads: int, processes: int) -> tuple[int, ...]:
    """Return the decode threads of each process: all of them together, at least one each."""
    each, more = divmod(threads, processes)
    return tuple(max(1, each + (index < more)) for index in range(processes))


def run_on_gpus(
    gpus: Sequence[int],
    shards: Sequence[Shard],
    opener: Opener,
    threads: int,
    pace: Pace,
    on_rows: Callable[[Sequence[Row]], object],
) -> int:
    """Classify shards by a process for each GPU; the rows are those of one process, whichever wrote them.

    Args:
        gpus: their indices.
        shards: with rows to do; none begins or ends within a batch, apart from the last one's end.
        opener: opens what a process needs; it is pickled.
        threads: that decode, in all processes together.
        pace: gets the busy times of all processes.
        on_rows: called with the rows of each batch when they are written.

    Returns:
        int: number of processes.

    Raises:
        ProjectError: a process failed, or none is left; what was written stays.
        Exception: what else a process raised.
    """
    gpus = gpus[: len(shards)]
    with _Crew(shards, pace, on_rows) as crew:
        for gpu, own in zip(gpus, divide_threads(threads, len(gpus))):
            crew.start(gpu, opener, own)
        crew.run()
    return len(gpus)


class _Worker:
    """A process as the parent sees it."""

    def __init__(self, gpu: int, process: Any, connection: Connection) -> None:
        self.gpu, self.process, self.connection = gpu, process, connection
        self.shards: deque[Shard] = deque()  # handed to it and not written yet, in that order
        self.idle = False
        self.failure: Exception | None = None

    def give(self, shard: Shard | None) -> None:
        """Send a shard, or None: there is none now. A process that has ended is noticed by its end."""
        if shard is not None:
            self.shards.append(shard)
            self.idle = False
        with contextlib.suppress(OSError):
            self.connection.send(shard)

    def messages(self) -> Iterator[object]:
        """Yield what it has sent; the connection is closed at its end."""
        while True:
            try:
                if not self.connection.poll():
                    return
                message = self.connection.recv()
            except (EOFError, OSError):
                self.connection.close()
                return
            yield message

    @property
    def why(self) -> str:
        """Why it ended."""
        return str(self.failure or _how_it_ended(self.process.exitcode))

    def check_end(self) -> None:
        """Raise its error if it failed after its last row, while it brought its shards to the disk."""
        if self.failure is not None:
            raise self.failure
        if self.process.exitcode != 0:
            raise RunnerError(
                f"Expected the process on GPU {self.gpu} to bring its rows to the disk. Received: {self.why} "
                "The same command goes on from what is there."
            )

    def written(self, first: int, rows: int) -> None:
        """Drop the shards that end before these rows or with them."""
        while self.shards and not self.shards[0].start <= first < self.shards[0].stop:
            self.shards.popleft()
        if self.shards and first + rows >= self.shards[0].stop:
            self.shards.popleft()


class _Crew:
    """A context manager of the processes: they end with the block."""

    def __init__(self, shards: Sequence[Shard], pace: Pace, on_rows: Callable[[Sequence[Row]], object]) -> None:
        self._waiting = deque(shards)
        self._pace = pace
        self._on_rows = on_rows
        self._workers: list[_Worker] = []
        self._losses: Counter[int] = Counter()  # by the shard's number
        self._all_written = False

    def __enter__(self) -> _Crew:
        return self

    def start(self, gpu: int, opener: Opener, threads: int) -> None:
        """Start the process of a GPU."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work_for, args=(theirs, gpu, opener, threads), name=f"infer on GPU {gpu}", daemon=True
        )
        worker = _Worker(gpu, process, ours)
        with _without_interrupts():
            process.start()
        theirs.close()
        self._workers.append(worker)

    def run(self) -> None:
        """Hand out the shards until all are written."""
        while self._waiting or not all(worker.idle for worker in self._workers):
            self._hand_out()
            self._listen_to_all()
        self._all_written = True
        self._pace.stop()
        for worker in self._workers:
            worker.give(None)  # it closes its writer, which may fail
        while self._workers:
            self._listen_to_all()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.idle and self._waiting:
                worker.give(self._waiting.popleft())

    def _listen_to_all(self) -> None:
        """Wait for a message of any process, or for its end."""
        ends: dict[Any, _Worker] = {}
        for worker in self._workers:
            ends |= {worker.connection: worker, worker.process.sentinel: worker}
        for worker in dict.fromkeys(ends[end] for end in wait(list(ends))):
            self._listen(worker)

    def _listen(self, worker: _Worker) -> None:
        ended = not worker.process.is_alive()  # asked before its last messages are read
        for message in worker.messages():
            self._answer(worker, message)
        if ended or worker.connection.closed:
            self._workers.remove(worker)
            worker.connection.close()
            worker.process.join(GRACE_SECONDS)
            if worker.process.is_alive():  # it hangs, with its pipe closed, and holds its GPU and its shard
                worker.process.kill()
                worker.process.join()
            if self._all_written:
                worker.check_end()
            else:
                self._replace(worker)

    def _answer(self, worker: _Worker, message: object) -> None:
        if isinstance(message, Idle):
            self._pace.start()
            self._pace.merge(message.busy)
            worker.shards.clear()
            worker.idle = True
        elif isinstance(message, Next):
            worker.give(self._waiting.popleft() if self._waiting else None)
        elif isinstance(message, Written):
            worker.written(message.first, len(message.rows))
            self._on_rows(message.rows)
        elif isinstance(message, Failed):
            worker.failure = message.error
            if not message.lost:
                raise message.error

    def _replace(self, worker: _Worker) -> None:
        """Give the shards of a process that ended to the others."""
        why = worker.why
        if worker.shards:
            first = worker.shards[0]
            self._losses[first.number] += 1
            if self._losses[first.number] >= _MOST_LOSSES:
                raise RunnerError(
                    f"Expected rows {first.start:,} to {first.stop - 1:,} to be classified. Received: "
                    f"{count(_MOST_LOSSES, 'process', 'processes')} ended with them, the last on GPU {worker.gpu}: "
                    f"{why} What was written stays; a smaller batch needs less memory."
                )
        self._waiting.extendleft(reversed(worker.shards))
        if not self._workers:
            raise RunnerError(
                f"Expected a GPU that classifies. Received: none is left; GPU {worker.gpu}: {why} "
                "What was written stays; the same command goes on from there."
            )
        if self._waiting or worker.shards:
            log.warning("GPU %d does no more: %s The other GPUs take over.", worker.gpu, why)

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:  # one that waits for a shard ends here
            worker.connection.close()
        if exc[0] is not None:
            for worker in self._workers:
                worker.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}."
    return f"its process ended with status {status}."


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C from their first instruction on: the parent decides when they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
