"""Log messages in a file, with date, time and level."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from export.errors import ProjectError

log = logging.getLogger(__name__)


class LogFile(logging.FileHandler):
    """Appends every message to a file. Where the disk takes no more, a warning says so once, and the command goes on.

    Args:
        path: the file, which is created if it is missing.
        shown: turns a message into the text that a person sees.

    Raises:
        ProjectError: the file cannot be written.
    """

    def __init__(self, path: Path, shown: Callable[[str], str]) -> None:
        try:
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ProjectError(
                f"Expected a file for --log-file that can be written. Received: {path}: {error.strerror or error}. "
                "Name another one."
            ) from error
        self._shown = shown
        self._full = False
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S%z"))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return self._shown(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message."""
        if not self._full:
            super().emit(record)

    def close(self) -> None:
        """Close the file. What it did not take was told when it was written."""
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Give the file up."""
        self._full = True
        log.warning("%s takes no more messages: the disk is full or gone.", self.baseFilename)
