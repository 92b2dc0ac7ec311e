"""Reads arrays from .npz and .npy files, after comparing what their headers promise with what the files hold.

numpy and the standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.archive_files import open_zip
from pipeline.errors import DataError
from pipeline.words import count, listed

# Photographs shrink by a half, MNIST's digits to a fifth, drawings and masks to a thirtieth; deflate's utmost is a
# thousandth, which nothing but one repeated value comes near. The constant lets small files be.
RATIO, SMALL = 100, 32 * 2**20
ARRAYS = "arrays as numpy.savez writes them"
LONGEST_HEADER = 10_000  # as numpy
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RecursionError,
)


def array_names(path: Path, expected: str = ARRAYS) -> list[str]:
    """The names of an archive's arrays.

    Args:
        path: the file.
        expected: what it should be, for the message.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an .npz file.
    """
    with _reading(path, expected), open_zip(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_arrays(path: Path, names: Sequence[str] | None = None, expected: str = ARRAYS) -> dict[str, np.ndarray]:
    """Read arrays of an .npz file; nothing is allocated before every header agrees with its bytes.

    Args:
        path: the file.
        names: arrays that it must hold; None reads all.
        expected: what the file should be, for the message.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an .npz file, an array is missing, holds objects, or promises other than what is there; or the
            archive unpacks to far more than its size.
    """
    with _reading(path, expected), open_zip(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        chosen = list(members) if names is None else list(names)
        if lacking := [name for name in chosen if name not in members]:
            raise ValueError(f"no {listed(lacking)}, but {listed(members)}"[:500])
        _check_sizes(archive, [members[name] for name in chosen], path)
        arrays: dict[str, np.ndarray] = {}
        for name in chosen:
            with archive.open(members[name]) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


def read_array(path: Path, most: int) -> np.ndarray:
    """Read the array of an .npy file.

    Args:
        path: the file.
        most: values that it may have.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an .npy file, objects, more values, or a header that promises other than what is there.
    """
    with _reading(path, "an array as numpy.save writes it"), path.open("rb") as file:
        shape = _check_header(file, path.stat().st_size)
        if math.prod(shape) > most:
            raise ValueError(f"shape {shape}, more than {most:,} values")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_sizes(archive: zipfile.ZipFile, names: Sequence[str], path: Path) -> None:
    infos = [archive.getinfo(name) for name in names]
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} is packed in another way than numpy's")
    promised, size = sum(info.file_size for info in infos), path.stat().st_size
    if promised > RATIO * size + SMALL:
        raise ValueError(f"{count(size, 'byte')} that unpack to {promised:,}. It would fill the memory; do not use it")
    for info in infos:
        with archive.open(info) as file:
            try:
                _check_header(file, info.file_size)
            except _UNREADABLE as error:
                raise ValueError(f"{info.filename}: {error}") from error


def _check_header(file: IO[bytes], size: int) -> tuple[int, ...]:
    """The shape that the header says, if that is what the rest of the file holds."""
    start = file.read(12)
    version = tuple(start[6:8])
    if start[:6] != np.lib.format.MAGIC_PREFIX or version not in ((1, 0), (2, 0)):
        raise ValueError("it does not begin as numpy.save's files do")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"a header of {count(length, 'byte')}")
    text = io.BytesIO(start[8:] + file.read(length + width - 4))
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(text)
    held = size - 8 - width - length
    promised = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("Object arrays, which are read by running what they hold")
    if dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} of shape {shape}, no plain numbers or texts")
    if promised != held:
        raise ValueError(f"its header promises {dtype} {shape}, {count(promised, 'byte')}; it holds {held:,}")
    return shape


@contextlib.contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into one error that names it; a file that is not there stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, RuntimeError) as error:  # RuntimeError: a password
        reason = str(error) or type(error).__name__
        raise DataError(
            f"Expected {expected} in {path}. Received: {reason[:500]}. Copy it again, or write it anew."
        ) from error
