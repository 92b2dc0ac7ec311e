"""What the processes of several GPUs open in tests: texts as images, shards as files, and GPUs that fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from export.errors import OutOfMemoryError, ProjectError
from pipeline.inference.classify import Settings
from pipeline.inference.gpu_worker import Work
from pipeline.inference.items import Item
from pipeline.inference.output.run import open_worker
from pipeline.inference.rows import Rows
from tests.fakes.inference import CARD, TextReader, TextRunner, items

BATCH = 4


class Range(NamedTuple):
    """A shard."""

    number: int
    start: int
    stop: int


def shards(total: int, rows: int) -> list[Range]:
    return [Range(n, start, min(start + rows, total)) for n, start in enumerate(range(0, total, rows))]


class FileWriter:
    """A file of JSON lines for each shard: row number, path, status, classes, probabilities, process."""

    def __init__(self, folder: Path, gpu: int, rows: int) -> None:
        self._folder, self._gpu, self._rows = folder, gpu, rows

    def next_row(self, number: int) -> int:
        path = self._path(number)
        with open(f"{path}.claims", "a") as file:
            file.write(f"{self._gpu}\n")
        done = len(path.read_text().splitlines()) if path.exists() else 0
        return number * self._rows + done

    def write(self, rows: Rows) -> None:
        lines = [
            json.dumps([rows.first + n, row.path, row.status, row.classes, row.probabilities])
            for n, row in enumerate(rows.rows)
        ]
        with self._path(rows.first // self._rows).open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        (self._folder / f"closed-{self._gpu}").touch()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}"


def written(folder: Path) -> list[list[object]]:
    """The rows of all shards in order."""
    files = sorted(path for path in folder.iterdir() if path.name.isdecimal())
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class FileWork:
    """Opens it, see `pipeline.inference.gpu_worker.Opener`.

    Attributes:
        folder: of the shards.
        kinds: of the images, see `tests.fakes.inference.items`.
        fault: what a GPU does at an image of a 4: "kill", "hang", "memory", "refuse", "disk", "bug"; or at the start:
            "open", "sleep".
        of: the GPUs that do it; the others do not.
        seconds: of a batch.
        together: number of processes that have to be there before one begins.
        rows: of a shard.
    """

    folder: Path
    kinds: Sequence[int | str]
    fault: str = ""
    of: tuple[int, ...] = ()
    seconds: float = 0.0
    together: int = 1
    rows: int = 8

    @contextlib.contextmanager
    def __call__(self, gpu: int, threads: int) -> Iterator[Work]:
        (self.folder / f"process-{gpu}").write_text(str(os.getpid()))
        (self.folder / f"threads-{gpu}").write_text(str(threads))
        while len(list(self.folder.glob("process-*"))) < self.together:
            time.sleep(0.01)
        fault = self.fault if gpu in self.of else ""
        if fault == "open":
            raise OutOfMemoryError("nothing is free.")
        if fault == "sleep":
            time.sleep(60)

        def compute(values: list[int]) -> None:
            time.sleep(self.seconds)
            if 4 in values:
                fail(fault)

        def of_rows(start: int, stop: int) -> Iterator[Item]:
            return items(self.kinds[start:stop], start)

        settings = Settings(BATCH, 2, decode_threads=threads)
        yield Work(
            of_rows, TextReader(), TextRunner(compute=compute), CARD, settings, FileWriter(self.folder, gpu, self.rows)
        )


@dataclass(frozen=True)
class RunWork:
    """Opens what writes the shards of a run's folder, as on a machine with GPUs.

    Attributes:
        folder: of the run.
        kinds: of the images, see `tests.fakes.inference.items`.
    """

    folder: Path
    kinds: Sequence[int | str]

    @contextlib.contextmanager
    def __call__(self, gpu: int, threads: int) -> Iterator[Work]:
        def of_rows(start: int, stop: int) -> Iterator[Item]:
            return items(self.kinds[start:stop], start)

        settings = Settings(BATCH, 2, decode_threads=threads)
        yield Work(of_rows, TextReader(), TextRunner(), CARD, settings, open_worker(self.folder))


def fail(fault: str) -> None:
    if fault == "hang":
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # the one that listed them
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):  # its pipe
                    os.close(descriptor)
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "memory":
        raise OutOfMemoryError("the batch does not fit.")
    if fault == "refuse":
        raise ProjectError("Expected another model.")
    if fault == "disk":
        raise OSError(28, "No space left on device", "/full")
    if fault == "bug":
        raise ZeroDivisionError("a bug")
