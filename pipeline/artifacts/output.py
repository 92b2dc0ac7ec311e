"""Places to write to, looked at before any work is done for them; a disk that is full all the same is said so."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.errors import ProjectError, add_note, notes
from export.files import FULL, with_place

_NEARLY_NOTHING = 2**20  # bytes; libraries report a full disk in many ways, and then less than this is left


def check_output(path: Path, option: str, example: str, endings: Sequence[str] = ()) -> None:
    """Refuse a path that no file can be written to. Folders that do not exist are made when it is written.

    Args:
        path: what was given.
        option: as it is typed, such as "-o".
        example: a name of such a file.
        endings: of the name, of which one must be there. Defaults to (): any.

    Raises:
        ProjectError: a folder, standard output, a device, another ending, or a place where nothing can be written.
    """
    if str(path) == "-":
        raise ProjectError(
            f"Expected a file after {option}, such as {example}. Received: -; nothing of this goes to standard output."
        )
    if path.is_dir():
        raise ProjectError(
            f"Expected a file after {option}, such as {path / example}. Received: {path}, which is a folder."
        )
    if endings and path.suffix.lower() not in endings:
        shorter = path.with_suffix("")  # of my.tar.gz my.tar, which is no my.tar.tar
        fit = shorter if shorter.suffix.lower() in endings else path.with_suffix(endings[0])
        wanted = f"ends in {' or '.join(endings)} after {option}, such as {fit}"
        raise ProjectError(f"Expected a file that {wanted}. Received: {path}.")
    if path.exists() and not path.is_file():
        raise ProjectError(
            f"Expected a file after {option}, such as {example}. Received: {path}, which is a device or a pipe."
        )
    check_folder(path.parent, option, path)


def check_folder(folder: Path, option: str, path: Path | None = None) -> None:
    """Refuse a folder that is none, or in which (or in the nearest one above that exists) nothing can be written.

    Args:
        folder: it need not exist yet.
        option: as it is typed.
        path: what is to be written there, as it was given. Defaults to None: the folder itself was given.

    Raises:
        ProjectError: with the reason of the system.
    """
    given = folder if path is None else path
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ProjectError(
            f"Expected a place in a folder after {option}. Received: {given}, where {there} is no folder."
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ProjectError(
            f"Expected a place that can be written after {option}. Received: {given}: {error.strerror or error} "
            f"(in {there}). Name another."
        ) from error


def require_space(folder: Path, needed: int, what: str, option: str = "--artifacts") -> None:
    """Refuse to start where a disk does not hold what is to be written.

    Args:
        folder: where to; it need not be there yet.
        needed: bytes, as few as it can be.
        what: is written, for the message.
        option: names another place. Defaults to "--artifacts".

    Raises:
        ProjectError: less is free.
    """
    free = _free(folder)
    if free is not None and free < needed:
        raise ProjectError(
            f"Expected at least {_size(needed)} free in {_there(folder)} for {what}. Received: {_size(free)}. "
            f"Free some, or name another place with {option}."
        )


@contextlib.contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Make whatever a library raises where the disk is full the system's error, with the folder that was written.

    HDF5, TensorFlow and numpy say it in as many ways, and some by a wrong number of bytes.

    Raises:
        OSError: instead of what was raised, if next to nothing is free. Errors of our own pass as they are.
    """
    try:
        yield
    except ProjectError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            with_place(error, folder)
            raise
        free = _free(folder)
        if free is None or free >= _NEARLY_NOTHING:
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        for note in notes(error):
            add_note(full, note)
        raise full from error


def sentence(error: OSError) -> str:
    """What the system said, as a sentence; of a full disk with what is free and what to do."""
    if error.errno not in FULL or not error.filename:  # without a name it may be anywhere
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    places, temporary = [Path(str(error.filename))], Path(tempfile.gettempdir())
    if _device(places[0]) != _device(temporary):
        places.append(temporary)  # libraries write there before they write here
    free = [f"{_size(bytes_free)} free in {_there(p)}" for p in places if (bytes_free := _free(p)) is not None]
    return (
        f"Expected space to write {error.filename}. Received: {error.strerror} ({', '.join(free)}). Free some, or "
        "write to another disk (--artifacts, -o, TMPDIR), and run the same command again."
    )


def _there(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path("/"))


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(_there(path)).free
    except OSError:
        return None


def _device(path: Path) -> int:
    return os.stat(_there(path)).st_dev


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
