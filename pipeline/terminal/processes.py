"""Signals and child processes.

SIGTERM, as sent by `docker stop` and `timeout`, ends a command like Ctrl-C: with a message and after cleaning up. A
child process ends with its parent, whether by Ctrl-C, an error, or ``kill -9``.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143  # exit status: 128 plus the number of the signal, as in a shell


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It is a KeyboardInterrupt, so that the same code cleans up."""


def raise_interruption(status: int) -> None:
    """Raise the interruption that ended a child process; do nothing if the child ended by itself.

    Args:
        status: Exit status of the child.
    """
    if status in (INTERRUPTED, TERMINATED):
        raise KeyboardInterrupt if status == INTERRUPTED else Terminated


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise ``Terminated`` in the main thread at the first SIGTERM.

    `timeout` signals a command and its process group, so SIGTERM may arrive again during the clean-up; later signals
    are ignored. Nothing changes in other threads, or in a process that was started with SIGTERM ignored.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield  # the handler of the outer command stays
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which child processes would inherit
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


ENDS_WITH_PARENT = "PIPELINE_ENDS_WITH_PARENT"  # set for a child whose standard input closes when its parent ends
GRACE_SECONDS = 2.0


def run_child(command: Sequence[str]) -> tuple[int, str]:
    """Run one of our commands, which calls ``end_with_parent`` when it starts.

    The child's standard input is a pipe to which nothing is written. Only this process has the other end open, so that
    the system closes it when this process ends.

    Returns:
        Its exit status and its standard output.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {ENDS_WITH_PARENT: "1"},
        encoding="utf-8",
        errors="backslashreplace",
    ) as process:
        try:
            output = process.stdout.read() if process.stdout else ""
            return process.wait(), output
        except BaseException as error:
            if isinstance(error, Terminated):
                process.terminate()  # Ctrl-C reaches the child too, SIGTERM only this process
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)  # for its clean-up
            raise
        finally:
            process.kill()
            process.wait()


def end_with_parent() -> None:
    """End this process when its parent ends, if it was started by ``run_child``; otherwise do nothing."""
    if os.environ.pop(ENDS_WITH_PARENT, None):
        threading.Thread(target=_end_at_end_of_input, daemon=True).start()


def _end_at_end_of_input() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a daemon thread would hold when the process ends
        pass
    os._exit(INTERRUPTED)  # the next command that takes the lock removes unfinished files
