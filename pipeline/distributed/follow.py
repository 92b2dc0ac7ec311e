"""What a person sees of a run on a cluster: the rows that are written, looked for twice a second."""

from __future__ import annotations

import logging
import threading
from typing import Final

from export.errors import ProjectError
from pipeline.distributed.parts import WrittenRows
from pipeline.inference.progress import Progress
from pipeline.inference.row_log import RowLog
from pipeline.inference.rows import OK

log = logging.getLogger(__name__)

_EVERY: Final = 0.5  # seconds


class Follower:
    """A context manager whose thread shows what is written; at the end of the block all has been looked at.

    Args:
        written: the rows.
        total: rows of the run.
        quiet: see `Progress`. Defaults to False.
    """

    def __init__(self, written: WrittenRows, total: int, *, quiet: bool = False) -> None:
        self._written = written
        done = written.done
        self._progress = Progress(total, done, done - written.counts.get(OK, 0), quiet=quiet)
        self._shown = RowLog(total)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> Follower:
        self._progress.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            if error is None:
                self._look()
                self._shown.close()
        finally:
            self._progress.__exit__(kind, error, trace)

    def _follow(self) -> None:
        while not self._over.wait(_EVERY):
            try:
                self._look()
            except (OSError, ProjectError) as error:  # the look at the end says it, if it stays
                log.debug("not read now: %s", error)

    def _look(self) -> None:
        look = self._written.look()
        self._shown.add(look.shown)
        self._progress.update(look.rows, look.failed)
