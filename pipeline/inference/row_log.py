"""Rows that a person wants to read at once: those of a few images, and the first without an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from export.words import count
from pipeline.inference.rows import OK, Row

log = logging.getLogger(__name__)

SHOWN: Final = 10  # predictions of so many images are logged, and so many failures of any number


class RowLog:
    """Logs the predictions of a run of few images, and the first rows without an answer.

    Args:
        total: rows of the run.
    """

    def __init__(self, total: int) -> None:
        self._shows_all = total <= SHOWN
        self._failed = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Log what is to be read of these rows."""
        for row in rows:
            if row.status != OK:
                self._failed += 1
                if self._failed <= SHOWN:
                    log.error("%s: %s (%s)", _in_a_line(row.path), row.error, row.status)
            if self._shows_all and row.classes:
                log.info("%s: %s (%.1f %%)", _in_a_line(row.path), row.classes[0], 100 * row.probabilities[0])
            elif self._shows_all and row.status == OK:
                log.info("%s: no class reaches the threshold", _in_a_line(row.path))

    def close(self) -> None:
        """Log how many failures were not named."""
        if (more := self._failed - SHOWN) > 0:
            log.error("%s; the output has the reasons", count(more, "more image failed", "more images failed"))


def _in_a_line(path: str) -> str:
    return path.replace("\n", "\\n")
