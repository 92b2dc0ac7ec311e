"""What threads share is never given out twice, and every thread gets its part in the end."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data.image_files import Budget


def test_no_more_is_held_than_there_is_and_everybody_comes_to_it() -> None:
    budget, lock = Budget(100), threading.Lock()
    held = most = alone = 0

    def work(amount: int) -> int:
        nonlocal held, most, alone
        with budget.hold(amount):
            with lock:
                held += min(amount, 100)
                most = max(most, held)
            time.sleep(0.0005)
            with lock:
                alone += amount > 100 and held == 100
                held -= min(amount, 100)
        return amount

    amounts = [random.Random(0).choice([0, 1, 7, 30, 60, 99, 100, 101, 5000]) for _ in range(400)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(work, amounts, timeout=60)) == amounts
    assert held == 0
    assert most == 100
    assert alone == sum(amount > 100 for amount in amounts)


def test_small_parts_are_held_at_the_same_time() -> None:
    budget, together = Budget(100), threading.Barrier(4, timeout=30)

    def work(_: int) -> None:
        with budget.hold(25):
            together.wait()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_what_fails_gives_its_part_back() -> None:
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.hold(10):
            1 / 0
