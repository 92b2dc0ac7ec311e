"""Digests, JSON, libraries' temporary files, and the lock on a recipe's artifacts."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ProjectError, add_note, notes
from export.files import recover_folders, temporary_folder, write_atomic
from export.records import read_json_file, to_json
from export.tensorrt.sidecar import sha256_file as hash_file

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger(__name__)

LOCK_HELD = "PIPELINE_LOCK_HELD"  # environment variable, set for commands that `run` starts while it holds the lock
_hashes: dict[tuple[str, int, int, int, int], str] = {}


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of bytes as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the sha256 of plain values, independent of the order of keys."""
    return sha256_bytes(_encoded(json.dumps(value, sort_keys=True, ensure_ascii=False)))


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file; a process reads an unchanged file only once."""
    stat = path.stat()
    key = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _hashes:
        _hashes[key] = hash_file(path)
    return _hashes[key]


def sha256_path(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's files with their relative names."""
    if not path.is_dir():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_json([[p.relative_to(path).as_posix(), sha256_file(p)] for p in files])


def escape_undecodable(name: str) -> str:
    r"""Return a file name as text that libraries accept: a byte that is not UTF-8 becomes an escape, ``\udcff``."""
    return _encoded(name).decode()


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # the form of JSON's escapes, so that JSON stays valid


def as_json(value: Any) -> str:
    """Return plain values as JSON text.

    Raises:
        ValueError: NaN or infinity, which other readers of JSON refuse.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a record or plain values as JSON atomically; see `to_json` and `as_json`."""
    write_atomic(path, as_json(to_json(value)))


def read_json(path: Path) -> Any:
    """Read JSON within the bounds of ``export.records``.

    Raises:
        ProjectError: It is missing, damaged or out of bounds; with the path.
    """
    try:
        return read_json_file(path)
    except FileNotFoundError as error:
        raise ProjectError(f"Expected {path}, which does not exist.") from error
    except ValueError as error:
        raise ProjectError(f"Expected JSON in {path}. Received: {error}. Delete it and run its stage again.") from error


@contextlib.contextmanager
def redirect_temporary_files() -> Iterator[Path]:
    """Redirect libraries' temporary files, in all threads, to a folder that is deleted at the end.

    Keras unpacks archives that have assets, and leaves the copy behind if reading fails. What a killed process left is
    removed the next time.
    """
    previous = tempfile.tempdir
    with temporary_folder(Path(tempfile.gettempdir()) / "pipeline", mode=0o700) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = previous


@contextlib.contextmanager
def recipe_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a recipe's artifacts; a second process waits, and logs who holds the lock.

    In a folder that cannot be written, up-to-date results are used without the lock. A folder that was created for the
    lock and stayed empty is removed.

    Args:
        folder: ``artifacts/<recipe>``.
        wait: Whether to wait for a lock that is held. Defaults to True.

    Raises:
        ProjectError: The lock is held and ``wait`` is False, or something has to be written and cannot be.
    """
    from filelock import FileLock  # here, because GPU machines that lock nothing may not have it

    path = folder / ".lock"
    if os.environ.get(LOCK_HELD) == str(path.resolve()):
        yield  # the parent process holds it
        return
    lock = FileLock(str(path))
    holder = folder / ".lock.json"
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        try:
            _take(lock, folder, holder, wait)
        except OSError as error:
            if not folder.is_dir() or error.errno not in _UNWRITABLE:
                raise
            log.info("%s cannot be written (%s): what is up to date there is used", folder, error.strerror)
        else:
            recover_folders(folder)
        os.environ[LOCK_HELD] = str(path.resolve())
        yield
    except OSError as error:
        place = Path(str(error.filename))
        is_ours = place in created or place.is_relative_to(folder)
        if not is_ours or (error.errno not in _UNWRITABLE and folder.is_dir()):
            raise
        refused = ProjectError(
            f"Expected a folder that can be written, for the results of this recipe. Received: {folder}: "
            f"{error.strerror or error}. Name another with --artifacts."
        )
        for note in notes(error):
            add_note(refused, note)
        raise refused from error
    finally:
        os.environ.pop(LOCK_HELD, None)
        if lock.is_locked:
            with contextlib.suppress(OSError):
                holder.unlink(missing_ok=True)
            _remove_unused(created, path)
        lock.release()


_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def _take(lock: FileLock, folder: Path, holder: Path, wait: bool) -> None:
    """Take the lock, waiting for the process that holds it, and record this process as its holder."""
    from filelock import Timeout

    try:
        _acquire(lock, folder, timeout=0)
    except Timeout:
        who = _describe_holder(holder)
        if not wait:
            raise ProjectError(
                f"{folder} is in use by {who}. Wait for it, or leave out --no-wait to queue behind it."
            ) from None
        log.warning("waiting: %s is in use by %s", folder, who)
        _acquire(lock, folder)
    write_json(holder, {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})


def _acquire(lock: FileLock, folder: Path, timeout: float = -1) -> None:
    while not lock.is_locked:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
        except FileNotFoundError:
            continue  # the holder wrote nothing and removed the folder
        except FileExistsError:  # the folder existed for mkdir, and was removed before mkdir checked what it is
            if os.path.lexists(folder) and not folder.is_dir():
                raise


def _remove_unused(created: Sequence[Path], lock: Path) -> None:
    """Remove folders that were created for the lock, innermost first, if they hold nothing but the lock."""
    if created and [entry.name for entry in created[0].iterdir()] == [lock.name]:
        with contextlib.suppress(OSError):
            lock.unlink()
            for folder in created:
                folder.rmdir()


def _describe_holder(holder: Path) -> str:
    try:
        info = read_json_file(holder)
        return f"process {info['pid']} since {info['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
