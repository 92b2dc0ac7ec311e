"""Reads zip archives that somebody else wrote: no more of them than they say, and than the caller asks for.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import contextlib
import copy
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.words import count

MOST_DIRECTORY = 2**20  # bytes of the table of contents, some 15,000 members; Python takes ten times as much for it
PIECE = 2**20


class _Opening(io.FileIO):
    """A file that refuses to give more at once than ``most``, while that is set."""

    most: int | None = MOST_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        if self.most is None:
            return super().read(size)
        data = super().read(self.most + 1 if size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise zipfile.BadZipFile(f"a table of contents of more than the {self.most:,} bytes that are read")
        return data


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose table of contents is of bearable size and names each member once.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: no zip archive, or such a table of contents.
    """
    with _Opening(path, "rb") as file, zipfile.ZipFile(file) as archive:
        file.most = None
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
