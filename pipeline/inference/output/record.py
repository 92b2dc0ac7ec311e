"""What the rows in a run's folder are of, `run.json`: a run goes on only with rows of its own kind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from export.errors import add_note
from export.records import read_record
from export.words import count, listed
from pipeline.inference.output.layout import RECORD, Layout
from pipeline.inference.output.spec import Format

log = logging.getLogger(__name__)

Value = str | int | float | bool | None
_SHOWN: Final = 24  # characters of a value that a message shows; a digest is longer


@dataclass(frozen=True)
class RunRecord:
    """What the rows in a run's folder are of, `run.json`.

    Attributes:
        identity: what decides the rows, in words.
        token: of this run alone; the checksums of its shards begin with it.
        started: when it began, in local time.
        total: rows.
        shard_rows: rows of a shard.
        format: of the rows.
        top_k: classes in a row, at most.
        csv_safe: see `OutputSpec`.
        has_embeddings: whether embeddings are written beside the rows.
        schema: Version of this file format.
    """

    identity: Mapping[str, Value]
    token: str
    started: str
    total: int
    shard_rows: int
    format: Format
    top_k: int
    csv_safe: bool
    has_embeddings: bool
    schema: int = 1

    def layout(self, folder: Path) -> Layout:
        """Return where the shards are."""
        suffix = ".csv" if self.format == "csv" else ".jsonl"
        return Layout(folder, self.token, self.total, self.shard_rows, suffix, self.has_embeddings)

    def keeping(self, key: str, former: RunRecord) -> RunRecord:
        """Return this record with a former value of its identity; without it where either of both is false."""
        value = former.identity.get(key)
        return replace(self, identity={**self.identity, key: value}) if value and self.identity.get(key) else self

    def decides(self) -> dict[str, Value]:
        """Return all that decides the rows, in words; a run that is continued keeps the size of its shards."""
        return {
            **self.identity,
            "number of images": self.total,
            "format": self.format,
            "classes of a row": self.top_k,
            "csv-safe": self.csv_safe,
            "embeddings": self.has_embeddings,
        }


def read_run(folder: Path) -> RunRecord | None:
    """Return the record in a run's folder; None where there is none.

    Raises:
        ProjectError: It cannot be read, or is of another version of this program.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    return read_record(RunRecord, path, remedy="Begin anew with --restart.", what="record of a run")


def changes(former: RunRecord, record: RunRecord) -> str:
    """Return what decides the rows and is not as it was, in words; "" where all is."""
    before, now = former.decides(), record.decides()
    names = [
        name for name in {**now, **before} if before.get(name) != now.get(name) or (name in before) != (name in now)
    ]
    return listed((_change(name, before.get(name), now.get(name)) for name in names), most=8)


def say_continued(folder: Path, done: int, total: int) -> None:
    """Log that a run goes on."""
    log.info("continuing in %s: %s of %s are done", folder, f"{done:,}", count(total, "row"))


def say_dropped(output: Path, dropped: int, changed: str) -> None:
    """Warn that rows of an earlier run do not fit this one.

    Args:
        output: what the run writes.
        dropped: number of rows.
        changed: see `changes`.
    """
    verb = "is" if dropped == 1 else "are"
    log.warning(
        "%s of an earlier run for %s %s dropped, as these changed: %s", count(dropped, "row"), output, verb, changed
    )


def say_kept(error: BaseException, folder: Path, done: int, total: int) -> None:
    """Add a note to what ends a run, about the rows that stay."""
    add_note(error, f"{done:,} of {count(total, 'row')} are kept in {folder}: the same command continues.")


def _change(name: str, before: Value, now: Value) -> str:
    if max(len(str(before)), len(str(now))) > _SHOWN:
        return name
    return f"{name} ({before} before, {now} now)"
