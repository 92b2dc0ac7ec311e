"""Read untrusted zip and tar archives and NumPy arrays within bounds.

No more is read or unpacked than the headers declare and the caller allows; what .npy headers declare is compared with
the bytes in the file before anything is allocated. NumPy and the standard library only, Python 3.10 syntax.
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
from typing import IO, Any, NamedTuple

import numpy as np

from export.errors import DataError
from export.records import parse_json
from export.words import count, listed

MOST_DIRECTORY = 2**20  # bytes of a zip's central directory, some 15,000 members; Python takes ten times as much for it
MOST_ENDING = 2**17  # bytes after it, including a comment of up to 2**16
CHUNK = 2**20  # bytes
MOST_MEMBERS = 10_000
MOST_HEADER = 2**20  # bytes of everything before a tar member: long names, attributes, sparse maps


class _Bounded(io.FileIO):
    """A file that gives at most ``left`` bytes in total, then raises ``refusal``; unlimited while ``left`` is None."""

    def __init__(self, path: Path, left: int, refusal: Exception) -> None:
        super().__init__(path, "rb")
        self.left: int | None = left
        self._refusal = refusal

    def read(self, size: int | None = -1) -> bytes:
        if self.left is None:
            return super().read(size)
        data = super().read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise self._refusal
        return data


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose central directory is within bounds and names each member once.

    Raises:
        OSError: It cannot be read.
        zipfile.BadZipFile: Not a zip archive, or its central directory is too long or names a member twice.
    """
    too_long = zipfile.BadZipFile(f"a table of contents of more than the {MOST_DIRECTORY:,} bytes that are read")
    with _Bounded(path, MOST_DIRECTORY + MOST_ENDING, too_long) as file, zipfile.ZipFile(file) as archive:
        file.left = None
        if len(set(archive.namelist())) < len(archive.infolist()):
            raise zipfile.BadZipFile("it holds one name twice")
        yield archive


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return the content of a member.

    Raises:
        KeyError: No member has this name.
        zipfile.BadZipFile: It is damaged, larger than ``most`` bytes, or of another size than its header declares.
    """
    buffer = io.BytesIO()
    copy_member(archive, name, buffer, most)
    return buffer.getvalue()


def copy_member(archive: zipfile.ZipFile, name: str, target: IO[bytes], most: int) -> None:
    """Write the content of a member to ``target`` in chunks.

    Raises:
        KeyError: No member has this name.
        zipfile.BadZipFile: It is damaged, larger than ``most`` bytes, or of another size than its header declares.
    """
    info = copy.copy(archive.getinfo(name))
    size = info.file_size
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        raise zipfile.BadZipFile(f"{name} is packed in a way that is not read here")
    if size > most:
        raise zipfile.BadZipFile(f"{name} unpacks to {count(size, 'byte')}, where at most {most:,} are read")
    # zipfile silently drops what exceeds the declared size, after unpacking it; a larger size makes the excess visible.
    info.file_size = size + 2 * CHUNK
    length = 0
    with archive.open(info) as member:
        while chunk := member.read(min(CHUNK, size + 1 - length)):
            length += len(chunk)
            target.write(chunk)
    if length != size:
        more = "more than" if length > size else f"{count(length, 'byte')}, not"
        raise zipfile.BadZipFile(f"{name} holds {more} the {count(size, 'byte')} that the archive says")


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar archive after checking that all its headers are within bounds.

    Raises:
        OSError: It cannot be read.
        tarfile.TarError: Not such an archive, more members or longer headers than a bundle has, a name that occurs
            twice, a sparse file, or a member that declares more bytes than the archive holds.
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


# Photographs compress to a half, MNIST's digits to a fifth, drawings and masks to a thirtieth. Deflate's limit is a
# thousandth, which only a single repeated value approaches. The constant exempts small files.
RATIO, SMALL = 100, 32 * 2**20
ARRAYS = "arrays as numpy.savez writes them"
LONGEST_HEADER = 10_000  # bytes; NumPy's own limit
# 50,000 names of 255 bytes, each of which JSON may write as three; a comma in a name counts as a value.
MOST_META, MOST_META_VALUES = 64 * 2**20, 2**22
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
    """List the names of the arrays in an .npz file.

    Args:
        path: The file.
        expected: What the file should be, for the message. Defaults to `ARRAYS`.

    Raises:
        FileNotFoundError: No such file.
        DataError: Not an .npz file.
    """
    with reading(path, expected), open_zip(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_arrays(path: Path, names: Sequence[str] | None = None, expected: str = ARRAYS) -> dict[str, np.ndarray]:
    """Read arrays from an .npz file; nothing is allocated before every header agrees with its bytes.

    Args:
        path: The file.
        names: Arrays that it must hold. Defaults to None: read all.
        expected: What the file should be, for the message. Defaults to `ARRAYS`.

    Raises:
        FileNotFoundError: No such file.
        DataError: Not an .npz file; an array is missing, holds objects, or has a header that disagrees with its
            bytes; or the archive unpacks to far more than its size.
    """
    with reading(path, expected), open_zip(path) as archive:
        arrays: dict[str, np.ndarray] = {}
        for name, (member, _) in checked_members(archive, names, path).items():
            with archive.open(member) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


def parse_meta(array: np.ndarray) -> Any:
    """Parse the JSON that a stage keeps beside its arrays as bytes, such as the names of all test images.

    Raises:
        ValueError: It is not JSON, or out of bounds.
    """
    return parse_json(array.tobytes(), "meta", most=MOST_META, most_values=MOST_META_VALUES)


def read_array(path: Path, most: int) -> np.ndarray:
    """Read the array in an .npy file.

    Args:
        path: The file.
        most: Most values that it may have.

    Raises:
        FileNotFoundError: No such file.
        DataError: Not an .npy file, an array of objects, too many values, or a header that disagrees with the bytes.
    """
    with reading(path, "an array as numpy.save writes it"), path.open("rb") as file:
        shape = _check_header(file, path.stat().st_size).shape
        if math.prod(shape) > most:
            raise ValueError(f"shape {shape}, more than {most:,} values")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


class Form(NamedTuple):
    """What the header of an .npy file says of its array."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: "np.dtype[Any]"


def checked_members(
    archive: zipfile.ZipFile, names: Sequence[str] | None, path: Path
) -> dict[str, tuple[zipfile.ZipInfo, Form]]:
    """Return the members of an open .npz file that hold arrays, with their forms, after comparing both with its bytes.

    Args:
        archive: The open file.
        names: Arrays that it must hold; None for all.
        path: The file.

    Raises:
        ValueError: As `read_arrays` raises it as a DataError; so do the other errors of `reading`.
    """
    members = {name.removesuffix(".npy"): name for name in archive.namelist()}
    chosen = list(members) if names is None else names
    if missing := [name for name in chosen if name not in members]:
        raise ValueError(f"no {listed(missing)}, but {listed(members)}"[:500])
    infos = {name: archive.getinfo(members[name]) for name in chosen}
    declared, size = sum(info.file_size for info in infos.values()), path.stat().st_size
    if declared > RATIO * size + SMALL:
        raise ValueError(f"{count(size, 'byte')} that unpack to {declared:,}. It would fill the memory; do not use it")
    return {name: (info, _form(archive, info)) for name, info in infos.items()}


def _form(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Form:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed in another way than numpy's")
    with archive.open(info) as file:
        try:
            return _check_header(file, info.file_size)
        except _UNREADABLE as error:
            raise ValueError(f"{info.filename}: {error}") from error


def _check_header(file: IO[bytes], size: int) -> Form:
    """Return the form in an .npy header after comparing the header with the file's size in bytes."""
    start = file.read(12)
    version = tuple(start[6:8])
    if start[:6] != np.lib.format.MAGIC_PREFIX or version not in ((1, 0), (2, 0)):
        raise ValueError("it does not begin as numpy.save's files do")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"a header of {count(length, 'byte')}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    form = Form(*read_header(io.BytesIO(start[8:] + file.read(length + width - 4))))
    shape, _, dtype = form
    actual = size - 8 - width - length
    declared = math.prod(shape) * dtype.itemsize
    for wrong, reason in (
        (dtype.hasobject, "Object arrays, which are read by running what they hold"),
        (dtype.itemsize == 0 or min(shape, default=0) < 0, f"{dtype} of shape {shape}, no plain numbers or texts"),
        (
            declared != actual,
            f"its header promises {dtype} {shape}, {count(declared, 'byte')}; it holds {actual:,}",
        ),
    ):
        if wrong:
            raise ValueError(reason)
    return form


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Raise whatever a damaged file raises as one DataError with its path; FileNotFoundError passes unchanged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, RuntimeError) as error:  # RuntimeError: a password
        raise DataError(
            f"Expected {expected} in {path}. Received: {(str(error) or type(error).__name__)[:500]}. "
            "Copy or write it again."
        ) from error
