"""Names of files that are not whole yet, all of one form, so that what a killed process left can be told and removed.

``.<name>.tmp-<process>`` lies beside the file that it becomes. It goes with the next write of that file, or with the
next command that takes the lock on its folder, once its process is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"\.(?P<final>.+)\.tmp-(?P<process>\d+)", re.DOTALL)


def temporary_path(path: Path) -> Path:
    """Where this process writes what becomes ``path``; what killed processes left of earlier writes goes."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    remove_leftovers(other for other in temporaries_of(path) if other != temporary)
    return temporary


def temporaries_of(path: Path) -> list[Path]:
    """The temporary files and folders, of any process, that were to become ``path``."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []  # the folder is made later, or the write says what is wrong
    matches = [match for name in names if (match := _NAME.fullmatch(name)) and match["final"] == path.name]
    return [path.with_name(match[0]) for match in matches]


def remove_leftovers(found: Iterable[Path]) -> None:
    """Remove temporary files and folders, except those of other processes that are alive."""
    for path in found:
        match = _NAME.fullmatch(path.name)
        if match is None or _is_of_another(int(match["process"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_of_another(process: int) -> bool:
    """Whether another process of that number is alive; one of our own number left it before we were there."""
    if process == os.getpid():
        return False
    if os.name == "nt":
        return True  # a signal would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
