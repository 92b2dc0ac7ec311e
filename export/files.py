"""Files and folders that are whole or not there, whatever ends the process that writes them.

What becomes ``<name>`` is written beside it as ``.<name>.tmp-<process>-<run>-<turn>``, brought to the disk, and then
renamed. No two writes share such a name, in whatever thread or process. What a killed process left of one goes with the
next write of that file, or with the next command that takes the lock on its folder. Nothing else in this project puts a
file in the place of another. Standard library only, Python 3.10 syntax.
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

ROOT = Path(__file__).resolve().parent.parent  # of the checkout, where the code lies


FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME = re.compile(r"\.(?P<final>.+)\.tmp-(?P<process>\d+)(?:-(?P<run>[0-9a-f]{8})-\d+)?", re.DOTALL)
_RUN = secrets.token_hex(4)  # process numbers come again, in a container with every start
_turns = itertools.count()


def write_atomic(path: Path, data: bytes | bytearray | memoryview | str) -> None:
    """Write a file so that a reader, a full disk or a kill sees the former content or the new one, nothing between.

    Args:
        path: where to; its folder is made.
        data: text is written as UTF-8; what UTF-8 cannot hold (a lone surrogate) as JSON escapes it.
    """
    with replacing_file(path) as temporary:
        temporary.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of ``path`` when the block ends without an error.

    Whatever ends the block early, ``path`` keeps its former content and nothing stays beside it.
    """
    with replacing_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield where to write files that belong together; they take their places in this order, once all are on the disk.

    Where one of them cannot, none of them stays: neither those that did before, nor their former content, which would
    belong to none.
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
        with_place(error, paths[0])
        raise
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def put_file(finished: Path, path: Path) -> None:
    """Bring a finished file to the disk, and put it in the place of ``path``, which lies on the same one."""
    sync(finished)
    os.replace(finished, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``final`` when the block ends without an error.

    Whatever ends the block early, ``final`` keeps its former content and the temporary folder goes.
    """
    recover_folder(final)
    _refuse_file(final)
    with temporary_folder(final) as temporary:
        yield temporary
        put_folder(temporary, final)


def put_folder(finished: Path, final: Path) -> None:
    """Bring a finished folder to the disk, and put it in the place of ``final``, which lies on the same one.

    Raises:
        ProjectError: a file is there.
    """
    _refuse_file(final)
    former = _former(final)
    try:
        for path in (finished, *finished.rglob("*")):
            if path.is_symlink():
                continue
            if path.is_file():
                sync(path)
            elif path.is_dir():
                _sync_folder(path)  # or it comes back without the names of its files
        if final.exists():
            os.rename(final, former)
        os.rename(finished, final)
        _sync_folder(final.parent)
    finally:
        recover_folder(final)  # and the former one goes, or comes back


def recover_folder(final: Path) -> None:
    """Clear what a killed process left: unfinished folders go, a former result that was set aside comes back."""
    former = _former(final)
    if os.path.lexists(former):
        if final.is_dir():
            _remove(former)
        elif not final.exists():
            os.rename(former, final)
    remove_leftovers(temporaries_of(final))


def recover_folders(root: Path) -> None:
    """Clear what killed processes left below ``root``, which nobody else writes to now."""
    for former in root.glob(".*.former"):
        recover_folder(root / former.name[1:].removesuffix(".former"))
    remove_leftovers(root.rglob(".*.tmp-*"))


@contextlib.contextmanager
def temporary_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, named after it, that goes when the block ends, however it does.

    Args:
        path: what it is for.
        mode: permissions, as far as the system's mask leaves them. Defaults to all.
    """
    folder = temporary_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
        _remove(path)


def digest_of(file: IO[bytes], algorithm: str = "sha256") -> str:
    """Hex digest of the rest of an open file, read in pieces; ``hashlib.file_digest`` is of Python 3.11.

    Args:
        file: open for reading bytes.
        algorithm: a name that ``hashlib`` knows. Defaults to "sha256".
    """
    digest = hashlib.new(algorithm)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until the disk has what was written to a file."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def with_place(error: OSError, path: Path) -> None:
    """Give an error of a full disk the path that was being written, where the system did not: ``write`` knows none."""
    if error.errno in FULL and error.filename is None:
        error.filename = str(path)


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's new names. Some file systems, and Windows, sync no folders."""
    with contextlib.suppress(OSError):
        sync(folder)


def _remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, as far as it can be; what a link leads to stays."""
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
        pass  # somebody else's
    return True
