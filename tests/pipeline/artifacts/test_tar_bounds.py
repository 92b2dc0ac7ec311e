"""Bundles whose headers promise more than they hold, or never end, are refused without filling the memory."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from export.errors import ProjectError
from pipeline.artifacts.archives import MOST_MEMBERS, open_tar
from pipeline.artifacts.manifest import INDEX
from pipeline.cli.bundle import unpack
from tests.bounded import attempts


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def extended(**records: str) -> bytes:
    """A header with attributes, as POSIX has them."""
    return tarfile.TarInfo._create_pax_generic_header(records, tarfile.XHDTYPE, "utf-8")  # type: ignore[attr-defined]


def holes(name: str, promised: int) -> bytes:
    """A file that is one hole, in GNU's newest form."""
    attributes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
    return extended(**attributes, **{"GNU.sparse.realsize": str(promised)}) + member(name, 512) + padded(b"0\n")


END = bytes(2 * tarfile.BLOCKSIZE)
LONG_NAME = member("././@LongLink", 500_000_000, tarfile.GNUTYPE_LONGNAME)
CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a hole": (lambda: holes("a", 2**50), "a promises 1,125,899,906,842,624 bytes that are not there"),
    "more than the archive": (lambda: member("a", 8**11 - 1), "a promises 8,589,934,591 bytes"),
    "more than any disk": (lambda: member("a", 2**62), "promises 4,611,686,018,427,387,904 bytes"),
    "attributes that say so": (lambda: extended(size=str(2**50)) + member("a"), "a promises 1,125,899,906,842,624"),
    "twice": (lambda: member("a") + member("a"), "a is there twice"),
    "a long name": (lambda: LONG_NAME + bytes(10**6), "a header of more than 1,048,576 bytes"),
    "long attributes": (lambda: member("a", 500_000_000, tarfile.XHDTYPE), "a header of more than 1,048,576 bytes"),
    "names within names": (
        lambda: (member("././@LongLink", 512, tarfile.GNUTYPE_LONGNAME) + padded(b"n")) * 5_000 + member("a"),
        "a header of more than|headers within headers",
    ),
    "many members": (lambda: b"".join(member(f"m{i}") for i in range(50_000)), f"more than {MOST_MEMBERS:,} members"),
}


def test_archives_whose_headers_are_bombs(tmp_path: Path) -> None:
    paths = []
    for i, (build, _) in enumerate(CASES.values()):
        paths.append(tmp_path / f"{i}.tar")
        paths[-1].write_bytes(build() + END)
    with (tmp_path / "5.tar").open("r+b") as file:
        file.truncate(600_000_000)  # a hole where the name would be
    with (tmp_path / "6.tar").open("r+b") as file:
        file.truncate(600_000_000)
    found = attempts([("pipeline.artifacts.archives:open_tar", path, []) for path in paths])
    for (name, (_, message)), attempt in zip(CASES.items(), found):
        assert attempt.error == "ReadError", (name, attempt)
        with pytest.raises(ValueError, match=message):
            raise ValueError(attempt.message)
        assert attempt.bytes_read < 8 * 2**20, name
        assert attempt.seconds < 10, name


@pytest.mark.parametrize("name", ["a hole", "many members", "names within names"])
def test_unpack_refuses_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(CASES[name][0]() + END)
    with pytest.raises(ProjectError, match=r"Expected an archive made by `bundle`.*b\.tar: .*Copy it again"):
        unpack(path, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, " " * 20_000_000, json.dumps({"files": [1] * 300_000})])
def test_an_index_that_is_a_bomb(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(member(INDEX, len(text)) + padded(text.encode()) + END)
    with pytest.raises(ProjectError, match=r"bundle\.json: (nested|.* where at most)"):
        unpack(path, tmp_path / "there")


def test_sound_archives_are_read(tmp_path: Path) -> None:
    names = ["a", "ä" * 200, "folder/" + "b" * 300]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 3_000_000
                archive.addfile(info, io.BytesIO(bytes(info.size)))
        with open_tar(tmp_path / "a.tar") as archive:
            assert archive.getnames() == names
            assert all(len(archive.extractfile(name).read()) == 3_000_000 for name in names)  # type: ignore[union-attr]
