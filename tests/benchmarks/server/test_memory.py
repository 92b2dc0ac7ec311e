"""Memory that grows with the requests is told apart from memory that does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.server.memory import MemoryLook, MemoryWatch, busy_seconds, cpu_seconds, process_tree, summarize
from tests.benchmarks.inference.test_process import python

MIB = 2**20


def looks(*mib: float) -> list[MemoryLook]:
    return [MemoryLook(100 * at, round(value * MIB)) for at, value in enumerate(mib)]


def test_growth_begins_after_a_fifth_of_the_requests() -> None:
    flat = summarize(looks(100, 180, *[200] * 9), 1000)
    assert (flat.growth_mib, flat.slope_mib, flat.most_mib, flat.looks) == (0, pytest.approx(0, abs=1e-9), 200, 11)
    assert flat.parts_mib == (100, 180, *[200] * 8)
    leak = summarize(looks(100, 180, *range(200, 290, 10)), 1000)
    assert leak.growth_mib == 75, "from that at 20 % to the middle of those at 90 % and 100 %"
    assert leak.slope_mib == pytest.approx(100)


def test_large_batches_leave_tenths_out() -> None:
    seen = summarize(
        [MemoryLook(done, mib * MIB) for done, mib in ((0, 1), (150, 2), (320, 3), (640, 4), (960, 5))], 1000
    )
    assert seen.parts_mib == (1, 2, None, 3, None, None, 4, None, None, 5)
    assert seen.growth_mib == 2


def test_a_few_looks_decide_nothing() -> None:
    few = summarize(looks(100, 200), 1000)
    assert (few.growth_mib, few.slope_mib, few.parts_mib[2:]) == (None, None, (None,) * 8)
    none = summarize([], 1000)
    assert (none.looks, none.most_mib, none.growth_mib) == (0, None, None)


def test_processes_that_it_started_count_too() -> None:
    code = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', 'a = b\"x\" * (80 << 20); input()'])"
    process = subprocess.Popen(python(code), stdin=subprocess.PIPE)
    try:
        with MemoryWatch(process.pid, lambda: 7, 0.02) as watched:
            end = time.monotonic() + 20
            while not (watched.looks and watched.looks[-1].bytes > 80 * MIB) and time.monotonic() < end:
                time.sleep(0.01)
        assert len(process_tree(process.pid)) == 2
    finally:
        process.communicate(b"\n")
    assert watched.looks[-1].bytes > 80 * MIB
    assert watched.looks[-1].done == 7
    assert process_tree(process.pid) == [process.pid]
    assert cpu_seconds(process.pid) is None, "it has ended"


def test_cpu_time_is_that_of_the_process() -> None:
    before, before_all = cpu_seconds(os.getpid()), busy_seconds()
    assert before == pytest.approx(sum(os.times()[:2]), abs=0.1)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after, after_all = cpu_seconds(os.getpid()), busy_seconds()
    assert after is not None
    assert before is not None
    assert 0.15 < after - before < 1
    assert after_all is not None
    assert before_all is not None
    assert after_all - before_all > 0.15, "those of this process are among those of all"
