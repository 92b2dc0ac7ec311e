"""Zip and tar archives and NumPy arrays, read within the bounds that their headers promise.

Opens zip and tar archives that somebody else wrote: no more of them than they say, and than the caller asks for.

Standard library only, Python 3.10 syntax.

Reads arrays from .npz and .npy files, after comparing what their headers promise with what the files hold.

numpy and the standard library only, Python 3.10 syntax.
"""

import contextlib
import copy
import io
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from export.errors import DataError
from export.words import count, listed

MOST_DIRECTORY = 2**20  # bytes of the table of contents, some 15,000 members; Python takes ten times as much for it
MOST_ENDING = 2**17  # bytes of what stands behind it, a comment of up to 2**16 among them
PIECE = 2**20
MOST_MEMBERS = 10_000
MOST_HEADER = 2**20  # bytes of all that stands before a member: long names, attributes, maps of holes


class _Bounded(io.FileIO):
    """A file that gives no more than ``left`` bytes in all, while that is set, and raises ``refusal`` instead."""

    def __init__(self, path: Path, left: int, refusal: Exception) -> None:
        super().__init__(path, "rb")
        self.left: int | None = left
        self._refusal = refusal

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        if self.left is None:
            return super().read(size)
        data = super().read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise self._refusal
        return data


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose table of contents is of bearable size and names each member once.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: no zip archive, or such a table of contents.
    """
    too_long = zipfile.BadZipFile(f"a table of contents of more than the {MOST_DIRECTORY:,} bytes that are read")
    with _Bounded(path, MOST_DIRECTORY + MOST_ENDING, too_long) as file, zipfile.ZipFile(file) as archive:
        file.left = None
        if len(set(archive.namelist())) < len(archive.infolist()):
            raise zipfile.BadZipFile("it holds one name twice")
        yield archive


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of a member.

    Raises:
        KeyError: there is none of this name.
        zipfile.BadZipFile: it is damaged, larger than ``most``, or another size than the archive says.
    """
    buffer = io.BytesIO()
    copy_member(archive, name, buffer, most)
    return buffer.getvalue()


def copy_member(archive: zipfile.ZipFile, name: str, target: IO[bytes], most: int) -> None:
    """Write the content of a member to ``target``, piece by piece.

    Raises:
        KeyError: there is none of this name.
        zipfile.BadZipFile: it is damaged, larger than ``most``, or another size than the archive says.
    """
    said = archive.getinfo(name)
    if said.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        raise zipfile.BadZipFile(f"{name} is packed in a way that is not read here")
    if said.file_size > most:
        raise zipfile.BadZipFile(f"{name} unpacks to {count(said.file_size, 'byte')}, where at most {most:,} are read")
    # zipfile cuts off what goes beyond the size that the archive says, after unpacking it; so it is told a larger one.
    info = copy.copy(said)
    info.file_size = said.file_size + 2 * PIECE
    length = 0
    with archive.open(info) as member:
        while piece := member.read(min(PIECE, said.file_size + 1 - length)):
            length += len(piece)
            if length > said.file_size:
                break
            target.write(piece)
    if length != said.file_size:
        more = "more than" if length > said.file_size else f"{count(length, 'byte')}, not"
        raise zipfile.BadZipFile(f"{name} holds {more} the {count(said.file_size, 'byte')} that the archive says")


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed archive; all its headers have been read and lie within bounds.

    Raises:
        OSError: it cannot be read.
        tarfile.TarError: no such archive, more members or longer headers than a bundle has, a name that is there
            twice, a file with holes, or one that promises more than the archive holds.
    """
    size = path.stat().st_size
    names: set[str] = set()
    too_long = tarfile.ReadError(f"a header of more than {MOST_HEADER:,} bytes")
    with _Bounded(path, MOST_HEADER, too_long) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while member := archive.next():
                    if member.issparse() or member.offset_data + max(member.size, 0) > size or member.size < 0:
                        raise tarfile.ReadError(
                            f"{member.name} promises {count(member.size, 'byte')} that are not there"
                        )
                    if member.name in names:
                        raise tarfile.ReadError(f"{member.name} is there twice")
                    names.add(member.name)
                    if len(names) > MOST_MEMBERS:
                        raise tarfile.ReadError(f"more than {MOST_MEMBERS:,} members")
                    file.left = MOST_HEADER
                file.left = None
                yield archive
        except RecursionError as error:
            raise tarfile.ReadError("headers within headers") from error


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
