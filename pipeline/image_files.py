"""Opens image files, and nothing else that has a name: no pipe, no device, no file larger than an image is."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from export.files import digest_of
from pipeline.budget import Budget
from pipeline.errors import ImageError
from pipeline.words import count

LARGEST_FILE = 2**29  # 512 MiB: 179 megapixels of RGB without any compression
_BYTES = Budget(LARGEST_FILE)  # of files that are in memory, in all threads together


@contextlib.contextmanager
def image_file(path: Path) -> Iterator[bytes]:
    """The content of an image file while the block runs; threads wait for each other before files fill the memory.

    Raises:
        ImageError: it cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        with _BYTES.hold(size):
            with _as_image_error():
                data = file.read(size)
            yield data


def hash_image_file(path: Path) -> str:
    """sha256 of an image file, read in pieces.

    Raises:
        ImageError: it cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path) as file, _as_image_error():
        return digest_of(file)


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[io.BufferedReader]:
    """An image file, open while the block runs, for who may read all of it: threads wait for each other before that.

    Raises:
        ImageError: it cannot be read, is no regular file, or larger than 512 MiB.
    """
    with _opened(path) as file, _BYTES.hold(os.fstat(file.fileno()).st_size):
        yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    with contextlib.ExitStack() as stack:
        with _as_image_error():
            file = stack.enter_context(open(path, "rb", opener=_without_waiting))
            status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > LARGEST_FILE:
            raise ImageError(f"{count(status.st_size, 'byte')}, more than the {LARGEST_FILE:,} allowed")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its other end


@contextlib.contextmanager
def _as_image_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except MemoryError as error:
        raise ImageError("more than fits into the memory that is left") from error
