"""Ctrl-C during a call into a C++ library that calls back into Python, where an exception would be swallowed.

The same holds for SIGTERM where the program has a handler of its own for it. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed, or SIGTERM arrived."""

    pressed: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C and SIGTERM instead of handling them at once; what handles them does when the block has ended.

    Only the main thread gets signals: in another one, and where a signal is ignored or handled by the system, nothing
    is noted or changed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, or whatever the handler of the signal raises.
    """
    interrupt = Interrupt()
    handlers = _handlers() if threading.current_thread() is threading.main_thread() else {}
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.pressed = True
        arrived.append(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            handlers[arrived[0]](arrived[0], None)


def _handlers() -> dict[int, Callable[[int, FrameType | None], Any]]:
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {int(number): handler for number, handler in found.items() if callable(handler)}  # SIG_DFL is a number
