"""Opens tar archives that somebody else wrote: what their headers say is compared with what they hold."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.words import count

MOST_MEMBERS = 10_000
MOST_HEADER = 2**20  # bytes of all that stands before a member: long names, attributes, maps of holes


class _Bounded(io.FileIO):
    """A file that gives no more than ``left`` bytes in all, while that is set."""

    left: int | None = MOST_HEADER

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        if self.left is not None:
            if not 0 <= size <= self.left:
                raise tarfile.ReadError(f"a header of more than {MOST_HEADER:,} bytes")
            self.left -= size
        return super().read(size)


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
    with _Bounded(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                file.left = MOST_HEADER
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
