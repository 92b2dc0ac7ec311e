"""The server as a process of its own: started on a free port, asked to stop, never left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType

from export.errors import ProjectError
from export.files import ROOT

START_SECONDS, STOP_SECONDS = 300.0, 60.0
_LINES = 5  # of standard error, in a message
_MOST_SAID = 2**20  # bytes of it
_READY = re.compile(r"http://127\.0\.0\.1:(\d+)")  # in the line that the server logs when it answers


class Server:
    """A context manager that starts a server and ends it.

    Args:
        command: its words. It logs its address to standard error when it answers.
        patience: seconds until it does. Defaults to 300.

    Attributes:
        port: on which it answers.
        pid: of the process.

    Raises:
        ProjectError: on entering, where it ends or does not answer in time, with the end of what it wrote.
    """

    def __init__(self, command: Sequence[str], patience: float = START_SECONDS) -> None:
        self.port, self.pid = 0, 0
        self._command, self._patience = command, patience
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Server:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors
        )
        self.pid = self._process.pid
        try:
            self.port = self._wait_for_port()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def stop(self) -> int | None:
        """Ask it to end, as `docker stop` does, and return its exit status; None where it does not end in time."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def last_words(self) -> str:
        """Return the end of what it wrote to standard error."""
        return "\n".join(self._said().strip().splitlines()[-_LINES:])

    def _wait_for_port(self) -> int:
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            status = self._process.poll()
            if found := _READY.search(self._said()):
                return int(found[1])
            if status is not None:
                raise ProjectError(
                    f"Expected `{self._words()}` to answer. Received: exit status {status}.\n{self.last_words()}"
                )
            time.sleep(0.05)
        raise ProjectError(
            f"Expected `{self._words()}` to answer within {self._patience:g} s. Received: nothing.\n{self.last_words()}"
        )

    def _said(self) -> str:
        # Not by seeking: the process writes where the file that it shares stands.
        return os.pread(self._errors.fileno(), _MOST_SAID, 0).decode("utf-8", "backslashreplace")

    def _words(self) -> str:
        return " ".join(self._command[1:])

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._errors.close()
