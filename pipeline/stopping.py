"""SIGTERM, as `docker stop` and `timeout` send it, ends a command as Ctrl-C does: with a sentence, and cleared up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143  # exit status: 128 and the number of the signal, as a shell shows it


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. What clears up after Ctrl-C clears up after this too."""


def raise_as(status: int) -> None:
    """Stop as a command that this one started was stopped; nothing where that one ended by itself."""
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == TERMINATED:
        raise Terminated


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise ``Terminated`` in the main thread at the first SIGTERM.

    `timeout` sends it to a command and to its group, so that it may arrive again while the command clears up; then
    nothing happens. Other threads, and a process that was started with SIGTERM ignored, are left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # a command inside a command: the outer one raises
        return
    arrived = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if not arrived:
            arrived = True
            raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
