"""Opens zip and tar archives that somebody else wrote: no more of them than they say, and than the caller asks for.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.words import count

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
