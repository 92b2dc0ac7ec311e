"""Lists of paths: every line is one item, whatever bytes it has."""

from __future__ import annotations

import io
import os
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import DataError
from pipeline.inference.inputs import make_plan
from pipeline.inference.inputs.found import Found, found_file
from pipeline.inference.inputs.lists import BLOCK, LONGEST_PATH, paths_in_text
from tests.pipeline.inference.inputs.parts import only, paths, plan, touch

NAMES = st.binary(min_size=1, max_size=60).filter(
    lambda name: not {0, 10, 13, ord("/")} & set(name) and not name.isspace()
)


def write(name: str, content: bytes | str) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


@pytest.mark.parametrize(
    "content",
    [
        b"a.jpg\nb c.jpg\n",
        b"a.jpg\r\nb c.jpg\r\n",
        b"a.jpg\n\n  \t\n\r\nb c.jpg",
        b"\xef\xbb\xbfa.jpg\nb c.jpg\n",
        b"a.jpg\0b c.jpg\0",
        b"a.jpg\0\0b c.jpg",
        b"a.jpg\rb c.jpg\r",
        b"a.jpg\r \rb c.jpg",
    ],
)
def test_the_forms_of_a_text_list(content: bytes) -> None:
    assert paths(lists=[write("list", content)]) == ["a.jpg", "b c.jpg"]


def test_names_keep_their_blanks_and_with_nul_their_line_feeds() -> None:
    assert paths(lists=[write("list", b" a.jpg \n#b.jpg\n")]) == [" a.jpg ", "#b.jpg"]
    assert paths(lists=[write("list", b"a\nb.jpg\0c\r\0 \0")]) == ["a\nb.jpg", "c\r", " "]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=20, unique=True), end=st.sampled_from([b"\n", b"\r\n", b"\0"]))
def test_names_of_any_bytes_come_back(names: list[bytes], end: bytes) -> None:
    listed = [os.fsdecode(name) for name in names]
    text = end.join(names) + end
    if text.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        return
    assert list(paths_in_text(io.BytesIO(text), "list")) == listed
    Path("list").write_bytes(b"./" + (end + b"./").join(names) + end)
    made = plan(lists=["list"])
    known = dict.fromkeys(os.path.abspath(name) for name in listed)
    assert [os.path.abspath(item.path) for item in made.items()] == list(known)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, LONGEST_PATH), min_size=1, max_size=70), end=st.sampled_from([b"\n", b"\0"]))
def test_lines_that_cross_blocks_are_whole(lengths: list[int], end: bytes) -> None:
    names = [bytes([97 + index % 26]) * length for index, length in enumerate(lengths)]
    assert list(paths_in_text(io.BytesIO(end.join(names)), "list")) == [name.decode() for name in names]


@pytest.mark.parametrize("length", [LONGEST_PATH + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_a_line_that_is_too_long_is_an_item_of_its_own(length: int) -> None:
    long = b"x" * length
    found = list(plan(lists=[write("list", b"\n".join([b"a.jpg", long, long, b"b.jpg", long]))]).items())
    assert [item.path for item in found][0::3] == ["a.jpg", "b.jpg"]
    assert [item.path for item in found][1] == f"{'x' * 200}... (list, line 2)"
    assert {(item.kind, item.status, item.place) for item in (found[1], found[2], found[4])} == {
        ("problem", "unreadable", f"{length:,} bytes, and a path has 4,096 at most")
    }


def test_an_endless_line_takes_no_memory() -> None:
    class Endless(io.RawIOBase):
        left = 2**28

        def read(self, size: int = -1) -> bytes:
            Endless.left -= size
            return b"x" * size if self.left > 0 else b""

    import tracemalloc

    tracemalloc.start()
    (found,) = paths_in_text(Endless(), "list")
    assert found.place == "a line of more than 1,048,576 bytes; the rest of the list is not read"
    assert Endless.left > 2**27
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n", b"\0\0"])
def test_an_empty_list_is_an_error(content: bytes) -> None:
    touch("a.jpg")
    with pytest.raises(DataError, match=r"^Expected a path a line\. Received: list, which has none\.$"):
        plan("a.jpg", lists=[write("list", content)])


def test_a_list_in_utf_16_is_refused() -> None:
    with pytest.raises(DataError, match=r"which is UTF-16, as PowerShell writes\. Save it as UTF-8"):
        plan(lists=[write("list.txt", "a.jpg\r\n".encode("utf-16"))])


@pytest.mark.parametrize("form", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a.jpg\r\nb.jpg\r\n", "\u00e9t\u00e9/\u4e00\u4e8c.jpg\n"])
def test_a_list_in_utf_16_without_a_mark_is_refused_too(form: str, text: str) -> None:
    for name in ("list.txt", "list.csv"):
        with pytest.raises(DataError, match=r"which is UTF-16, as PowerShell writes\. Save it as UTF-8"):
            plan(lists=[write(name, text.encode(form))])


def test_names_of_a_letter_with_nul_are_no_utf_16() -> None:
    assert paths(lists=[write("list", b"a\0b\0c\0")]) == ["a", "b", "c"]
    assert paths(lists=[write("list", b"./a\0./b\0")]) == ["./a", "./b"]


def test_nul_bytes_far_behind_the_begin_of_a_list_with_lines() -> None:
    lines = b"".join(b"%05d.jpg\n" % number for number in range(BLOCK // 10 + 1))
    tail = b"".join(b"%05d.png\0" % number for number in range(1000))
    *_, short, last = plan(lists=[write("list", lines + b"x\0y\n" + tail)]).items()
    assert (short.kind, short.place) == ("problem", "a NUL character, which no path has")
    assert last.place == "NUL characters in a list that begins with lines; a list ends all paths with NUL, or none"


def test_what_repeats_in_a_list_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a.jpg", "b.jpg")
    looked: list[str] = []

    def counted(path: str) -> Found:
        looked.append(path)
        return found_file(path)

    monkeypatch.setattr(make_plan, "found_file", counted)
    monkeypatch.setattr(make_plan, "RECENT_LINES", 2)
    assert paths(lists=[write("list", "a.jpg\nb.jpg\n" * 50)]) == ["a.jpg", "b.jpg"]
    assert looked == ["a.jpg", "b.jpg"]
    assert paths(lists=[write("list", "a.jpg\nb.jpg\nc.jpg\n" * 50)]) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_list_without_a_name() -> None:
    with pytest.raises(DataError, match=r"^Expected a list of paths after --list\. Received: an empty name\.$"):
        plan(lists=[""])


def test_a_table_in_utf_16_is_refused() -> None:
    Path("t.csv").write_text("path\na.jpg\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"Received: t\.csv, which is UTF-16"):
        plan(lists=["t.csv"])


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no such device")
def test_nul_bytes_without_end_are_no_list() -> None:
    for lists, inputs in ((["/dev/zero"], []), ([], ["-"])):
        with open("/dev/zero", "rb") as zero, pytest.raises(DataError, match="which begins with 65,536 NUL bytes"):
            plan(*inputs, lists=lists, stdin=zero)


def test_a_list_that_is_not_there_or_no_list() -> None:
    with pytest.raises(DataError, match=r"^Expected a list of paths\. Received: l\.txt: No such file or directory\.$"):
        plan(lists=["l.txt"])
    with pytest.raises(DataError, match=r"Received: l\.csv: No such file or directory\.$"):
        plan(lists=["l.csv"])
    with pytest.raises(DataError, match=r"Received: \.: Is a directory\.$"):
        plan(lists=["."])
    with pytest.raises(DataError, match=r"Received: x, an image\. Name it without --list\.$"):
        plan(lists=[write("x", b"\x89PNG\r\n\x1a\n")])
    with pytest.raises(DataError, match=r"Received: y, a zip archive\. Unpack it, and name the folder\.$"):
        plan(lists=[write("y", b"PK\x03\x04")])


def test_a_line_is_not_expanded() -> None:
    touch("p/1.jpg", "p/*.jpg")
    made = plan(lists=[write("list", "p\np/*.jpg\nnot/there.jpg\n")])
    assert [(item.path, item.kind) for item in made.items()] == [
        ("p", "problem"),
        ("p/*.jpg", "file"),
        ("not/there.jpg", "file"),
    ]


@pytest.mark.parametrize("url", ["http://host/a.jpg", "https://host/a.jpg", "s3://bucket/a.jpg", "gs://b/a.tar"])
def test_a_url_is_missing_with_the_reason(url: str) -> None:
    item = only(plan(lists=[write("list", url)]))
    assert (item.path, item.kind, item.status) == (url, "problem", "missing")
    assert item.place == "is a URL; download it, and name the file"


def test_paths_are_relative_to_the_working_directory() -> None:
    touch("a.jpg", "sub/")
    write("sub/list.txt", "a.jpg\n")
    write("sub/list.csv", "path\na.jpg\n")
    assert only(plan(lists=["sub/list.txt", "sub/list.csv"])).size == 0


@pytest.mark.parametrize("column", ["path", "file", "filename", "image", "file_name", "image_path", " Image "])
def test_a_table_has_a_column_of_a_known_name(column: str) -> None:
    table = write("t.CSV", f'label,{column}\r\ncat,"a, ""b"".jpg"\r\ndog,"two\nlines.jpg"\r\n\r\n')
    assert paths(lists=[table]) == ['a, "b".jpg', "two\nlines.jpg"]


def test_the_column_is_named_where_there_are_several() -> None:
    table = write("t.csv", "image,photo\na.jpg,b.jpg\n")
    assert paths(lists=[table]) == ["a.jpg"]
    assert paths(lists=[table], column="photo") == ["b.jpg"]
    assert paths(lists=[write("t.csv", "image,path\na.jpg,b.jpg\n")]) == ["b.jpg"]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (
            "photo,label\n",
            None,
            "Expected a column path, file, filename, image, file_name or image_path in t.csv. Received: 'photo', "
            "'label'. Name the one with the paths: --column NAME. A list without a header ends in .txt.",
        ),
        ("path,label\n", "photo", "Expected a column 'photo' in t.csv. Received: 'path', 'label'. Name the one"),
        ("path;label\n", None, "Received: 'path;label'. Its columns are separated by semicolons; save it with commas."),
        ("", None, "Received: no line. A first line names the columns."),
        ("path\n", None, "Expected a path a row. Received: t.csv, which has none in column path."),
        ('path\n"a.jpg\nb.jpg\n', None, "t.csv: line 3: unexpected end of data."),
        ('path\n"a"b.jpg\n', None, "t.csv: line 2: ',' expected after '\"'."),
        ("path\n" + "x" * 2**20, None, "line 1: a line of 1,048,576 characters or more."),
        ('path\n"' + "x\n" * 100_000, None, "field larger than field limit"),
    ],
)
def test_a_table_that_cannot_be_used(content: str, column: str | None, message: str) -> None:
    write("t.csv", content)
    with pytest.raises(DataError) as told:
        plan(lists=["t.csv"], column=column)
    assert message in str(told.value)


def test_cells_of_any_bytes_and_rows_without_a_path() -> None:
    table = write(
        "t.csv", b"\xef\xbb\xbflabel,path\ncat,\xe9.jpg\ncat\ndog, \n" + b"dog," + b"x" * 5000 + b"\ne,a\0b\n"
    )
    made = plan(lists=[table])
    first, second, third = made.items()
    assert os.fsencode(first.path) == b"\xe9.jpg"
    assert (second.path, second.kind) == (f"{'x' * 200}... (t.csv, line 5)", "problem")
    assert (third.path, third.kind, third.place) == ("a\0b", "problem", "a NUL character, which no path has")
    assert made.lines() == ["left out of t.csv: 2 rows without a path"]


def test_a_folder_in_a_list_says_where_folders_go() -> None:
    touch("photos/a.jpg")
    Path("names.txt").write_text("photos\nphotos/a.jpg\n")
    folder, photo = plan(lists=["names.txt"]).items()
    assert (folder.kind, folder.status) == ("problem", "not_a_file")
    assert folder.place == "a folder; a list names files, folders are named as inputs"
    assert photo.path == "photos/a.jpg"


@pytest.mark.parametrize("name", ["names.txt", "my names.CSV"])
def test_a_list_that_is_named_as_an_image_says_which_option_it_wants(name: str) -> None:
    Path(name).write_text("a.jpg\n")
    item = only(plan(name))
    assert (item.kind, item.status) == ("problem", "not_an_image")
    assert item.place == f"text, not an image; if it is a list of images: --list {shlex.quote(name)}"


@pytest.mark.parametrize("head", [b"\xff\xd8\xff\xe0", b"", b"P3 2 2 255\n"])
def test_an_image_with_the_ending_of_a_list_is_an_image(head: bytes) -> None:
    Path("a.txt").write_bytes(head)
    assert only(plan("a.txt")).kind == "file"
    assert only(plan("a.tx*")).kind == "file"
