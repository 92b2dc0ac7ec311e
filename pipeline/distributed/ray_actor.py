"""What each worker of Ray is: the file that serves, opened once, and rows of the plan classified with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.distributed.parts import ROW
from pipeline.distributed.remotely import require_visible
from pipeline.inference.deployment import BatchClassifier, Deployment
from pipeline.inference.inputs.plan import Plan, read_plan
from pipeline.inference.inputs.reader import open_reader
from pipeline.inference.items import Item, ItemReader
from pipeline.inference.output.parquet import rows_as_table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Work:
    """What a worker needs; it is pickled.

    Attributes:
        deployment: what it classifies with.
        plan: file of the plan.
        folder: the working folder of the command, from which relative paths lead.
        files: that every worker has to see.
        top_k: classes in a row, at most.
    """

    deployment: Deployment
    plan: Path
    folder: Path
    files: tuple[Path, ...]
    top_k: int


class Classifier:
    """Classifies rows of a plan; the file that serves is opened with the first ones, in the process that uses it.

    Args:
        work: what it needs.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._opened: tuple[Plan, ItemReader, BatchClassifier] | None = None
        self._block = ExitStack()  # ends with the process

    def __call__(self, numbers: pa.Table) -> pa.Table:
        """Return the rows of these numbers.

        Args:
            numbers: a column of them.

        Raises:
            ProjectError: this machine does not see the files of the run, or another file would answer.
        """
        plan, reader, classifier = self._opened = self._opened or self._open()
        rows = sorted(numbers[ROW].to_pylist())
        items = [item for start, stop in _runs(rows) for item in plan.items(start, stop)]
        table = rows_as_table(classifier.items(items, reader), self._work.top_k)
        return table.add_column(0, ROW, [_numbers(items)])

    def _open(self) -> tuple[Plan, ItemReader, BatchClassifier]:
        work = self._work
        require_visible(work.folder, work.plan, work.deployment.choice.path, *work.files)
        os.chdir(work.folder)
        plan = read_plan(work.plan)
        reader = self._block.enter_context(open_reader(plan))
        return plan, reader, self._block.enter_context(work.deployment.open())


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the one after the last of consecutive numbers."""
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[start], numbers[place - 1] + 1
            start = place


def _numbers(items: list[Item]) -> pa.Array:
    import pyarrow as pa

    return pa.array([item.row for item in items], pa.int64())
