"""Signals and child processes: SIGTERM ends a command as Ctrl-C does, and a child ends with its parent.

SIGTERM, as `docker stop` and `timeout` send it, ends a command as Ctrl-C does: with a sentence, and cleared up.

A command that another one starts ends with it, however that one ends: by Ctrl-C, an error, or ``kill -9``.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143  # exit status: 128 and the number of the signal, as a shell shows it


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. What clears up after Ctrl-C clears up after this too."""


def raise_as(status: int) -> None:
    """Stop as a command that this one started was stopped; nothing where that one ended by itself."""
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == TERMINATED:
        raise Terminated


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise ``Terminated`` in the main thread at the first SIGTERM.

    `timeout` sends it to a command and to its group, so that it may arrive again while the command clears up; then
    nothing happens. Other threads, and a process that was started with SIGTERM ignored, are left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # a command inside a command: the outer one raises
        return
    arrived = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if not arrived:
            arrived = True
            raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
