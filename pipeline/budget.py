"""A quantity, such as memory, that threads share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """Threads hold parts of it; one that asks for more than is left waits until others have given theirs back.

    Whoever holds a part must not ask this budget for another; of two budgets, all threads ask for the same one first.
    Then some thread can always go on.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Hold a part while the block runs; more than there is counts as all of it: its block runs alone."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._held + amount <= self._total)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()
