"""Opens image files with bounded memory, and refuses pipes, devices and files larger than an image."""

import contextlib
import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from export.errors import ImageError, ImageStatus
from export.files import digest_of
from export.words import count


class Budget:
    """A quantity, such as memory, that threads share; a thread waits until others have returned what it needs.

    A thread that holds a part must not ask this budget for another; with two budgets, all threads must ask for the same
    one first. Then some thread can always go on.

    Args:
        total: the quantity, in any unit.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Hold a part while the block runs; an amount above the total counts as the total, so its block runs alone."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._held + amount <= self._total)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


LARGEST_FILE = 2**29  # 512 MiB: 179 megapixels of RGB without any compression
FILE_BYTES = Budget(LARGEST_FILE)  # of files and members of archives in memory, in all threads together


@contextlib.contextmanager
def image_file(path: Path, largest: int = LARGEST_FILE) -> Iterator[bytes]:
    """Hold the content of an image file while the block runs; threads wait before their files fill the memory.

    Args:
        path: the file.
        largest: bytes; a larger file is refused before it is read. Defaults to 512 MiB.

    Raises:
        ImageError: it is missing, cannot be read, is no regular file, or too large.
    """
    with _opened(path, largest) as (file, size), FILE_BYTES.hold(size):
        with as_image_error():
            data = file.read(size)
        yield data


def hash_image_file(path: Path) -> str:
    """Return the sha256 of an image file, read in pieces.

    Raises:
        ImageError: it is missing, cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path, LARGEST_FILE) as (file, _), as_image_error():
        return digest_of(file)


@contextlib.contextmanager
def open_image_file(path: Path) -> Iterator[io.BufferedReader]:
    """Open an image file while the block runs, which may read all of it; threads wait before files fill the memory.

    Raises:
        ImageError: it is missing, cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path, LARGEST_FILE) as (file, size), FILE_BYTES.hold(size):
        yield file


@contextlib.contextmanager
def _opened(path: Path, largest: int) -> Iterator[tuple[io.BufferedReader, int]]:
    """An image file and its size in bytes."""
    with contextlib.ExitStack() as stack:
        with as_image_error():
            _check_name(path)
            _check_file(os.stat(path))  # opening a device may already do something
            file = stack.enter_context(open(path, "rb", opener=_without_waiting))
            status = os.fstat(file.fileno())
            _check_file(status)
        check_bytes(status.st_size, largest)
        yield file, status.st_size


def check_bytes(size: int, largest: int) -> None:
    """Refuse more bytes than are allowed.

    Raises:
        ImageError: there are more.
    """
    if size > largest:
        raise ImageError(f"{count(size, 'byte')}, more than the {largest:,} allowed", "too_large")


def _check_name(path: Path) -> None:
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ImageError("a name that no file can have", "missing")


_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for fits, name in _KINDS if fits(status.st_mode)), "a device")
        raise ImageError(f"{kind}, not a regular file", "not_a_file")


def _without_waiting(path: str, flags: int) -> int:
    """Open what may have become a pipe, which would wait for its other end, or a terminal, which would take control."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_FILE = frozenset({errno.EISDIR, errno.ENXIO, errno.ENODEV})  # it became one between two looks


@contextlib.contextmanager
def as_image_error(size: int = LARGEST_FILE) -> Iterator[None]:
    """Turn any error of the system or Pillow about an image file into an `ImageError`.

    Args:
        size: of the file in bytes; 0: it is empty. Defaults to a size that is not.

    Raises:
        ImageError: with the reason why the file cannot be read, and its status.
        ModuleNotFoundError: simplejpeg is not installed.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        reason = "not an image that Pillow can read" if size else "the file is empty"
        raise ImageError(reason, "not_an_image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(str(error), "too_large") from error
    except MemoryError as error:
        raise ImageError("more than fits into the memory that is left", "too_large") from error
    except OSError as error:
        raise ImageError(error.strerror or _in_a_line(error) or "not readable", _status(error)) from error
    except Exception as error:  # Pillow's plugins raise many types on damaged files
        if isinstance(error, ModuleNotFoundError) and error.name == "simplejpeg":
            raise  # says nothing of the file
        raise ImageError(f"{type(error).__name__}: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _status(error: OSError) -> ImageStatus:
    if error.errno is None:  # Pillow's, about the file's content
        return "damaged"
    return "missing" if error.errno in _MISSING else "not_a_file" if error.errno in _NO_FILE else "unreadable"
