"""Atomic writes: a file or folder is complete or absent, whatever ends the process that writes it.

The content of ``<name>`` is written beside it as ``.<name>.tmp-<process>-<run>-<turn>``, synced to the disk, and then
renamed. The temporary name is unique in every thread and process. The next write of that file, or the next command that
takes the lock on its folder, removes the leftovers of killed processes. No other module of this project replaces a
file. Standard library only, Python 3.10 syntax.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from export.errors import ProjectError
from export.words import count

ROOT = Path(__file__).resolve().parent.parent  # the folder of the checkout

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME = re.compile(r"\.(?P<final>.+)\.tmp-(?P<process>\d+)(?:-(?P<run>[0-9a-f]{8})-\d+)?", re.DOTALL)
_LONGEST = 7 + 1 + 8 + 1 + 6  # characters of what ends a temporary name: the process, the run, the turn
_RUN = secrets.token_hex(4)  # process numbers repeat, in a container at every start
_turns = itertools.count()


def write_atomic(path: Path, data: bytes | bytearray | memoryview | str) -> None:
    """Write a file atomically: after a full disk or a kill it has the former content or the new one.

    Args:
        path: The file; its folder is created.
        data: The content. Text is written as UTF-8, lone surrogates as JSON escapes them.
    """
    with replacing_file(path) as temporary:
        temporary.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield the temporary path of a file that replaces ``path`` when the block ends without an error.

    If the block fails, ``path`` keeps its former content and the temporary file is removed.
    """
    with replacing_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield the temporary paths of files that belong together; once all are on the disk, they are renamed in order.

    If a rename fails, all of the files are removed: those already replaced, and the former content of the others,
    which would not match them.
    """
    temporaries = [temporary_path(path) for path in paths]
    replaced = False
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        for temporary, path in zip(temporaries, paths):
            os.replace(temporary, path)
            replaced = True
        _sync_folder(paths[0].parent)
    except OSError as error:
        for path in paths if replaced else ():
            path.unlink(missing_ok=True)
        add_path(error, paths[0])
        raise
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def commit_file(finished: Path, path: Path) -> None:
    """Sync a finished file to the disk and rename it to ``path``, which is on the same file system."""
    sync(finished)
    os.replace(finished, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``final`` when the block ends without an error.

    If the block fails, ``final`` keeps its former content and the temporary folder is removed.
    """
    recover_folder(final)
    _refuse_file(final)
    with temporary_folder(final) as temporary:
        yield temporary
        commit_folder(temporary, final)


def commit_folder(finished: Path, final: Path) -> None:
    """Sync a finished folder to the disk and rename it to ``final``, which is on the same file system.

    Raises:
        ProjectError: ``final`` is a file.
    """
    _refuse_file(final)
    try:
        for folder, _, names in os.walk(finished):  # which keeps no list of all, as a folder may have a million links
            for path in (Path(folder, name) for name in names):
                if not path.is_symlink() and path.is_file():
                    sync(path)
            _sync_folder(Path(folder))  # else the names of its files may be lost
        if final.exists():
            os.rename(final, _former(final))
        os.rename(finished, final)
        _sync_folder(final.parent)
    finally:
        recover_folder(final)  # removes the former folder, or restores it


def recover_folder(final: Path) -> None:
    """Clean up after a killed process: remove unfinished folders, restore a former result that was set aside."""
    former = _former(final)
    if os.path.lexists(former):
        if final.is_dir():
            _remove(former)
        elif not final.exists():
            os.rename(former, final)
    remove_leftovers(temporaries_of(final))


def recover_folders(root: Path) -> None:
    """Clean up after killed processes below ``root``, which no other process writes to at this time."""
    for former in root.glob(".*.former"):
        recover_folder(root / former.name[1:].removesuffix(".former"))
    remove_leftovers(root.rglob(".*.tmp-*"))


@contextlib.contextmanager
def temporary_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, named after it, that is removed when the block ends.

    Args:
        path: The file or folder that the temporary folder is for.
        mode: Permissions, reduced by the system's mask. Defaults to all.
    """
    folder = temporary_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """Return a new temporary path for ``path``, which the caller removes; remove those that killed processes left."""
    remove_leftovers(temporaries_of(path))
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{_RUN}-{next(_turns)}")


def refuse_long_name(path: Path, option: str) -> None:
    """Refuse a name to which its file system cannot add what the temporary one has more.

    Args:
        path: The file or folder that is to be written.
        option: What a person gave it after, for the message.

    Raises:
        ProjectError: It is too long.
    """
    folder = Path(os.path.abspath(path)).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent  # the first one that is there; the others are made
    try:
        os.lstat(folder / f".{path.name}.tmp-{'0' * _LONGEST}")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            size, more = len(os.fsencode(path.name)), count(_LONGEST + len("..tmp-"), "byte")
            raise ProjectError(
                f"Expected a shorter name after {option}, to which a temporary one can add {more}. "
                f"Received: {path}, whose name has {size}."
            ) from None


def temporaries_of(path: Path) -> list[Path]:
    """Return the temporary files and folders of ``path``, those of all processes."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []  # the folder is created later, or the write reports the error
    return [path.with_name(name) for name in names if (match := _NAME.fullmatch(name)) and match["final"] == path.name]


def remove_leftovers(temporaries: Iterable[Path]) -> None:
    """Remove temporary files and folders, except those of processes that are alive, this one included."""
    for path in temporaries:
        match = _NAME.fullmatch(path.name)
        if match is not None and not _is_alive(int(match["process"]), match["run"]):
            _remove(path)


def digest_of(file: IO[bytes], algorithm: str = "sha256") -> str:
    """Return the hex digest of the rest of an open file, read in pieces; ``hashlib.file_digest`` needs Python 3.11.

    Args:
        file: Open for reading bytes.
        algorithm: A name that ``hashlib`` knows. Defaults to "sha256".
    """
    digest = hashlib.new(algorithm)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add_path(error: OSError, path: Path) -> None:
    """Set the path of a disk-full error that has none, as an error of ``write`` (in place)."""
    if error.errno in DISK_FULL and error.filename is None:
        error.filename = str(path)


def _sync_folder(folder: Path) -> None:
    """Wait until the new names in a folder are on the disk; some file systems, and Windows, do not sync folders."""
    with contextlib.suppress(OSError):
        sync(folder)


def _remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link without its target, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _former(final: Path) -> Path:
    return final.with_name(f".{final.name}.former")


def _refuse_file(final: Path) -> None:
    if final.exists() and not final.is_dir():
        raise ProjectError(f"Expected a folder at {final}. Received: a file. Move it away.")


def _is_alive(process: int, run: str | None) -> bool:
    """Return whether a process is alive; of this process's own number only this run is."""
    if process == os.getpid():
        return run == _RUN
    if os.name == "nt":
        return True  # a signal would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # a process of another user
    return True
