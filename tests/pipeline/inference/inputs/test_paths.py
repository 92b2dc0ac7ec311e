"""What is found below a folder, in which order, and what a person is told of the rest."""

from __future__ import annotations

import os
import random
import socket
import string
import sys
from pathlib import Path

import pytest

from export.errors import DataError
from pipeline.inference.inputs import left_out
from pipeline.inference.inputs.paths import ending_of
from pipeline.inference.output.run import RunFolder
from pipeline.recipe.messages import EXTENSIONS
from tests.pipeline.inference.inputs.parts import nested, only, paths, plan, touch
from tests.pipeline.inference.inputs.tars import write_tar


def sorted_images(folder: str) -> list[str]:
    return [
        str(path) for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in EXTENSIONS and path.is_file()
    ]


def test_the_order_is_that_of_sorted_paths() -> None:
    draw = random.Random(3)
    names = ["".join(draw.choices(string.ascii_letters + "._- é\udce9\U0001f600", k=3)) for _ in range(40)]
    for _ in range(300):
        folders = [name for name in draw.choices(names, k=draw.randrange(4)) if name.strip(".")]
        touch(os.path.join("photos", *folders, f"x{draw.choice(names)}.jpg"))
    found = paths("photos")
    assert found == sorted_images("photos")
    assert len(found) > 100
    assert paths(str(Path.cwd() / "photos")) == sorted_images(str(Path.cwd() / "photos"))
    os.chdir("photos")
    assert paths(".", "../photos/") == sorted_images(".")


def test_a_file_stands_before_or_behind_a_folder_by_its_name() -> None:
    touch("p/b.jpg", "p/b/1.jpg", "p/a/2.JPG", "p/b-1.png", "p/c/d/3.tiff")
    assert paths("p") == ["p/a/2.JPG", "p/b/1.jpg", "p/b-1.png", "p/b.jpg", "p/c/d/3.tiff"]


def test_more_nested_folders_than_python_has_frames() -> None:
    depth, limit = 400, sys.getrecursionlimit()
    with nested("p", depth) as inner:
        Path(inner, "x.jpg").touch()
        sys.setrecursionlimit(depth)
        try:
            assert paths("p") == paths("/".join("*" * (depth + 2))) == [f"{inner}/x.jpg"]
            with pytest.raises(DataError, match="matches nothing"):
                plan("/".join("*" * (depth + 3)))
        finally:
            sys.setrecursionlimit(limit)


def test_a_folder_whose_path_is_too_long_is_an_item() -> None:
    os.mkdir("p")
    touch("p/z.jpg")
    name = "d" * 250
    descriptor = os.open("p", os.O_RDONLY)
    for _ in range(18):
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    folder, image = plan("p").items()
    assert (folder.kind, folder.status, folder.place) == (
        "problem",
        "unreadable",
        "the folder cannot be listed: File name too long",
    )
    assert len(folder.path) > 4095
    assert folder.path.endswith(f"/{name}")
    assert image.path == "p/z.jpg"


def test_a_folder_that_vanishes_or_is_locked_is_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("p/a/1.jpg", "p/b/2.jpg", "p/c/3.jpg")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path == "p/a":
            raise FileNotFoundError(2, "No such file or directory", path)
        if path == "p/b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    made = plan("p")
    assert [(item.path, item.kind, item.status) for item in made.items()] == [
        ("p/a", "problem", "missing"),
        ("p/b", "problem", "unreadable"),
        ("p/c/3.jpg", "file", "unreadable"),
    ]
    assert [item.place for item in made.items()][1] == "the folder cannot be listed: Permission denied"
    assert made.lines() == []


def test_what_is_no_file_but_has_an_images_name_is_an_item_that_is_not_opened() -> None:
    touch("p/a.jpg", "elsewhere.jpg")
    os.symlink("nowhere", "p/b.jpg")
    os.symlink("c.jpg", "p/c.jpg")
    os.mkfifo("p/d.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("p/e.jpg")
    os.symlink("/dev/zero", "p/f.jpg")
    os.symlink("../elsewhere.jpg", "p/g.jpg")
    os.link("p/a.jpg", "p/h.jpg")
    made = plan("p")
    assert [item.path for item in made.items()] == [f"p/{letter}.jpg" for letter in "abcdefgh"]
    assert {item.kind for item in made.items()} == {"file"}
    assert [item.size for item in made.items()] == [0, -1, -1, -1, -1, -1, 0, 0]
    assert made.lines() == []


def test_links_to_folders_are_followed_only_where_they_are_named() -> None:
    touch("p/a/1.jpg", "q/2.jpg")
    os.symlink("../q", "p/link")
    os.symlink("..", "p/a/up.jpg")
    os.symlink("q", "named")
    made = plan("p", "named")
    assert [item.path for item in made.items()] == ["p/a/1.jpg", "named/2.jpg"]
    assert made.lines() == ["left out below p: 2 links to folders, which are not followed (link, a/up.jpg)"]


def test_what_is_left_out_is_counted_and_told() -> None:
    touch("p/1.jpg", "p/a.heix", "p/b.HEIX", "p/x/c.heix", "p/README", "p/x/2.png")
    touch("p/.hidden/n.txt", "p/.DS_Store", "p/Thumbs.db", "p/._1.jpg", "p/__MACOSX/3.jpg", "p/.hidden/4.jpg", "p/.jpg")
    made = plan("p")
    assert [item.path for item in made.items()] == ["p/.hidden/4.jpg", "p/1.jpg", "p/x/2.png"]
    assert made.lines() == ["left out below p: 3 .heix, 1 file without an ending"]
    assert made.left_out == {".heix": 3, "file without an ending": 1}
    write_tar("s.tar", {"a.jpg": b"", "b.heix": b"", "c.cls": b""})
    assert plan("p", "s.tar").left_out == {".heix": 4, ".cls": 1, "file without an ending": 1}


def test_folders_without_an_image_are_told() -> None:
    touch("p/a/b/", "p/c/d/1.jpg", "p/e/x.txt", *(f"p/e/{n}/" for n in range(5)))
    assert plan("p").lines() == [
        "left out below p: 1 .txt",
        "left out below p: 8 folders without an image (a/b, a, e/0 and 5 more)",
    ]


def test_archives_in_a_folder_are_counted_and_the_way_to_name_them_is_told() -> None:
    touch("p/1.jpg", "p/s h/a.tar", "p/s h/b.tar", "p/t.parquet")
    assert plan("p").lines() == [
        "left out below p: 2 .tar, 1 .parquet",
        ".parquet files are read where they are named, not below p: name 'p/*.parquet'",
        ".tar files are read where they are named, not below p: name 'p/s h/*.tar'",
        "left out below p: 1 folder without an image (s h)",
    ]


def test_endings_without_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "MOST_ENDINGS", 100)
    touch("p/1.jpg", *(f"p/core.{number}" for number in range(110)), f"p/x.{'y' * 50}")
    made = plan("p")
    assert made.left_out[".(other)"] == 11
    assert sum(made.left_out.values()) == 111


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["p/a.heix", "p/b"],
            "Received: none in p, but 1 .heix, 1 file without an ending. Convert those that are images.",
        ),
        (["p/"], "Received: none in p."),
        (["p/s/a.tar"], "Received: none in p, but 1 .tar. Name those whose images are to be read: 'p/s/*.tar'."),
    ],
)
def test_no_image_at_all(names: list[str], message: str) -> None:
    touch(*names)
    with pytest.raises(DataError) as told:
        plan("p")
    assert str(told.value) == f"Expected images ({', '.join(sorted(EXTENSIONS))}). {message}"
    assert not os.path.lexists(".run/plan")
    assert os.listdir(".run") == []


def test_a_named_file_is_taken_whatever_its_ending() -> None:
    touch("notes.txt", "noending")
    assert paths("notes.txt", "./noending") == ["notes.txt", "./noending"]
    assert only(plan("notes.txt"))[1:6] == ("notes.txt", "file", "notes.txt", 0, 0)


@pytest.mark.parametrize("name", ["a.JPG", ".jpg", "a.b.c", "a.", "..a", "noending", "a b.tar.gz", "x.é"])
def test_an_ending_is_what_python_says(name: str) -> None:
    assert ending_of(name) == Path(name).suffix.lower()


def test_a_folder_named_twice_is_counted_once() -> None:
    touch("p/1.jpg", "p/a.txt")
    assert plan("p", "p/", "./p").left_out == {".txt": 1}


def test_the_folders_of_runs_are_passed_over_and_those_that_are_alike_are_not() -> None:
    touch("p/a.jpg", "p/mine.run/lock", "p/mine.run/inputs/b.jpg", "p/other.run/c.jpg", "p/empty.run/")
    stopped = ("lock", "run.json", "000000.part", "000000.index", "inputs/plan")
    touch(*(f"p/stopped.csv.run/{name}" for name in stopped))
    os.symlink("../a.jpg", "p/mine.run/000000.csv")
    with RunFolder.take(Path("p/x/out.csv")) as run:
        made = plan("p", file=str(run.inputs / "plan"))
        assert [item.path for item in made.items()] == ["p/a.jpg", "p/mine.run/inputs/b.jpg", "p/other.run/c.jpg"]
        assert made.lines() == [
            "left out below p: 1 .csv, 1 file without an ending",
            "left out below p: 2 folders without an image (empty.run, x)",
        ]
        assert paths("p/*/*") == [
            "p/mine.run/000000.csv",
            "p/mine.run/inputs/b.jpg",
            "p/mine.run/lock",
            "p/other.run/c.jpg",
        ]
        for pattern in ("p/**/*.part", "p/x/*"):
            with pytest.raises(DataError, match="matches nothing"):
                plan(pattern)
