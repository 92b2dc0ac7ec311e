"""What the listing of inputs finds, before it has a row."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from export.errors import ImageStatus
from pipeline.inference.items import Kind

BESIDE_PLAN = "\0"  # first character of a place that is a file in the plan's folder; no path has it


class Found(NamedTuple):
    """An item without a row number, with the time of its file.

    Attributes:
        path: see `pipeline.inference.items.Item`, as are kind, start, size and status.
        kind: likewise.
        place: likewise, and "" where it is the path; `BESIDE_PLAN` and a name for a file beside the plan.
        start: likewise.
        size: likewise.
        mtime_ns: when the file of its content changed, in nanoseconds; 0 where there is none.
        status: of a "problem".
    """

    path: str
    kind: Kind
    place: str = ""
    start: int = 0
    size: int = -1
    mtime_ns: int = 0
    status: ImageStatus = "unreadable"


def found_file(path: str) -> Found:
    """Return the item of a path, whatever is there: decoding tells what it is."""
    try:
        facts = os.stat(path)
    except OSError:
        return Found(path, "file")
    except ValueError:
        return problem(path, "a NUL character, which no path has")
    return Found(path, "file", "", 0, facts.st_size if stat.S_ISREG(facts.st_mode) else -1, facts.st_mtime_ns)


def problem(path: str, reason: str, status: ImageStatus = "unreadable", start: int = 0, mtime_ns: int = 0) -> Found:
    """Return an item that has no content."""
    return Found(path, "problem", reason, start, -1, mtime_ns, status)


def system_problem(path: str, what: str, error: OSError) -> Found:
    """Return the item for what the system refuses, such as "the folder cannot be listed"."""
    gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return problem(path, f"{what}: {error.strerror or error}", "missing" if gone else "unreadable")
