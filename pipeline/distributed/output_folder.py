"""The folder of Parquet parts that a run on Ray writes, by way of the run's own folder beside it.

The folder ``predictions.run`` beside the output ``predictions`` is held, recorded and refused as that of
`pipeline.inference.output.run`. In it are the plan, the parts, and Ray's checkpoint, which says what of the parts is
whole; once all rows are there, the parts become the output.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from export.errors import ProjectError
from export.files import commit_folder, recover_folder, refuse_long_name
from export.words import count
from pipeline.artifacts.files import escape_undecodable, write_json
from pipeline.distributed.parts import WrittenRows, committed, discard_damaged, discard_uncommitted
from pipeline.inference.output.folder import remove_folder, remove_inside, run_folder, take_folder
from pipeline.inference.output.layout import CHECKPOINT, INPUTS, PART_NAME, PARTS, RECORD
from pipeline.inference.output.places import foreign
from pipeline.inference.output.record import (
    RunRecord,
    Value,
    changes,
    read_run,
    say_continued,
    say_dropped,
    say_kept,
)

log = logging.getLogger(__name__)


def check_parts_folder(output: Path) -> None:
    """Refuse an output that a run on Ray may not replace.

    Raises:
        ProjectError: It is a file, a link, of another user, or holds something but parts.
    """
    recover_folder(output)
    try:
        received = foreign(output)
    except FileNotFoundError:
        return
    if not received:
        others = [name for name in os.listdir(output) if not PART_NAME.fullmatch(name)]
        received = f"a folder with {min(others)!r}" if others else ""
    if received:
        raise ProjectError(
            "Expected a new folder after -o with --engine ray, or one with the parts of an earlier run alone. "
            f"Received: {output}, {received}. Name another, or move it away."
        )


class PartsFolder:
    """The folder of a run on Ray, held by this process until the block ends; made by `PartsFolder.take`.

    Where an error ends the block, a note tells how many rows are kept; without a row the folder is removed.

    Attributes:
        output: the folder of parts.
        path: the folder of the run.
        inputs: a folder in it for the caller, empty at first, which goes with it.
        parts: a folder in it for the parts.
        checkpoint: a folder in it for Ray.
        written: what is there; after `begin`.
    """

    def __init__(self, output: Path, lock: int) -> None:
        self.output, self.path, self._lock = output, run_folder(output), lock
        self.inputs, self.parts, self.checkpoint = (self.path / name for name in (INPUTS, PARTS, CHECKPOINT))
        self.written: WrittenRows
        self._record: RunRecord | None = None
        self._is_over = False

    @classmethod
    def take(cls, output: Path) -> PartsFolder:
        """Make the folder of an output's run, or open the one of an earlier run, and lock it.

        Raises:
            ProjectError: Another process writes the output, its name is too long, or what is there is not ours.
        """
        refuse_long_name(output, "-o")
        check_parts_folder(output)
        run = cls(output, take_folder(run_folder(output), output))
        try:
            remove_inside(run.path, INPUTS)
            run.inputs.mkdir(mode=0o700)
        except BaseException as error:
            run.__exit__(type(error), error, None)
            raise
        return run

    def begin(
        self,
        identity: Mapping[str, Value],
        total: int,
        part_rows: int,
        top_k: int,
        *,
        kept: str = "",
        fresh: bool = False,
        shows_all: bool = False,
    ) -> RunRecord:
        """Continue the rows that are there if they are of the same identity, else begin anew and say what changed.

        Args:
            identity: see `pipeline.inference.output.run.RunFolder.begin`, as are total, kept and fresh.
            total: likewise.
            part_rows: rows of a part; whole batches.
            top_k: classes in a row, at most.
            kept: likewise. Defaults to "": none.
            fresh: likewise. Defaults to False.
            shows_all: see `WrittenRows`. Defaults to False.

        Returns:
            RunRecord: of the run that goes on; a continued one keeps the rows of its parts.

        Raises:
            ProjectError: The record of the earlier run cannot be read.
        """
        texts = {escape_undecodable(k): escape_undecodable(v) if isinstance(v, str) else v for k, v in identity.items()}
        record = RunRecord(
            identity=texts,
            token=secrets.token_hex(8),
            started=time.strftime("%Y-%m-%d %H:%M:%S"),
            total=total,
            shard_rows=part_rows,
            format="parquet",
            top_k=top_k,
            csv_safe=False,
            has_embeddings=False,
        )
        former = None if fresh else read_run(self.path)
        as_former = record if former is None else record.keeping(kept, former)
        is_same = former is not None and former.decides() == as_former.decides() and self.parts.is_dir()
        if former is not None and is_same:
            record = former
            if damaged := discard_damaged(self.parts, self.checkpoint):
                verb = "is" if damaged == 1 else "are"
                log.warning("%s in %s %s damaged: done anew", count(damaged, "part"), self.path, verb)
        else:
            if former is not None and (dropped := self._done(former)):
                say_dropped(self.output, dropped, changes(former, as_former))
            remove_inside(self.path, PARTS, CHECKPOINT)
            (self.path / RECORD).unlink(missing_ok=True)
            self.parts.mkdir(mode=0o700)
            write_json(self.path / RECORD, record)
        self._record = record
        self.written = WrittenRows(self.parts, self.checkpoint, total, shows_all=shows_all)
        self.written.look()
        if self.written.done:
            say_continued(self.path, self.written.done, total)
        return record

    def finish(self) -> None:
        """Make the parts the output, and remove the folder.

        Raises:
            ProjectError: A row is missing, or is there twice.
        """
        written = self.written
        if written.missing or written.repeated:
            raise ProjectError(
                f"Expected each row once in {self.parts}. Received: {written.missing:,} missing, {written.repeated:,} "
                "repeated; a worker of a stopped run, or somebody else, wrote there. Run it again with --restart."
            )
        discard_uncommitted(self.parts, self.checkpoint)
        check_parts_folder(self.output)
        commit_folder(self.parts, self.output)
        self._is_over = True
        try:
            remove_folder(self.path, self._lock)
        except OSError as error:
            log.warning("%s is complete; remove %s, which could not be: %s", self.output, self.path, error)

    def __enter__(self) -> PartsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_over:
            return
        try:
            with contextlib.suppress(OSError, ProjectError):
                record = self._record or read_run(self.path)
                done = 0 if record is None else self._done(record)
                if not done:
                    self._is_over = True
                    remove_folder(self.path, self._lock)
                elif self._record is not None and error is not None:
                    say_kept(error, self.path, done, self._record.total)
        finally:
            if not self._is_over:
                os.close(self._lock)

    def _done(self, record: RunRecord) -> int:
        """Return how many rows are there, by the checkpoint alone."""
        import pyarrow.parquet as pq

        if not self.parts.is_dir():
            return 0
        names = list(committed(self.checkpoint))
        rows: int = sum(pq.read_metadata(self.checkpoint / f"{name}.parquet").num_rows for name in names)
        return rows if rows < record.total else record.total
