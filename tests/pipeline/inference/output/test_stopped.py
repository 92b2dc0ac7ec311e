"""Runs in processes of their own that are killed, and on disks that are full."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.inference.output.folder import run_folder
from tests.pipeline.inference.output.killed import TOTAL, run
from tests.pipeline.inference.output.made_runs import finals, names, work

COMMAND = [sys.executable, "-m", "tests.pipeline.inference.output.killed"]


def kill_after(output: Path, seconds: float) -> bool:
    """Start a run, kill it so long after its imports; tell whether it was killed before it ended."""
    with subprocess.Popen([*COMMAND, str(output)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
    return process.returncode == -signal.SIGKILL


def check_kills(folder: Path, moments: int, seed: int) -> None:
    """Kill runs at random moments, each at most three times, and let the same command end them."""
    rng = random.Random(seed)
    name = "out.csv"
    start = time.monotonic()
    run(folder / "whole" / name)
    seconds = time.monotonic() - start
    expected = finals(folder / "whole" / name)
    assert expected[name].count(b"\r\n") > TOTAL
    killed = continued = runs = 0
    while killed < moments:
        runs += 1
        output = folder / f"{runs}" / name
        output.parent.mkdir()
        output.write_bytes(b"former")
        for _ in range(min(rng.randint(1, 3), moments - killed)):
            killed += kill_after(output, rng.uniform(0, seconds))
            assert output.read_bytes() in (b"former", expected[name])
        continued += run(output) > 0
        assert finals(output) == expected
        assert names(output.parent) == sorted(expected)
    assert continued


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    check_kills(tmp_path, 6, seed=1)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_a_run_that_is_killed_at_50_moments_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    check_kills(tmp_path, 50, seed=2)


# --- full disks ---

FULL_DISK = """
import resource, sys
from pathlib import Path
from pipeline.cli import options
from pipeline.terminal.command_line import Parser
from tests.pipeline.inference.output.killed import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # no file grows beyond, and write() says so
parser = Parser(parents=[options.output_options()])
sys.exit(options.run_command(parser, [], lambda args: run(Path(sys.argv[1]))))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs limits of the system")
@pytest.mark.parametrize(("limit", "least", "most"), [(20_003, 100, 511), (100_000, TOTAL, TOTAL)])
def test_a_file_that_grows_no_further_keeps_its_whole_batches(
    tmp_path: Path, limit: int, least: int, most: int
) -> None:
    """The first limit stops the first shard, the second one the file that is joined."""
    run(tmp_path / "whole" / "out.csv")
    output = tmp_path / "out.csv"
    command = [sys.executable, "-c", FULL_DISK, str(output), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    kept = rf"([\d,]+) of 6,000 rows are kept in {re.escape(str(output))}\.run: the same command continues\.\n"
    said = re.fullmatch(rf"error: File too large[^\n]*\. {kept}", done.stderr)
    assert said, done.stderr
    rows = int(said[1].replace(",", ""))
    assert least <= rows <= most
    assert rows % 8 == 0
    assert names(tmp_path) == ["out.csv.run", "whole"]
    assert run(output) == rows
    assert finals(output) == finals(tmp_path / "whole" / "out.csv")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(["-t", "tmpfs", "-o", "size=200k", "tmpfs"], folder):
        pytest.skip("only an administrator mounts a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mounted(options: list[str], folder: Path) -> bool:
    try:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def test_a_full_disk_keeps_what_is_there_and_more_space_lets_it_go_on(tmp_path: Path, small_disk: Path) -> None:
    sizes = {"total": 3_000, "shard_rows": 512, "size": 8}
    work(tmp_path / "whole" / "out.csv", **sizes)
    output = small_disk / "out.csv"
    before = -1
    for kilobytes in (200, 240, 280, 320, 800):
        assert mounted(["-o", f"remount,size={kilobytes}k"], small_disk)
        full, there = None, -1
        try:
            there = work(output, **sizes)
        except OSError as error:
            full = error
        if full is None:
            break
        assert (full.errno, full.filename) == (28, str(output))
        (note,) = full.__notes__
        kept = int(re.match(r"([\d,]+) of 3,000 rows are kept in ", note)[1].replace(",", ""))
        assert kept >= before
        before = kept
        assert names(small_disk) == ["out.csv.run"]
    assert there == before == 3_000
    assert finals(output) == finals(tmp_path / "whole" / "out.csv")
    assert not run_folder(output).exists()
