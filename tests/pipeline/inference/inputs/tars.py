"""Tars of members that a test names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def write_tar(
    path: str,
    members: dict[str, bytes] | list[tuple[str, bytes]],
    format: int = tarfile.PAX_FORMAT,
    **of_all: str | int | bytes,
) -> Path:
    """An uncompressed tar.

    Args:
        path: of the tar.
        members: name and content of each.
        format: of tarfile. Defaults to that with extended headers.
        of_all: attributes of `tarfile.TarInfo` for all members.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in of_all.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return Path(path)
