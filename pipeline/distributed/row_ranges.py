"""The rows of a run as a source of Ray Data: numbers alone, as the plan has the rest. Imports Ray."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.distributed.parts import ROW, part_ranges


class RowRanges(Datasource):  # type: ignore[misc]  # Ray is not installed everywhere
    """A source with a block of row numbers for each part.

    Args:
        total: rows of the run.
        rows: of a part.
    """

    def __init__(self, total: int, rows: int) -> None:
        self._total, self._rows = total, rows

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all blocks."""
        return 8 * self._total

    def get_read_tasks(self, *args: Any, **options: Any) -> list[ReadTask]:
        """Return what makes the blocks; their number does not depend on what Ray asks for."""
        return [
            ReadTask(
                partial(_block, start, stop),
                BlockMetadata(num_rows=stop - start, size_bytes=8 * (stop - start), input_files=None, exec_stats=None),
                schema=pa.schema([(ROW, pa.int64())]),
            )
            for start, stop in part_ranges(self._total, self._rows)
        ]


def _block(start: int, stop: int) -> Iterable[pa.Table]:
    return [pa.table({ROW: np.arange(start, stop)})]
