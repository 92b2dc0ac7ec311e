"""Check output paths and free disk space before any work starts, and explain a full disk."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.errors import ProjectError, add_note, notes
from export.files import DISK_FULL, add_path
from export.words import count

_NEARLY_NOTHING = 2**20  # bytes; with less than this free, an error of a library is taken for a full disk


def check_output(path: Path, option: str, example: str, endings: Sequence[str] = ()) -> None:
    """Refuse a path to which no file can be written; missing folders are created later, when it is written.

    Args:
        path: Path of the output file.
        option: Option that names it, such as "-o".
        example: Name of such a file, for messages.
        endings: File name endings that are allowed. Defaults to (): any.

    Raises:
        ProjectError: The path is a folder, standard output or a device, has another ending, or cannot be written.
    """
    for is_refused, such_as, received in (
        (str(path) == "-", example, "-; nothing of this goes to standard output"),
        (path.is_dir(), path / example, f"{path}, which is a folder"),
        (path.exists() and not path.is_file(), example, f"{path}, which is a device or a pipe"),
    ):
        if is_refused:
            raise ProjectError(f"Expected a file after {option}, such as {such_as}. Received: {received}.")
    if endings and path.suffix.lower() not in endings:
        shorter = path.with_suffix("")  # my.tar.gz becomes my.tar, not my.tar.tar
        fit = shorter if shorter.suffix.lower() in endings else path.with_suffix(endings[0])
        raise ProjectError(
            f"Expected a file that ends in {' or '.join(endings)} after {option}, such as {fit}. Received: {path}."
        )
    check_folder(path.parent, option, path)


def check_folder(folder: Path, option: str, path: Path | None = None) -> None:
    """Refuse a folder if nothing can be written to it or, where it does not exist, to its nearest existing parent.

    Args:
        folder: The folder; it need not exist.
        option: Option that names it.
        path: File to be written in the folder, for messages. Defaults to None: the folder itself.

    Raises:
        ProjectError: The folder cannot be written; with the system's reason.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ProjectError(
            f"Expected a place in a folder after {option}. Received: {path or folder}, where {existing} is no folder."
        )
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ProjectError(
            f"Expected a place that can be written after {option}. Received: {path or folder}: "
            f"{error.strerror or error} (in {existing}). Name another."
        ) from error


def require_space(folder: Path, needed: int, what: str, option: str = "--artifacts") -> None:
    """Refuse to start if the disk has too little space for the files to be written.

    Args:
        folder: Folder to be written; it need not exist.
        needed: Lower bound of the size in bytes.
        what: Description of the files, for the message.
        option: Option that names another folder. Defaults to "--artifacts".

    Raises:
        ProjectError: Less space is free.
    """
    free = _free(folder)
    if free is not None and free < needed:
        raise ProjectError(
            f"Expected at least {_size(needed)} free in {_nearest_folder(folder)} for {what}. Received: {_size(free)}. "
            f"Free some, or name another place with {option}."
        )


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Replace whatever a library raises on a full disk by the system's error, with the folder that was written.

    HDF5, TensorFlow and NumPy each report a full disk in their own way, some as a wrong number of bytes.

    Raises:
        OSError: Instead of the library's error, if almost nothing is free. A ProjectError passes unchanged.
    """
    try:
        yield
    except ProjectError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            add_path(error, folder)
            raise
        free = _free(folder)
        if free is None or free >= _NEARLY_NOTHING:
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        for note in notes(error):
            add_note(full, note)
        raise full from error


def describe_os_error(error: OSError) -> str:
    """Return the system's error as a sentence; for a full disk, with the free space and what to do."""
    if error.errno not in DISK_FULL or not error.filename:  # without a name the full disk is unknown
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    # Libraries write to the temporary folder first, which may be on another disk.
    folders = [_nearest_folder(Path(str(error.filename))), _nearest_folder(Path(tempfile.gettempdir()))]
    if _device(folders[0]) == _device(folders[1]):
        del folders[1]
    free = [f"{_size(size)} free in {folder}" for folder in folders if (size := _free(folder)) is not None]
    return (
        f"Expected space to write {error.filename}. Received: {error.strerror} ({', '.join(free)}). Free some, or "
        "write to another disk (--artifacts, -o, TMPDIR), and run the same command again."
    )


def _nearest_folder(path: Path) -> Path:
    """Return the folder itself, or its nearest existing parent."""
    return next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path("/"))


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(_nearest_folder(path)).free
    except OSError:
        return None


def _device(path: Path) -> int:
    return path.stat().st_dev


def _size(number: int) -> str:
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{number / size:.1f} {unit}" for unit, size in units if number >= size), count(number, "byte"))
