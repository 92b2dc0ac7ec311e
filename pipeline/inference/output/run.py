"""A run's folder: rows are neither lost nor written twice, whatever ends the process.

The folder ``predictions.csv.run`` lies beside the output ``predictions.csv``. The process that writes holds the lock
on ``lock`` in it, which also says that the folder is one of ours; ``run.json`` says what the rows are of. The same
command continues them; once all are there, they are joined to the output and the folder is removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from export.errors import ProjectError
from export.files import DISK_FULL, add_path, refuse_long_name
from pipeline.artifacts.files import escape_undecodable, write_json
from pipeline.inference.output.folder import holding, remove_folder, remove_inside, run_folder, take_folder
from pipeline.inference.output.join import DamagedShardError, join
from pipeline.inference.output.layout import INPUTS, LOCK, RECORD, SHARD_NAME, Layout, Shard
from pipeline.inference.output.places import is_locked, size_of
from pipeline.inference.output.record import (
    RunRecord,
    Value,
    changes,
    read_run,
    say_continued,
    say_dropped,
    say_kept,
)
from pipeline.inference.output.shards import ShardWriter
from pipeline.inference.output.spec import OutputSpec, require_parquet
from pipeline.inference.rows import STATUSES, Rows

log = logging.getLogger(__name__)


class RunFolder:
    """The folder of a run, held by this process until the block ends; made by `RunFolder.take`.

    Where an error ends the block, a note tells how many rows are kept; without a row the folder is removed.

    Attributes:
        output: the final file.
        path: the folder.
        inputs: a folder in it for the caller, empty at first, which goes with it.
    """

    def __init__(self, output: Path, lock: int) -> None:
        self.output = output
        self.path = run_folder(output)
        self.inputs = self.path / INPUTS
        self._lock = lock
        self._spec: OutputSpec | None = None
        self._record: RunRecord | None = None
        self._writer: ShardWriter | None = None
        self._is_over = False
        self._others = contextlib.ExitStack()

    @classmethod
    def take(cls, output: Path, others: Mapping[str, Path] | None = None) -> RunFolder:
        """Make the folder of an output, or open the one of an earlier run, and lock it.

        Args:
            output: the final file.
            others: by the option that names it, what else the run writes; it is locked too. Defaults to None: nothing.

        Raises:
            ProjectError: Another process writes one of these, two of them are one, a name is too long, or what is there
                is no folder of an earlier run.
        """
        outputs = {"-o": output, **(others or {})}
        _refuse_the_same(outputs)
        for option, path in outputs.items():
            refuse_long_name(path, option)
        try:
            run = cls(output, take_folder(run_folder(output), output))
            try:
                for option, path in (others or {}).items():
                    run._others.enter_context(holding(path, option))
                remove_inside(run.path, INPUTS)
                run.inputs.mkdir(mode=0o700)
            except BaseException as error:
                run.__exit__(type(error), error, None)
                raise
        except OSError as error:
            add_path(error, output)
            raise
        return run

    def begin(
        self,
        identity: Mapping[str, Value],
        total: int,
        shard_rows: int,
        spec: OutputSpec,
        *,
        kept: str = "",
        fresh: bool = False,
    ) -> Mapping[str, Value]:
        """Continue the rows that are there if they are of the same identity, else begin anew and say what changed.

        Args:
            identity: what decides the rows; its keys are words for the message. Values of more than 24 characters are
                not shown.
            total: rows of the run.
            shard_rows: rows of a shard; whole batches.
            spec: what is written.
            kept: the key whose former value stays where the run is continued, if both values are true. Defaults to "":
                none.
            fresh: whether to begin anew in any case. Defaults to False.

        Returns:
            Mapping[str, Value]: the identity of the rows.

        Raises:
            ProjectError: The record of the earlier run cannot be read, or a process of it still writes.
        """
        if shard_rows < 1 or total < 0:
            raise ValueError(f"Expected shards of at least one row. Received: total={total}, shard_rows={shard_rows}.")
        if spec.format == "parquet" or spec.embeddings is not None:
            require_parquet()
        texts = {escape_undecodable(k): escape_undecodable(v) if isinstance(v, str) else v for k, v in identity.items()}
        record = RunRecord(
            identity=texts,
            token=secrets.token_hex(8),
            started=time.strftime("%Y-%m-%d %H:%M:%S"),
            total=total,
            shard_rows=shard_rows,
            format=spec.format,
            top_k=spec.top_k,
            csv_safe=spec.csv_safe,
            has_embeddings=spec.embeddings is not None,
        )
        self._spec = spec
        former = None if fresh else read_run(self.path)
        as_former = record if former is None else record.keeping(kept, former)
        if former is not None and former.decides() == as_former.decides():
            self._continue(former)
            return former.identity
        self._begin_anew(record, former, changes(former, as_former) if former else "")
        return texts

    @property
    def done(self) -> int:
        """How many rows are on the disk, those of processes that write beside this one included."""
        return sum(shard.done for shard in self._shards())

    def unfinished(self) -> list[Shard]:
        """Return the shards that lack rows."""
        return [shard for shard in self._shards() if shard.next < shard.stop]

    def write(self, rows: Rows) -> None:
        """Write a batch, the next one of its shard; see `ShardWriter.write`."""
        self._begun()
        assert self._writer is not None
        self._writer.write(rows)

    def counts(self) -> dict[str, int]:
        """Return how many rows on the disk have each status, those of earlier processes included."""
        layout = self._begun().layout(self.path)
        total = Counter[str]()
        for number in range(layout.shards):
            total.update(dict(zip(STATUSES, layout.last_mark(number).counts)))
        return {status: total[status] for status in STATUSES if total[status]}

    def finish(self, then: Callable[[], object] | None = None) -> dict[str, int]:
        """Join the shards to the final files and remove the folder.

        Args:
            then: called when the final files are there; the folder stays until it has returned. Defaults to None.

        Returns:
            dict[str, int]: how many rows have each status, see `counts`.

        Raises:
            ProjectError: A shard changed on the disk; its rows are dropped, and the same command does them anew.
            ValueError: Rows are missing.
        """
        layout = self._begun().layout(self.path)
        assert self._spec is not None
        assert self._writer is not None
        for number in range(layout.shards):
            if not layout.sealed(number).exists():
                shard = self._writer.claim(number)  # seals one that is full, which a full disk had prevented
                if shard.next < shard.stop:
                    raise ValueError(f"Expected all rows. Received: none from row {shard.next} on.")
        self._writer.close()
        counts = self.counts()
        try:
            join(layout, self._spec, self.output)
        except DamagedShardError as error:
            shard = layout.shard(error.args[0])
            layout.discard(shard.number)
            raise ProjectError(
                f"Expected the rows {shard.start:,} to {shard.stop - 1:,} in {self.path} as they were written. "
                "Received: others; the disk or somebody changed them. They are dropped: run the same command again, "
                "which does them anew."
            ) from None
        if then is not None:
            then()
        try:
            self._remove()
        except OSError as error:
            log.warning("%s is complete; remove %s, which could not be: %s", self.output, self.path, error)
        return counts

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            if not self._is_over:
                self._leave(error)
        finally:
            if not self._is_over:
                os.close(self._lock)
            self._others.close()

    def _leave(self, error: BaseException | None) -> None:
        """Keep the rows and say so; remove the folder where there are none."""
        with contextlib.suppress(OSError, ProjectError):
            record = self._record or read_run(self.path)
            done = 0 if record is None else _done(record.layout(self.path))
            if not done:
                self._remove()
            elif self._record is not None and error is not None:
                say_kept(error, self.path, done, self._record.total)
        if isinstance(error, OSError):
            add_path(error, self.output)
            # A person named the output; the folder beside it is on the same disk, and a note says what it keeps.
            if error.errno in DISK_FULL and Path(str(error.filename)).is_relative_to(self.path):
                error.filename = str(self.output)

    def _begun(self) -> RunRecord:
        if self._record is None:
            raise ValueError("Expected begin() first.")
        return self._record

    def _shards(self) -> list[Shard]:
        layout = self._begun().layout(self.path)
        return [layout.shard(number, layout.last_mark(number).rows) for number in range(layout.shards)]

    def _continue(self, record: RunRecord) -> None:
        """Look at every shard: cut open ones to whole batches, drop finished ones that are not whole."""
        assert self._spec is not None
        layout = record.layout(self.path)
        self._record = record
        self._writer = ShardWriter(layout, self._spec)
        for number in range(layout.shards):
            if layout.sealed(number).exists():
                mark, shard = layout.last_mark(number), layout.shard(number)
                sizes = [mark.rows, size_of(layout.sealed(number)), max(0, size_of(layout.embeddings(number)))]
                if sizes != [shard.stop - shard.start, mark.end, mark.embeddings_end]:
                    log.warning(
                        "rows %s to %s in %s are damaged: they are done anew",
                        f"{shard.start:,}", f"{shard.stop - 1:,}", self.path,
                    )  # fmt: skip
                    layout.discard(number)
            elif layout.index(number).exists() or layout.part(number).exists():
                self._writer.claim(number)
        self._writer.close()
        if done := self.done:
            say_continued(self.path, done, record.total)

    def _begin_anew(self, record: RunRecord, former: RunRecord | None, changed: str) -> None:
        assert self._spec is not None
        if former is not None and (dropped := _done(former.layout(self.path))):
            say_dropped(self.output, dropped, changed)
        self._remove_shards()
        write_json(self.path / RECORD, record)
        self._record = record
        self._writer = ShardWriter(record.layout(self.path), self._spec)

    def _remove_shards(self) -> None:
        """Remove the shards of an earlier run, unless a process of it is left that still writes."""
        paths = [self.path / name for name in os.listdir(self.path) if SHARD_NAME.fullmatch(name)]
        if busy := [path for path in paths if path.suffix == ".index" and is_locked(path)]:
            raise ProjectError(
                f"Expected no other process in {self.path}. Received: one of an earlier run, which still writes "
                f"{busy[0].stem}. Wait until it has ended, or end it."
            )
        for path in paths:
            path.unlink(missing_ok=True)

    def _remove(self) -> None:
        self._is_over = True
        remove_folder(self.path, self._lock)


def open_worker(folder: Path) -> ShardWriter:
    """Return what writes shards of a run for a process beside the one that holds the folder.

    Args:
        folder: of the run, which has begun.

    Raises:
        ProjectError: No process holds the folder.
    """
    if not is_locked(folder / LOCK):
        raise ProjectError(f"Expected a process that holds {folder}. Received: none; the run has ended.")
    record = read_run(folder)
    if record is None:
        raise ProjectError(f"Expected a run in {folder}. Received: none has begun.")
    spec = OutputSpec(record.format, record.top_k, record.csv_safe)
    return ShardWriter(record.layout(folder), spec, is_alive=lambda: is_locked(folder / LOCK))


def _refuse_the_same(outputs: Mapping[str, Path]) -> None:
    options: dict[str, str] = {}
    for option, path in outputs.items():
        place = os.path.abspath(path)
        if place in options:
            raise ProjectError(
                f"Expected different outputs after {options[place]} and {option}. Received: {path} twice. Name another."
            )
        options[place] = option


def _done(layout: Layout) -> int:
    return sum(layout.last_mark(number).rows for number in range(layout.shards))
