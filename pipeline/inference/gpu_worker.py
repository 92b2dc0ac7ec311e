"""One process of a run on several GPUs: it asks its parent for shards, classifies and writes them."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

from export.errors import OutOfMemoryError, ProjectError, RunnerError, notes
from pipeline.inference.classify import Settings, classify
from pipeline.inference.items import Item, ItemReader
from pipeline.inference.pace import Busy, Pace
from pipeline.inference.rows import Row, Rows
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Runner
from pipeline.terminal.processes import TERMINATED, Terminated, terminated_as_interrupted


class Shard(Protocol):
    """Rows that one process writes; it is sent to that process, so it can be pickled."""

    @property
    def number(self) -> int:
        """Its place among the shards."""

    @property
    def start(self) -> int:
        """Number of its first row, the first one of a batch."""

    @property
    def stop(self) -> int:
        """Number of the row after its last one."""


class ShardWriter(Protocol):
    """Writes rows of shards, one after another. One thread calls `next_row` while another one calls `write`."""

    def next_row(self, number: int) -> int:
        """Return the number of a shard's first row that is to do, the first one of a batch; the shard is not opened."""

    def write(self, rows: Rows) -> object:
        """Write the rows of one batch."""

    def close(self) -> object:
        """Bring what was written to the disk and give the shards back."""


class Work(NamedTuple):
    """What a process has open.

    Attributes:
        items: gives the items of the rows from the first number to before the second.
        reader: gives their content.
        runner: on the process's GPU.
        card: the model's card.
        settings: of this process; its threads are its part of all.
        writer: of the rows.
    """

    items: Callable[[int, int], Iterable[Item]]
    reader: ItemReader
    runner: Runner
    card: ModelCard
    settings: Settings
    writer: ShardWriter


# Called in each process with the index of its GPU and the number of its decode threads; it is pickled.
Opener = Callable[[int, int], AbstractContextManager[Work]]


class Idle(NamedTuple):
    """A process is open, or has written all its shards, and takes further ones."""

    busy: Busy  # since it said so before


class Next(NamedTuple):
    """A process has read the last item of its shard, and wants another one, while it computes these."""


class Written(NamedTuple):
    """A process wrote a batch: the number of its first row, and its rows."""

    first: int
    rows: Sequence[Row]


class Failed(NamedTuple):
    """A process ends with an error."""

    error: Exception
    lost: bool  # the error is the GPU's, so that another one may go on


class _Parent:
    """The parent as its process sees it: one thread reports rows while another one asks for shards."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        with self._lock:
            self._connection.send(message)

    def receive(self) -> Shard | None:
        shard: Shard | None = self._connection.recv()
        return shard

    def items(self, first: Shard, work: Work) -> Iterator[Item]:
        """Yield the items of a shard and of those that follow, as long as there are any."""
        shard: Shard | None = first
        while shard is not None:
            yield from work.items(work.writer.next_row(shard.number), shard.stop)
            self.send(Next())
            shard = self.receive()


def work_for(connection: Connection, gpu: int, opener: Opener, threads: int) -> None:
    """Classify shards until the parent has no more; what a process of `pipeline.inference.gpus` runs.

    Args:
        connection: to the parent.
        gpu: index of the process's GPU.
        opener: opens what it works with.
        threads: that decode.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = _Parent(connection)
    try:
        with terminated_as_interrupted():
            _classify_shards(parent, gpu, opener, threads)
    except Terminated:
        sys.exit(TERMINATED)
    except (EOFError, ConnectionError):  # the parent ended, or has no more work
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            parent.send(Failed(_portable(error), isinstance(error, RunnerError | MemoryError)))
        sys.exit(1)


def _classify_shards(parent: _Parent, gpu: int, opener: Opener, threads: int) -> None:
    with opener(gpu, threads) as work, contextlib.closing(work.writer):
        parent.send(Idle(Pace().busy()))
        while (first := parent.receive()) is not None:
            pace = Pace()
            items = parent.items(first, work)
            for rows in classify(items, work.reader, work.runner, work.card, work.settings, pace):
                work.writer.write(rows)
                parent.send(Written(rows.first, rows.rows))
            parent.send(Idle(pace.busy()))


def _portable(error: Exception) -> Exception:
    """Return what the parent raises in its place."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError("the memory is used up.")
    text = " ".join([str(error), *notes(error)])
    if isinstance(error, RunnerError):
        return RunnerError(text)
    if isinstance(error, ProjectError):
        return ProjectError(text)
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError("".join(traceback.format_exception(type(error), error, error.__traceback__)))
