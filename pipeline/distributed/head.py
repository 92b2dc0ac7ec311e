"""Notices that the head of a cluster is gone: Ray would end this process a minute later, without a word."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from typing import Final

log = logging.getLogger(__name__)

_EVERY: Final = 1.0  # seconds


class HeadWatch:
    """A context manager whose thread connects to the head once a second; if it is gone, the block is interrupted.

    The interruption is a KeyboardInterrupt in the main thread, as nothing else ends what waits there for Ray. Outside
    the main thread nothing is watched.

    Args:
        address: host and port of the head.
        patience: seconds without an answer after which it is gone.

    Attributes:
        is_gone: whether it is.
    """

    def __init__(self, address: str, patience: float) -> None:
        host, _, port = address.rpartition(":")
        self._place, self._patience = (host.strip("[]"), int(port)), patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head watch", daemon=True)
        self._main = threading.main_thread().ident
        self.is_gone = False

    def __enter__(self) -> HeadWatch:
        if threading.get_ident() == self._main:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._over.wait(_EVERY):
            try:
                socket.create_connection(self._place, timeout=_EVERY).close()
                answered = time.monotonic()
            except OSError as error:
                log.debug("the head of the cluster: %s", error)
                if time.monotonic() - answered > self._patience and not self._over.is_set():
                    self.is_gone = True
                    with contextlib.suppress(OSError):
                        signal.pthread_kill(self._main or 0, signal.SIGINT)
                    return
