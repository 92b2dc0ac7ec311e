"""Links to images by class: every image once, nothing of anybody else touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import ProjectError
from pipeline.inference.items import Item
from pipeline.inference.output import sort
from pipeline.inference.output.class_folders import folder_names, shortened
from pipeline.inference.output.run import RunFolder
from pipeline.inference.output.sort import MARKER, Sorted, check_sort_folder, refuse_members, sort_into
from pipeline.inference.rows import Row, Rows
from tests.pipeline.inference.output.made_runs import spec_of

CLASSES = ("cat", "Cat", "a/b", "unused")
ROWS = [
    Row("in/x.jpg", "ok", ("cat", "Cat"), (0.9, 0.1)),
    Row("other/x.jpg", "ok", ("cat", "Cat"), (0.75, 0.25)),
    Row("/abs/y.jpg", "ok", ("Cat", "cat"), (0.5, 0.5)),
    Row("in/../z.jpg", "ok"),
    Row("n.jpg", "ok"),
    Row(os.fsdecode(b"in/\xff\n.jpg"), "ok", ("a/b",), (1.0,)),
    Row("in/broken.jpg", "damaged", ("cat",), (0.99,), "kept"),
    Row("in/gone.jpg", "missing", error="gone"),
]


def finished(output: Path, rows: list[Row] = ROWS) -> Path:
    output.unlink(missing_ok=True)
    with RunFolder.take(output) as run:
        run.begin({}, len(rows), 100, spec_of(output))
        run.write(Rows(0, rows))
        run.finish()
    return output


def links(folder: Path) -> dict[str, str]:
    there = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): os.readlink(path) for path in there if path.name != MARKER}


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_every_image_with_an_answer_has_one_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    output = finished(tmp_path / name)
    done = sort_into(Path("sorted"), output, spec_of(output), CLASSES)
    assert done == Sorted(links=6, unsure=2, left_out=2, too_long=0)
    slash, other = folder_names(CLASSES)["a/b"], folder_names(CLASSES)["Cat"]
    made = links(tmp_path / "sorted")
    (hashed,) = (path for path in made if path.startswith("cat/x-"))
    assert made == {
        "cat/x.jpg": f"{tmp_path}/in/x.jpg",
        hashed: f"{tmp_path}/other/x.jpg",
        f"{other}/y.jpg": "/abs/y.jpg",
        "_unsure/z.jpg": f"{tmp_path}/in/../z.jpg",  # not shortened: in may be a link
        "_unsure/n.jpg": f"{tmp_path}/n.jpg",
        os.fsdecode(os.fsencode(slash) + b"/\xff\n.jpg"): os.fsdecode(os.fsencode(tmp_path) + b"/in/\xff\n.jpg"),
    }


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    output, folder = finished(tmp_path / "out.csv"), tmp_path / "sorted"
    sort_into(folder, output, spec_of(output), CLASSES)
    before, inodes = links(folder), {path: path.lstat().st_ino for path in folder.rglob("*")}
    assert sort_into(folder, output, spec_of(output), CLASSES).links == 6
    assert (links(folder), {path: path.lstat().st_ino for path in folder.rglob("*")}) == (before, inodes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "sorted"]


def test_links_that_no_longer_fit_go(tmp_path: Path) -> None:
    folder = tmp_path / "sorted"
    output = finished(tmp_path / "out.csv")
    sort_into(folder, output, spec_of(output), CLASSES)
    finished(output, [Row("/in/x.jpg", "ok", ("unused",), (1.0,))])
    sort_into(folder, output, spec_of(output), CLASSES)
    assert links(folder) == {"unused/x.jpg": "/in/x.jpg"}
    assert not (folder / "cat").exists()


def test_an_empty_folder_is_taken_and_what_fails_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sorted"
    folder.mkdir()
    output = finished(tmp_path / "out.csv")

    def full(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(sort, "write_json", full)
        with pytest.raises(OSError, match="full"):
            sort_into(folder, output, spec_of(output), CLASSES)
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "sorted"]
    sort_into(folder, output, spec_of(output), CLASSES)
    assert len(links(folder)) == 6


@pytest.mark.parametrize("harm", ["file", "moved", "removed", "other target", "in a class", "link to a folder", "text"])
def test_a_folder_in_which_somebody_worked_is_refused_and_stays(tmp_path: Path, harm: str) -> None:
    output, folder = finished(tmp_path / "out.csv"), tmp_path / "sorted"
    sort_into(folder, output, spec_of(output), CLASSES)
    link = folder / "cat" / "x.jpg"
    if harm == "file":
        (folder / "notes.txt").write_text("mine")
    elif harm == "moved":
        link.rename(folder / folder_names(CLASSES)["Cat"] / "x.jpg")
    elif harm in ("removed", "other target"):
        link.unlink()
        if harm == "other target":
            link.symlink_to("/elsewhere")
    elif harm == "in a class":
        (folder / "cat" / "mine.jpg").write_text("mine")
    elif harm == "link to a folder":
        (folder / "more").symlink_to(tmp_path)
    else:
        (folder / MARKER).write_text("{}")
    before = links_and_files(folder)
    for attempt in (
        lambda: check_sort_folder(folder),
        lambda: sort_into(folder, output, spec_of(output), CLASSES),
    ):
        with pytest.raises(ProjectError, match=r"Expected .*links|record of sorted images"):
            attempt()
    assert links_and_files(folder) == before


def links_and_files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_ino) for path in folder.rglob("*"))


def test_what_is_no_new_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.jpg").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for name, said in (("full", "which is not empty"), ("link", "a symbolic link"), ("file", "no folder")):
        with pytest.raises(ProjectError, match=rf"after --sort-into, .* Received: .*{name}, {said}\."):
            check_sort_folder(tmp_path / name)
    check_sort_folder(tmp_path / "empty")
    check_sort_folder(tmp_path / "none")


def test_a_path_that_no_link_holds_is_counted(tmp_path: Path) -> None:
    deep = "/" + "d/" * 2100 + "x.jpg"
    output = finished(tmp_path / "out.csv", [Row(deep, "ok", ("cat",), (1.0,)), ROWS[0]])
    assert sort_into(tmp_path / "sorted", output, spec_of(output), CLASSES) == Sorted(1, 0, 0, 1)


def test_long_names_that_are_alike_stay_apart(tmp_path: Path) -> None:
    long = "ä" * 125 + ".jpg"
    rows = [Row(f"/{folder}/{long}", "ok", ("cat",), (1.0,)) for folder in range(3)]
    output = finished(tmp_path / "out.csv", rows)
    sort_into(tmp_path / "sorted", output, spec_of(output), CLASSES)
    made = links(tmp_path / "sorted")
    assert sorted(made.values()) == [row.path for row in rows]
    assert all(name.endswith(".jpg") for name in made)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (Item(0, "a.tar/x.jpg", "tar", "a.tar"), r"in a\.tar"),
        (Item(0, "a.parquet/0", "parquet", "a.parquet"), r"in a\.parquet"),
        (Item(0, "-", "file", "/somewhere/stdin"), "of standard input"),
    ],
)
def test_what_is_no_file_cannot_be_linked_to(item: Item, said: str) -> None:
    fine = [Item(0, "x.jpg", "file", "x.jpg"), Item(1, "y", "problem", "is not there", status="missing")]
    refuse_members(fine)
    with pytest.raises(ProjectError, match=rf"Received: one {said}\. Unpack it, or"):
        refuse_members([*fine, item])


# --- names of folders ---


def test_ordinary_classes_keep_their_names() -> None:
    classes = ["cat", "n02123045 tabby, tabby cat", "ä", "x.y", "日本"]
    assert folder_names(classes) == dict(zip(classes, classes, strict=True))


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "x" * 256, "ä" * 128, "_unsure", "_UNSURE", "a\ud800"]
)
def test_other_classes_get_a_name_that_a_folder_can_have(name: str, tmp_path: Path) -> None:
    folder = folder_names([name])[name]
    assert folder != name
    (tmp_path / folder).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert not folder.startswith(".")


LETTERS = ["a", "A", "ä", "Ä", "a\u0308", "/", "_", ".", "\0", "ß", "ss", "-"]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.lists(st.sampled_from(LETTERS), max_size=4).map("".join), unique=True))
def test_no_two_classes_share_a_folder(classes: list[str]) -> None:
    import unicodedata

    made = folder_names(classes)
    assert list(made) == classes
    folded = {unicodedata.normalize("NFC", name).casefold() for name in made.values()}
    assert len(folded) == len(classes)


def test_a_class_that_is_called_like_the_folder_of_another_stays_apart() -> None:
    taken = folder_names(["a/b"])["a/b"]
    made = folder_names([taken, "a/b"])
    assert made[taken] == taken
    assert made["a/b"] != taken


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.text(max_size=300), st.sampled_from(["", ".jpg", "." + "x" * 100]))
def test_a_shortened_name_fits(stem: str, ending: str) -> None:
    name = shortened(stem.replace("\ud800", ""), ending, "0" * 64)
    assert len(name.encode("utf-8", "surrogateescape")) <= 255
    assert name.endswith("-" + "0" * 64 + ending)
