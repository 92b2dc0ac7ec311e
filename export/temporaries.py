"""Names of files that are not whole yet, all of one form, so that what a killed process left can be told and removed.

``.<name>.tmp-<process>-<run>-<turn>`` lies beside the file that it becomes. No two writes share one, in whatever thread
or process. It goes with the next write of that file, or with the next command that takes the lock on its folder, once
its process is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"\.(?P<final>.+)\.tmp-(?P<process>\d+)(?:-(?P<run>[0-9a-f]{8})-\d+)?", re.DOTALL)
_RUN = secrets.token_hex(4)  # process numbers come again, in a container with every start
_turns = itertools.count()


def temporary_path(path: Path) -> Path:
    """Where one write puts what becomes ``path``; the caller removes it. What killed processes left of others goes."""
    remove_leftovers(temporaries_of(path))
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{_RUN}-{next(_turns)}")


def temporaries_of(path: Path) -> list[Path]:
    """The temporary files and folders, of any process, that were to become ``path``."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []  # the folder is made later, or the write says what is wrong
    matches = [match for name in names if (match := _NAME.fullmatch(name)) and match["final"] == path.name]
    return [path.with_name(match[0]) for match in matches]


def remove_leftovers(found: Iterable[Path]) -> None:
    """Remove temporary files and folders, except those of processes that are alive, this one too."""
    for path in found:
        match = _NAME.fullmatch(path.name)
        if match is None or _is_alive(int(match["process"]), match["run"]):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(process: int, run: str | None) -> bool:
    """Whether the process is alive; where the number is our own, another run of that number is not."""
    if process == os.getpid():
        return run == _RUN
    if os.name == "nt":
        return True  # a signal would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
