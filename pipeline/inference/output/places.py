"""Files and locks inside a run's folder: no link is followed, and a lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from export.errors import ProjectError

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_BEYOND = 2**30  # Windows locks bytes, and nobody else can read these


class NoLocksError(ProjectError):
    """A file cannot be locked, by anybody."""


def open_inside(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a file that is no link, for this user alone if it is made."""
    return os.open(path, _FLAGS | flags, 0o600)


def lock(descriptor: int, path: Path) -> bool:
    """Take the lock on an open file, if no other descriptor has it; closing the descriptor gives it back.

    Args:
        descriptor: of the file.
        path: of the file, for messages.

    Raises:
        NoLocksError: Its file system, or this Python, locks no files.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except ModuleNotFoundError as error:
        raise _no_locks(path, str(error)) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise _no_locks(path, str(error.strerror)) from error
    return True


def _no_locks(path: Path, received: str) -> NoLocksError:
    return NoLocksError(
        f"Expected a file system that locks files, so that no other run writes the same output. Received: {path}: "
        f"{received}. Write to a folder on another disk, such as /tmp, and copy what is finished."
    )


def is_locked(path: Path) -> bool:
    """Return whether somebody holds the lock on a file; one that is missing is not locked."""
    try:
        descriptor = open_inside(path, os.O_RDWR)  # network file systems lock only what may be written
    except FileNotFoundError:
        return False
    try:
        return not lock(descriptor, path)
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at that path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; -1 where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(path).st_size
    return -1


def write_at(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """Write all bytes at an offset of a file; the system may take them in pieces."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def foreign(folder: Path) -> str:
    """Return why something is no folder that this user made, "" where it is one."""
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode):
        return "a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "no folder"
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return "a folder of another user"
    return ""
