"""A command that another one starts ends with it, however that one ends: by Ctrl-C, an error, or ``kill -9``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Sequence

from pipeline.stopping import INTERRUPTED, Terminated

ENDS_WITH_PARENT = "PIPELINE_ENDS_WITH_PARENT"  # set for a command whose standard input closes when its parent is gone
GRACE_SECONDS = 2.0


def run_child(command: Sequence[str]) -> int:
    """Run one of our commands, which calls ``end_with_parent`` when it starts; returns its exit status.

    The child's standard input is a pipe that nothing is written to. Its other end is open in this process alone, so
    that the system closes it with this process.
    """
    return _run(command, None)[0]


def run_child_for_output(command: Sequence[str]) -> tuple[int, str]:
    """The same; returns its exit status and what it wrote to standard output."""
    return _run(command, subprocess.PIPE)


def _run(command: Sequence[str], output: int | None) -> tuple[int, str]:
    environment = os.environ | {ENDS_WITH_PARENT: "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, env=environment, encoding="utf-8", errors="backslashreplace"
    )
    try:
        said = process.stdout.read() if process.stdout else ""
        return process.wait(), said
    except BaseException as error:
        if isinstance(error, Terminated):
            process.terminate()  # Ctrl-C reaches the child as well, SIGTERM this process alone
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)  # it clears up
        raise
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def end_with_parent() -> None:
    """End this process when the one that started it by ``run_child`` is gone; does nothing elsewhere."""
    if os.environ.pop(ENDS_WITH_PARENT, None):
        threading.Thread(target=_end_at_end_of_input, daemon=True).start()


def _end_at_end_of_input() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a daemon thread would hold when the process ends
        pass
    os._exit(INTERRUPTED)  # what is half done is cleared by the next command that takes the lock
