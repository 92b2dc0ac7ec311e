"""The images of a tar, read off its headers: where each is, what is none, and where damage begins."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.inference.inputs.reader import open_reader
from pipeline.inference.items import Item
from tests.pipeline.inference.inputs.parts import only, plan
from tests.pipeline.inference.inputs.tars import write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: not {0, ord("/")} & set(name))


def contents(*inputs: str) -> dict[str, bytes]:
    made = plan(*inputs)
    with open_reader(made) as reader:
        return {item.path: reader.content(item, 2**20) for item in made.items()}


@pytest.mark.parametrize("format", FORMATS)
def test_images_of_a_tar_in_its_order(format: str) -> None:
    images = {
        "b.jpg": b"first",
        "sub/a.PNG": b"x" * 512,
        f"{'long/' * 30}{'n' * 90}.jpg": b"long" * 300,
        "empty.gif": b"",
    }
    others = {
        "b.cls": b"3",
        "b.json": b"{}",
        "sub/README": b"",
        ".hidden.txt": b"",
        "._b.jpg": b"",
        "__MACOSX/b.jpg": b"",
    }
    write_tar("s.tar", {**images, **others}, FORMATS[format])
    assert contents("s.tar") == {f"s.tar/{name}": content for name, content in images.items()}
    made = plan("s.tar")
    assert made.lines() == ["left out of s.tar: 1 .cls, 1 .json, 1 file without an ending"]
    assert [item[2:4] + item[5:6] for item in made.items()] == [("tar", "s.tar", len(data)) for data in images.values()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), st.sampled_from(["gnu", "pax"]))
def test_names_of_any_bytes(names: list[bytes], format: str) -> None:
    members = {f"d{os.fsdecode(name)}.jpg": name for name in names}
    write_tar("s.tar", members, FORMATS[format])
    assert contents("s.tar") == {f"s.tar/{name}": content for name, content in members.items()}


def test_a_tar_of_the_systems_own_program() -> None:
    os.makedirs("p/sub")
    for name in ("p/a.jpg", "p/sub/b.jpg", f"p/{'c' * 150}.jpg"):
        Path(name).write_text(name)
    subprocess.run(["tar", "-cf", "s.tar", "-C", "p", "--sort=name", "."], check=True)
    assert contents("s.tar") == {
        "s.tar/a.jpg": b"p/a.jpg",
        f"s.tar/{'c' * 150}.jpg": f"p/{'c' * 150}.jpg".encode(),
        "s.tar/sub/b.jpg": b"p/sub/b.jpg",
    }


def test_members_of_one_name_are_items_of_their_own() -> None:
    write_tar("s.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("./a.jpg", b"3"), ("a.jpg", b"4")])
    expected = {"s.tar/a.jpg": b"1", "s.tar/b.jpg": b"2", "s.tar/a.jpg#2": b"3", "s.tar/a.jpg#3": b"4"}
    assert contents("s.tar") == contents("s.tar", "./s.tar") == expected


def test_absolute_names_and_names_above_stay_in_the_rows_name() -> None:
    write_tar("s.tar", {"/etc/a.jpg": b"1", "../b.jpg": b"2"})
    assert contents("s.tar") == {"s.tar/etc/a.jpg": b"1", "s.tar/../b.jpg": b"2"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.LNKTYPE, "a hard link to another member"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a pipe"),
    ],
)
def test_what_is_no_regular_member_has_the_reason(kind: bytes, reason: str) -> None:
    with tarfile.open("s.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "b.jpg"
        archive.addfile(info)
        info = tarfile.TarInfo("b.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    first, second = plan("s.tar").items()
    assert (first.path, first.kind, first.status) == ("s.tar/a.jpg", "problem", "not_a_file")
    assert first.place == f"{reason} in the tar; only regular members are read"
    assert (second.path, second.kind, second.size) == ("s.tar/b.jpg", "tar", 3)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_member_is_none_and_what_follows_is_found(format: str) -> None:
    with open("a.jpg", "wb") as file:
        for index in range(40):  # more holes than the first header holds
            file.seek(index * 2**17)
            file.write(b"x")
        file.truncate(2**24)
    Path("b.jpg").write_bytes(b"after")
    done = subprocess.run(["tar", "-cSf", "s.tar", f"--format={format}", "--hole-detection=raw", "a.jpg", "b.jpg"])
    assert done.returncode == 0
    first, second = plan("s.tar").items()
    assert (first.path, first.status) == ("s.tar/a.jpg", "not_a_file")
    assert first.place.startswith("a sparse file")
    assert contents_of(second) == b"after"


def contents_of(item: Item) -> bytes:
    with open_reader(plan("s.tar")) as reader:
        return bytes(reader.content(item, 2**20))


MEMBERS = {"a.jpg": b"a" * 600, "b.jpg": b"b" * 600, "c.jpg": b"c" * 600}  # each 512 and 1,024 bytes


@pytest.mark.parametrize(
    ("length", "whole", "reason"),
    [
        (0, "", "it is cut off: the blocks that mark its end are missing"),
        (100, "", "it is cut off: the blocks that mark its end are missing"),
        (700, "", "it is cut off within a.jpg"),
        (1536, "a", "it is cut off: the blocks that mark its end are missing"),
        (1600, "a", "it is cut off: the blocks that mark its end are missing"),
        (4000, "ab", "it is cut off within c.jpg"),
        (4608, "abc", "it is cut off: the blocks that mark its end are missing"),
    ],
)
def test_a_tar_that_is_cut_off(length: int, whole: str, reason: str) -> None:
    os.truncate(write_tar("s.tar", MEMBERS, tarfile.USTAR_FORMAT), length)
    *found, problem = plan("s.tar").items()
    assert [item.path for item in found] == [f"s.tar/{letter}.jpg" for letter in whole]
    assert (problem.path, problem.kind, problem.status) == ("s.tar", "problem", "damaged")
    assert problem.place == reason + ("; the images before that are taken" if whole else "")


@pytest.mark.parametrize(
    ("place", "new", "reason"),
    [
        (1536 + 150, b"9", "no header of a member at byte 1,536"),
        (1536, b"x", "no header of a member at byte 1,536"),
        (1536 + 124, b"-1", "no header of a member at byte 1,536"),
        (1536 + 124, b"\xff" + b"\xff" * 11, "no header of a member at byte 1,536"),
        (124, b"zz", "it is no tar"),
        (0, b"\x1f\x8b", "it is no tar"),
    ],
)
def test_a_tar_with_a_damaged_header(place: int, new: bytes, reason: str) -> None:
    path = write_tar("s.tar", MEMBERS, tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[place : place + len(new)] = new
    path.write_bytes(content)
    *found, problem = plan("s.tar").items()
    assert len(found) == (place >= 1536)
    assert problem.place == reason + ("; the images before that are taken" if found else "")


def test_sizes_in_binary_and_sums_of_signed_bytes() -> None:
    with tarfile.open("s.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("\udce9.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"four"))
    content = bytearray(Path("s.tar").read_bytes())
    content[124:136] = b"\x80" + (4).to_bytes(11, "big")
    content[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte > 127) for byte in content[:512])
    content[148:156] = b"%06o\0 " % signed
    Path("s.tar").write_bytes(content)
    assert contents("s.tar") == {"s.tar/\udce9.jpg": b"four"}


def header(name: bytes, kind: bytes, size: int) -> bytes:
    """A header in GNU's form, in which a size may be any number."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[:100] = name.ljust(100, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"L", b"g"])
def test_a_header_of_hundreds_of_megabytes_is_not_read(kind: bytes) -> None:
    size = 2**28
    with open("s.tar", "wb") as file:
        file.write(header(b"h", kind, size))
        file.seek(size, os.SEEK_CUR)
        file.write(header(b"a.jpg", b"0", 3) + b"abc".ljust(512, b"\0"))
        file.write(header(b"b.jpg", b"0", 3) + b"def".ljust(512, b"\0") + bytes(1024))
    tracemalloc.start()
    first, second = plan("s.tar").items()
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert (first.path, first.status) == ("s.tar/a.jpg", "too_large")
    assert first.place == "its header has 268,435,456 bytes, more than the 1,048,576 allowed"
    assert contents_of(second) == b"def"


def test_headers_without_end_take_no_memory() -> None:
    record = b"%d x%06d=%s\n"
    with open("s.tar", "wb") as file:
        for index in range(64):
            value = record % (2**19, index, b"v" * (2**19 - len(record % (2**19, index, b""))))
            file.write(header(b"h", b"x", len(value)) + value.ljust(-(-len(value) // 512) * 512, b"\0"))
        file.write(header(b"a.jpg", b"0", 0) + bytes(1024))
    tracemalloc.start()
    assert only(plan("s.tar")).path == "s.tar/a.jpg"
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_name_of_a_megabyte_is_shortened() -> None:
    name = b"n" * 2**19 + b".jpg"
    with open("s.tar", "wb") as file:
        file.write(header(b"././@LongLink", b"L", len(name)) + name.ljust(-(-len(name) // 512) * 512, b"\0"))
        file.write(header(b"n", b"0", 0) + bytes(1024))
    item = only(plan("s.tar"))
    assert (item.path, item.status) == (f"s.tar/{'n' * 200}...", "too_large")
    assert item.place == "a name of 524,292 bytes"


@pytest.mark.parametrize("content", [b"12", b"a=b\n", b"99999999999999999999999 path=a\n", b"3 path=a\n"])
def test_an_extended_header_that_is_none(content: bytes) -> None:
    with open("s.tar", "wb") as file:
        file.write(
            header(b"h", b"x", len(content)) + content.ljust(512, b"\0") + header(b"a.jpg", b"0", 0) + bytes(1024)
        )
    item = list(plan("s.tar").items())[-1]
    assert item.status == "damaged"


def test_compressed_tars_are_named_with_the_remedy() -> None:
    for name in ("a.tar.gz", "b.TGZ", "c d.tar.zst", "e.tar.bz2", "f.tar.xz"):
        Path(name).write_bytes(b"x")
    items = list(plan("a.tar.gz", "b.TGZ", "c d.tar.zst", "e.tar.bz2", "f.tar.xz").items())
    assert {(item.kind, item.status) for item in items} == {("problem", "unsupported")}
    assert [item.place.removeprefix("a compressed tar; uncompress it first: ") for item in items] == [
        "gunzip a.tar.gz",
        "gunzip b.TGZ",
        "unzstd 'c d.tar.zst'",
        "bunzip2 e.tar.bz2",
        "unxz f.tar.xz",
    ]


@pytest.mark.parametrize(("tool", "module"), [("gunzip", gzip), ("bunzip2", bz2), ("unxz", lzma)])
def test_a_compressed_tar_by_another_name(tool: str, module: ModuleType) -> None:
    Path("a b.tar").write_bytes(module.compress(b"x" * 600))
    item = only(plan("a b.tar"))
    assert (item.kind, item.status) == ("problem", "unsupported")
    assert item.place == f"a compressed tar; uncompress it first: {tool} < 'a b.tar' > 'a b-plain.tar'"
    write_tar("s.tar", {"BZh9.jpg": b"x"})
    assert only(plan("s.tar")).path == "s.tar/BZh9.jpg"


def test_an_archive_of_another_kind_is_not_taken_for_a_bad_image() -> None:
    begins = {"a.zip": b"PK\3\4", "b.7Z": b"7z\xbc\xaf\x27\x1c", "c.rar": b"Rar!\x1a\7"}
    for name, begin in begins.items():
        Path(name).write_bytes(begin + b"x" * 99)
    Path("list").write_text("\n".join(begins))
    Path("photo.zip").write_bytes(b"\x89PNG\r\n\x1a\n")
    for inputs, lists in (([*begins], []), (["*.[zZ7r]*"], []), ([], ["list"])):
        items = [item for item in plan(*inputs, lists=lists).items() if item.path != "photo.zip"]
        assert [item.path for item in items] == [*begins]
        assert {(item.kind, item.status, item.place) for item in items} == {
            ("problem", "unsupported", "an archive; unpack it, and name the folder")
        }
    assert only(plan("photo.zip")).kind == "file"


def test_what_is_left_out_of_many_tars_is_one_message() -> None:
    for number in range(3):
        write_tar(f"{number}.tar", {"a.jpg": b"", "a.cls": b""})
    write_tar("3.tar", {"a.jpg": b""})
    made = plan("*.tar")
    assert made.lines() == ["left out of 0.tar and 2 more tars: 3 .cls"]
    assert plan("2.tar", "1.tar").lines() == ["left out of 2.tar and 1 more tar: 2 .cls"]
    assert len(made) == 4


def test_a_tar_in_a_list_is_expanded_and_one_that_is_not_there_is_missing() -> None:
    write_tar("s.tar", {"a.jpg": b"", "b.jpg": b""})
    os.mkdir("folder.tar")
    Path("list").write_text("s.tar\nno.tar\ns.tar\nfolder.tar\n")
    assert [(item.path, item.kind) for item in plan(lists=["list"]).items()] == [
        ("s.tar/a.jpg", "tar"),
        ("s.tar/b.jpg", "tar"),
        ("no.tar", "file"),
        ("folder.tar", "problem"),
    ]


def test_a_member_is_not_the_file_of_its_name() -> None:
    write_tar("s.tar", {"a.jpg": b""})
    assert [(item.path, item.kind) for item in plan("s.tar/a.jpg", "s.tar").items()] == [
        ("s.tar/a.jpg", "problem"),
        ("s.tar/a.jpg", "tar"),
    ]


def test_no_content_follows_a_link_whatever_size_it_states() -> None:
    after = header(b"b.jpg", b"0", 3) + b"abc".ljust(512, b"\0") + bytes(1024)
    Path("s.tar").write_bytes(header(b"a.jpg", b"2", 600) + after)
    first, second = plan("s.tar").items()
    assert (first.status, second.start, second.size) == ("not_a_file", 1024, 3)


def test_an_extended_header_states_sizes_beyond_a_plain_ones() -> None:
    said = header(b"h", b"x", 9) + b"9 size=3\n".ljust(512, b"\0")
    Path("s.tar").write_bytes(said + header(b"a.jpg", b"0", 0) + b"abc".ljust(512, b"\0") + bytes(1024))
    assert contents("s.tar") == {"s.tar/a.jpg": b"abc"}


def test_a_name_above_is_not_the_member_of_another_tar() -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(name, {"../x.jpg": name.encode()})
    assert contents("a.tar", "b.tar", "./a.tar") == {"a.tar/../x.jpg": b"a.tar", "b.tar/../x.jpg": b"b.tar"}
    for name in ("a.tar", "b.tar"):
        write_tar(name, {"../y.jpg": b""}, type=tarfile.SYMTYPE)
    assert [item.path for item in plan("a.tar", "b.tar").items()] == ["a.tar/../y.jpg", "b.tar/../y.jpg"]
