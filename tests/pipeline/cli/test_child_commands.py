"""Commands that a command starts, when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.terminal import processes as children
from pipeline.terminal.processes import end_with_parent, run_child

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals and named pipes")

CHILD = """
import os, sys, time
from pipeline.terminal.processes import end_with_parent
end_with_parent()
try:
    print(os.getpid(), file=sys.stderr, flush=True)  # its standard output is its parent's
    time.sleep(60)
except KeyboardInterrupt:
    print("cleared up", file=sys.stderr, flush=True)
    sys.exit(130)
"""
INDENTED_CHILD = CHILD.strip().replace("\n", "\n    ")
PARENT = """
import sys
from pipeline.terminal.processes import run_child
run_child([sys.executable, "-c", sys.argv[1]])
"""
BENCHMARK = """
import sys
from pipeline.cli import commands
args = commands.build_parser().parse_args(["run", "-c", "configs/digits.yaml", "--artifacts", sys.argv[1], "--explain"])
commands._benchmark(args)
"""


PEER = """
import os, time
from benchmarks.peers.quantizers.command import own_process
with own_process() as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60).result()
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be killed at the end of the test, whatever became of it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], code: str, *arguments: str, path: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT))))}
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=environment, cwd=ROOT)
    started.append(process)
    return process


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # ended, and nobody asked yet
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child goes on without its parent")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_ends_with_a_parent_that_is_killed(started, number: signal.Signals) -> None:
    parent = start(started, PARENT, CHILD)
    child = int(parent.stderr.readline())
    os.kill(child, 0)
    parent.send_signal(number)
    wait_for_end(child)


def test_the_benchmark_that_run_starts_ends_with_it(started, tmp_path: Path) -> None:
    """A stand-in for a module of the standard library holds the real child up, where it loads its recipe."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'benchmarks' in sys.orig_argv:\n"
        "    import os, time, pipeline.cli.options\n"
        "    def write_pid():\n"
        f"        with open({str(tmp_path / 'part')!r}, 'w') as file:\n"
        "            file.write(str(os.getpid()))\n"
        "        return file.name\n"
        "    def hold(*arguments):\n"
        f"        os.replace(write_pid(), {str(tmp_path / 'pid')!r})\n"
        "        time.sleep(60)\n"
        "    pipeline.cli.options.make_context = hold\n"
    )
    parent = start(started, BENCHMARK, str(tmp_path), path=str(tmp_path))
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists():  # what the child writes to standard output is its parent's
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.02)
    child = int((tmp_path / "pid").read_text())
    os.kill(child, 0)
    parent.kill()
    wait_for_end(child)


def test_the_process_of_a_peer_ends_with_the_one_that_started_it(started) -> None:
    parent = start(started, PEER)
    child = int(parent.stdout.readline())
    parent.kill()
    wait_for_end(child)


def test_ctrl_c_leaves_a_child_time_to_clear_up(started) -> None:
    code = (
        PARENT.replace("run_child([", "import signal\ntry:\n    run_child([") + "except KeyboardInterrupt:\n    pass\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, CHILD]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    started.append(process)
    process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "cleared up\n"
    assert process.returncode == 0


def test_sigterm_of_the_parent_alone_leaves_a_child_time_to_clear_up(started) -> None:
    """As `docker stop` sends it: to the first process of a container."""
    wrapped = (
        "import sys\nfrom pipeline.terminal.processes import terminated_as_interrupted\n"
        "with terminated_as_interrupted():\n    {}"
    )
    parent = start(started, wrapped.format(PARENT.strip().replace("\n", "\n    ")), wrapped.format(INDENTED_CHILD))
    parent.stderr.readline()
    parent.send_signal(signal.SIGTERM)
    assert parent.communicate(timeout=60)[1].startswith("cleared up\n")


@pytest.mark.parametrize("status", [0, 2, 130])
def test_the_exit_status_is_the_childs(status: int) -> None:
    code = f"import sys; from pipeline.terminal.processes import end_with_parent; end_with_parent(); sys.exit({status})"
    assert run_child([sys.executable, "-c", code]) == (status, "")


def test_what_a_child_says_is_its_parents_to_read() -> None:
    code = (
        "import sys; from pipeline.terminal.processes import end_with_parent; end_with_parent(); "
        "print('ä' * 10**6); sys.exit(3)"
    )
    assert run_child([sys.executable, "-X", "utf8", "-c", code]) == (3, "ä" * 10**6 + "\n")


def test_a_command_that_nobody_started_so_reads_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(children.ENDS_WITH_PARENT, raising=False)
    before = children.threading.active_count()
    end_with_parent()
    assert children.threading.active_count() == before
