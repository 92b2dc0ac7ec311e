"""SIGTERM: a sentence, exit status 143, and nothing half-done left, as at Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import ROOT
from export.tensorrt.network import deferred_interrupt
from pipeline.cli import commands
from pipeline.terminal.processes import Terminated, terminated_as_interrupted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals")

# A stage that takes long, as `run` and each verb of a stage hold it: under the lock, into a temporary folder.
STAGE = """
import sys, time
from pathlib import Path
from pipeline.cli import options
from export.files import replacing_folder
from pipeline.artifacts.files import recipe_lock
from pipeline.terminal.command_line import Parser
def command(args):
    with recipe_lock(Path(sys.argv[1])), replacing_folder(Path(sys.argv[1]) / "train"):
        try:
            print("runs", flush=True)
            time.sleep(60)
        finally:
            print("clears up", flush=True)
            time.sleep(float(sys.argv[2]))
sys.exit(options.run_command(Parser(parents=[options.output_options()]), ["--json"], command))
"""


@pytest.mark.parametrize("again", [False, True])
def test_sigterm_clears_up_and_is_said(tmp_path: Path, again: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(tmp_path / "toy"), str(0.5 * again)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "clears up\n"
    if again:  # as `timeout` does: to the process, and to its group
        process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 143, stderr
    assert stderr == "error: Terminated.\n"
    assert json.loads(stdout)["exit"] == 143
    assert list(tmp_path.iterdir()) == [], "nor the folder, which was made for the lock"


def test_outside_of_a_command_it_is_as_before() -> None:
    with pytest.raises(Terminated), terminated_as_interrupted(), terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_in_a_library_it_waits_for_the_end_of_the_call() -> None:
    reached = []
    with pytest.raises(Terminated), terminated_as_interrupted(), deferred_interrupt() as interrupt:  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        reached.append(bool(interrupt))
    assert reached == [True]


def test_a_benchmark_that_was_terminated_ends_run_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    args = commands.build_parser().parse_args(["run"])
    for status, raised in ((130, KeyboardInterrupt), (143, Terminated)):
        monkeypatch.setattr(commands, "run_child", lambda _, status=status: (status, ""))
        with pytest.raises(raised) as caught:
            commands._benchmark(args)
        assert caught.type is raised
