"""Files of a recipe: their digests, JSON, the temporary ones of libraries, and the lock on the recipe's folder."""

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
from export.records import read_json_file
from export.tensorrt.sidecar import sha256_file as hash_file

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger(__name__)

LOCK_HELD = "PIPELINE_LOCK_HELD"  # set for commands that `run` starts while it holds the lock itself
_hashes: dict[tuple[str, int, int, int, int], str] = {}


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of plain values, independent of the order of keys."""
    return sha256_bytes(_encoded(json.dumps(value, sort_keys=True, ensure_ascii=False)))


def sha256_file(path: Path) -> str:
    """Hex digest of a file; within one process an unchanged file is read once."""
    stat = path.stat()
    key = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _hashes:
        _hashes[key] = hash_file(path)
    return _hashes[key]


def sha256_path(path: Path) -> str:
    """Hex digest of a file, or of a folder's files with their names below it."""
    if not path.is_dir():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_json([[p.relative_to(path).as_posix(), sha256_file(p)] for p in files])


def as_text(name: str) -> str:
    r"""A name that libraries take: a byte of a file name that is no UTF-8 (a lone surrogate) becomes ``\udcff``."""
    return _encoded(name).decode()


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # as JSON escapes, so that JSON stays JSON


def as_json(value: Any) -> str:
    """Plain values as JSON. NaN and infinity are refused, because other readers of JSON refuse them too."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; see `as_json`."""
    write_atomic(path, as_json(value))


def read_json(path: Path) -> Any:
    """Read JSON, within the bounds of ``export.records``.

    Raises:
        ProjectError: missing, damaged or out of bounds, with the path.
    """
    try:
        return read_json_file(path)
    except FileNotFoundError as error:
        raise ProjectError(f"Expected {path}, which does not exist.") from error
    except ValueError as error:
        raise ProjectError(f"Expected JSON in {path}. Received: {error}. Delete it and run its stage again.") from error


@contextlib.contextmanager
def own_temporary_files() -> Iterator[Path]:
    """Lead the temporary files of libraries to a folder of our own, which goes at the end, whatever they leave in it.

    Keras unpacks an archive that has assets, and leaves the copy where reading it fails. What a killed process left is
    removed by the next one that comes here. Every thread's temporary files go there meanwhile.
    """
    former = tempfile.tempdir
    with temporary_folder(Path(tempfile.gettempdir()) / "pipeline", mode=0o700) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = former


@contextlib.contextmanager
def recipe_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a recipe's artifacts; a second process waits, and is told for whom.

    What is up to date in a folder that cannot be written is used without the lock. A folder that is made for the lock
    goes where nothing else came into it.

    Raises:
        ProjectError: the lock is held and ``wait`` is false, or something is to be written and cannot be.
    """
    from filelock import FileLock  # here, because GPU machines that lock nothing may lack it

    path = folder / ".lock"
    if os.environ.get(LOCK_HELD) == str(path.resolve()):
        yield  # the command that started this one holds it
        return
    lock = FileLock(str(path))
    holder = folder / ".lock.json"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    locked = True
    try:
        try:
            _take(lock, folder, holder, wait)
        except OSError as error:
            if not folder.is_dir() or error.errno not in _UNWRITABLE:
                raise
            log.info("%s cannot be written (%s): what is up to date there is used", folder, error.strerror)
            locked = False
        os.environ[LOCK_HELD] = str(path.resolve())
        if locked:
            recover_folders(folder)
        yield
    except OSError as error:
        if _is_below(error.filename, folder, made) and (error.errno in _UNWRITABLE or not folder.is_dir()):
            raise _cannot_write(folder, error) from error
        raise
    finally:
        os.environ.pop(LOCK_HELD, None)
        if lock.is_locked:
            with contextlib.suppress(OSError):
                holder.unlink(missing_ok=True)
            _remove_unused(made, path)
        lock.release()


_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def _take(lock: FileLock, folder: Path, holder: Path, wait: bool) -> None:
    """Take the lock, from whoever has it as soon as that is done, and write who has it now."""
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
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
            return
        except FileNotFoundError:
            continue  # who held it wrote nothing, and took the folder away
        except FileExistsError:  # it was there when it was to be made, and went before that was looked at
            if os.path.lexists(folder) and not folder.is_dir():
                raise


def _remove_unused(made: Sequence[Path], lock: Path) -> None:
    """Remove folders that were made for the lock, innermost first, where nothing but the lock is in them."""
    if not made or [entry.name for entry in made[0].iterdir()] != [lock.name]:
        return
    with contextlib.suppress(OSError):
        lock.unlink()
        for folder in made:
            folder.rmdir()


def _is_below(name: Any, folder: Path, made: Sequence[Path]) -> bool:
    return isinstance(name, str) and (Path(name) in made or folder in (Path(name), *Path(name).parents))


def _cannot_write(folder: Path, error: OSError) -> ProjectError:
    refused = ProjectError(
        f"Expected a folder that can be written, for the results of this recipe. Received: {folder}: "
        f"{error.strerror or error}. Name another with --artifacts."
    )
    for note in notes(error):
        add_note(refused, note)
    return refused


def _describe_holder(holder: Path) -> str:
    try:
        info = read_json_file(holder)
        return f"process {info['pid']} since {info['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
