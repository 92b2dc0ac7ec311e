"""Memory does not grow with the inputs, beyond some bytes for each."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from export.files import ROOT
from tests.pipeline.inference.inputs.parts import plan, touch
from tests.pipeline.inference.inputs.tars import write_tar

PER_ITEM = 64  # bytes: a hash, a place, and both once more while they are sorted; a path alone would take more
BEYOND = 5 * 2**19
COUNT = 20_000

CHILD = """
import resource, sys, time
from pathlib import Path
from pipeline.inference.inputs.make_plan import make_plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = make_plan([], [sys.argv[1]], Path("run/plan"))
number = sum(1 for _ in made.items())
print(number, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, time.process_time())
"""


def peak_of(*inputs: str, lists: tuple[str, ...] = ()) -> tuple[int, int]:
    """The number of items and the most bytes that Python held while they were listed and read back."""
    tracemalloc.start()
    made = plan(*inputs, lists=lists)
    number = sum(1 for _ in made.items())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return number, peak


@pytest.mark.parametrize("different", [COUNT, 3])
def test_a_long_list(different: int) -> None:
    Path("list").write_text("".join(f"a/folder/of/images/{number % different:09}.jpg\n" for number in range(COUNT)))
    number, peak = peak_of(lists=("list",))
    assert number == different
    assert peak < COUNT * PER_ITEM + BEYOND


def test_many_folders() -> None:
    touch(*(f"p/{folder:02}/{number:03}.jpg" for folder in range(20) for number in range(50)))
    number, peak = peak_of("p")
    assert number == 1000
    assert peak < number * PER_ITEM + BEYOND


def test_a_tar_of_many_members() -> None:
    write_tar("s.tar", {f"{number}.jpg": b"" for number in range(5000)}, format=0)
    number, peak = peak_of("s.tar")
    assert number == 5000
    assert peak < number * PER_ITEM + BEYOND


@pytest.mark.slow
def test_a_million_lines() -> None:
    with open("list", "w") as file:
        file.writelines(f"a/folder/of/images/{number:09}.jpg\n" for number in range(10**6))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "list"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    number, megabytes, seconds = done.stdout.split()
    assert (done.returncode, int(number)) == (0, 10**6), done.stderr
    assert int(megabytes) < 100
    assert float(seconds) < 30
