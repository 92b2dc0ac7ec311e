"""Files that are whole or not there: hashing, atomic writes, folders that appear at once, and the lock on a recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.bounded_json import read_json_file
from export.sidecar import sha256_file as hash_file
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

LOCK_HELD = "PIPELINE_LOCK_HELD"  # set for commands that `run` starts while it holds the lock itself
_hashes: dict[tuple[str, int, int, int, int], str] = {}


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of plain values, independent of the order of keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


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


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, a full disk or a kill sees the former content or the new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused, because other readers of JSON refuse them too."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, within the bounds of ``export.bounded_json``.

    Raises:
        PipelineError: missing, damaged or out of bounds, with the path.
    """
    try:
        return read_json_file(path)
    except FileNotFoundError as error:
        raise PipelineError(f"Expected {path}, which does not exist.") from error
    except ValueError as error:
        raise PipelineError(
            f"Expected JSON in {path}. Received: {error}. Delete it and run its stage again."
        ) from error


@contextlib.contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``final`` when the block ends without an error.

    Whatever ends the block early, ``final`` keeps its former content and the temporary folder goes.
    """
    recover_folder(final)
    if final.exists() and not final.is_dir():
        raise PipelineError(f"Expected a folder at {final}. Received: a file. Move it away.")
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    former = _former(final)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            os.rename(final, former)
        os.rename(temporary, final)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(final)


def recover_folder(final: Path) -> None:
    """Clear what a killed process left: unfinished folders go, a former result that was set aside comes back."""
    former = _former(final)
    if former.exists():
        if final.is_dir():
            shutil.rmtree(former, ignore_errors=True)
        elif not final.exists():
            os.rename(former, final)
    for leftover in final.parent.glob(f".{final.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _former(final: Path) -> Path:
    return final.with_name(f".{final.name}.former")


def recover_folders(root: Path) -> None:
    """``recover_folder`` for every folder below ``root`` that a killed process left something of."""
    for leftover in [*root.glob(".*.former"), *root.glob(".*.tmp-*")]:
        if leftover.is_dir():
            recover_folder(root / leftover.name[1:].partition(".")[0])


@contextlib.contextmanager
def recipe_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a recipe's artifacts; a second process waits, and is told for whom.

    Raises:
        PipelineError: the lock is held and ``wait`` is false.
    """
    from filelock import FileLock, Timeout  # here, because GPU machines that lock nothing may lack it

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    if os.environ.get(LOCK_HELD) == str(path.resolve()):
        yield  # the command that started this one holds it
        return
    lock = FileLock(str(path))
    holder = folder / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _describe_holder(holder)
        if not wait:
            raise PipelineError(
                f"{folder} is in use by {who}. Wait for it, or leave out --no-wait to queue behind it."
            ) from None
        log.warning("waiting: %s is in use by %s", folder, who)
        lock.acquire()
    try:
        write_json(holder, {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        os.environ[LOCK_HELD] = str(path.resolve())
        recover_folders(folder)
        yield
    finally:
        os.environ.pop(LOCK_HELD, None)
        holder.unlink(missing_ok=True)
        lock.release()


def _describe_holder(holder: Path) -> str:
    try:
        info = json.loads(holder.read_text())
        return f"process {info['pid']} since {info['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
