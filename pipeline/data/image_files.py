"""Opens image files with bounded memory, and refuses pipes, devices and files larger than an image."""

import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from export.errors import ImageError
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
_BYTES = Budget(LARGEST_FILE)  # bytes of files in memory, in all threads together


@contextlib.contextmanager
def image_file(path: Path) -> Iterator[bytes]:
    """Hold the content of an image file while the block runs; threads wait before their files fill the memory.

    Raises:
        ImageError: it cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path) as (file, size), _BYTES.hold(size):
        with as_image_error():
            data = file.read(size)
        yield data


def hash_image_file(path: Path) -> str:
    """Return the sha256 of an image file, read in pieces.

    Raises:
        ImageError: it cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path) as (file, _), as_image_error():
        return digest_of(file)


@contextlib.contextmanager
def open_image_file(path: Path) -> Iterator[io.BufferedReader]:
    """Open an image file while the block runs, which may read all of it; threads wait before files fill the memory.

    Raises:
        ImageError: it cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path) as (file, size), _BYTES.hold(size):
        yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """An image file and its size in bytes."""
    with contextlib.ExitStack() as stack:
        with as_image_error():
            file = stack.enter_context(open(path, "rb", opener=_without_waiting))
            status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > LARGEST_FILE:
            raise ImageError(f"{count(status.st_size, 'byte')}, more than the {LARGEST_FILE:,} allowed")
        yield file, status.st_size


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its other end


@contextlib.contextmanager
def as_image_error(size: int = LARGEST_FILE) -> Iterator[None]:
    """Turn any error of the system or Pillow about an image file into an `ImageError`.

    Args:
        size: of the file in bytes; 0: it is empty. Defaults to a size that is not.

    Raises:
        ImageError: with the reason why the file cannot be read.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read" if size else "the file is empty") from error
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from error
    except MemoryError as error:
        raise ImageError("more than fits into the memory that is left") from error
    except OSError as error:  # without strerror it is Pillow's, about the file's content
        raise ImageError(error.strerror or str(error) or "not readable") from error
    except Exception as error:  # Pillow's plugins raise many types on damaged files
        raise ImageError(f"{type(error).__name__}: {error}") from error
