"""Run a command as a process of its own, and watch it: seconds and memory."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from export.errors import ProjectError
from export.files import ROOT

INTERVAL = 0.05  # seconds between two looks at the process
_LINES = 5  # of standard error, in a message


class Look(NamedTuple):
    """The memory of a process at a moment: seconds since its start, and bytes in memory."""

    seconds: float
    bytes: int


class Finished(NamedTuple):
    """A process that ended with success.

    Attributes:
        seconds: from its start to its end.
        result: the JSON object of its last line on standard output.
        peak_bytes: most memory at a time, as the kernel counts it, up to the last look; None outside Linux.
        looks: its memory at every look.
    """

    seconds: float
    result: Mapping[str, Any]
    peak_bytes: int | None
    looks: tuple[Look, ...]


def watch(
    command: Sequence[str],
    *,
    interval: float = INTERVAL,
    at_each_look: Callable[[], object] = lambda: None,
    successes: Sequence[int] = (0,),
) -> Finished:
    """Run a command in the project's folder until it ends.

    Args:
        command: its words.
        interval: seconds between two looks. Defaults to 0.05.
        at_each_look: called then. Defaults to nothing.
        successes: exit statuses that count as success. Defaults to 0 alone.

    Raises:
        ProjectError: another exit status, with the end of what it wrote to standard error, or no JSON in the last line.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        ends: list[float] = []
        # A thread waits in the system, since a wait with a timeout sees the end up to 50 ms too late.
        waiting = threading.Thread(target=_wait, args=(process, ends))
        waiting.start()
        looks: list[Look] = []
        peak: int | None = None
        try:
            while waiting.is_alive():
                now = time.perf_counter() - start
                status = memory_of(process.pid)
                if "VmRSS" in status:
                    looks.append(Look(now, status["VmRSS"]))
                    peak = max(peak or 0, status["VmHWM"])
                at_each_look()
                waiting.join(interval)
        finally:
            if waiting.is_alive():
                process.kill()
            waiting.join()
        out.seek(0)
        err.seek(0)
        text, complaint = (stream.read().decode("utf-8", "backslashreplace") for stream in (out, err))
    words = " ".join(command[1:])
    if process.returncode not in successes:
        lines = "\n".join(complaint.strip().splitlines()[-_LINES:])
        raise ProjectError(f"Expected `{words}` to succeed. Received: exit status {process.returncode}.\n{lines}")
    try:
        result = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise ProjectError(f"Expected a line of JSON from `{words}`. Received: {text[-200:]!r}.") from None
    return Finished(ends[0] - start, result, peak, tuple(looks))


def without_folders(text: str) -> str:
    """Return a message without the folders of its paths, which evidence does not name."""
    return re.sub(r"(?<![\w.])/(?:[^/\s`'\"]+/)+", "", text)


def _wait(process: subprocess.Popen[bytes], ends: list[float]) -> None:
    process.wait()
    ends.append(time.perf_counter())


def memory_of(pid: int) -> dict[str, int]:
    """Return VmRSS and VmHWM in bytes; nothing where the process has ended, or outside Linux.

    getrusage would not do: the peak of a child begins with that of the process that started it.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return {}
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE)}
