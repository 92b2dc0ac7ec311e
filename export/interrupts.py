"""Ctrl-C during a call into a C++ library that calls back into Python, where an exception would be swallowed.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C instead of raising it at once; it is raised when the block ends, however it ends.

    Only the main thread gets signals: in another one, and where Ctrl-C is ignored, nothing is noted or changed.

    Raises:
        KeyboardInterrupt: it was pressed.
    """
    interrupt = Interrupt()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield interrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupt.pressed:
            raise KeyboardInterrupt
