"""Quoted patterns give what a shell gives, sorted."""

from __future__ import annotations

import glob
import os

import pytest

from export.errors import DataError
from tests.pipeline.inference.inputs.parts import paths, plan, touch


@pytest.fixture(autouse=True)
def tree(working: object) -> None:
    touch("p/b.jpg", "p/a.jpg", "p/.h.jpg", "p/c.png", "p/x/1.jpg", "p/x/2.jpg", "p/y/z/3.jpg", "p/.git/4.jpg")


@pytest.mark.parametrize(
    "pattern",
    [
        "p/*.jpg",
        "p/?.jpg",
        "p/[a-b].jpg",
        "p/[!a].*",
        "p/.*.jpg",
        "*/x/[12].jpg",
        "p/*/*/*.jpg",
        "./p/*.png",
        "p//*.png",
    ],
)
def test_a_pattern_without_any_depth_matches_as_pythons_glob(pattern: str) -> None:
    expected = sorted(os.path.normpath(path) for path in glob.glob(pattern))
    assert expected
    assert paths(pattern) == expected
    absolute = os.path.join(os.getcwd(), pattern)
    assert paths(absolute) == [os.path.join(os.getcwd(), path) for path in expected]


@pytest.mark.parametrize(
    "pattern", ["**/*.jpg", "p/**/*.jpg", "p/**/?.jpg", "p/**/z/*.jpg", "**/x/**/1.jpg", "p/**/y/z/*"]
)
def test_any_depth_matches_as_pythons_glob(pattern: str) -> None:
    expected = sorted(set(glob.glob(pattern, recursive=True)))
    assert expected
    assert sorted(paths(pattern)) == expected


def test_any_depth_is_sorted_like_a_folder() -> None:
    assert paths("p/**/*.jpg") == ["p/a.jpg", "p/b.jpg", "p/x/1.jpg", "p/x/2.jpg", "p/y/z/3.jpg"]


@pytest.mark.parametrize("pattern", ["p/**", "p/**/*", "p/**/**"])
def test_any_depth_at_the_end_is_the_folder(pattern: str) -> None:
    touch("p/notes.txt")
    assert paths(pattern) == paths("p")
    assert plan(pattern).left_out == {".txt": 1}


def test_folders_that_match_are_taken_as_if_they_were_named() -> None:
    touch("p/x/notes.txt", "p/y/README", "p/y/empty/")
    os.symlink("../../p", "p/x/loop")
    made = plan("p/[xy]")
    assert [item.path for item in made.items()] == ["p/x/1.jpg", "p/x/2.jpg", "p/y/z/3.jpg"]
    assert made.lines() == [
        "left out below p/[xy]: 1 .txt, 1 file without an ending",
        "left out below p/[xy]: 1 folder without an image (p/y/empty)",
        "left out below p/[xy]: 1 link to a folder, which is not followed (p/x/loop)",
    ]


def test_any_depth_follows_no_link_and_a_part_does() -> None:
    os.symlink("..", "p/loop")
    assert "p/loop/p/a.jpg" not in paths("p/**/*.jpg")
    assert "p/loop/p/a.jpg" in paths("p/*/p/*.jpg")


def test_a_file_of_that_name_wins() -> None:
    touch("p/[a].jpg", "p/*.jpg")
    assert paths("p/[a].jpg") == ["p/[a].jpg"]
    assert paths("p/*.jpg") == ["p/*.jpg"]


def test_a_pattern_that_matches_nothing_is_missing() -> None:
    first, second = plan("p/*.gif", "p/a.jpg").items()
    assert (first.path, first.kind, first.status) == ("p/*.gif", "problem", "missing")
    assert first.place == "is a pattern that matches nothing"
    assert second.path == "p/a.jpg"
    with pytest.raises(DataError) as told:
        plan("p/*.gif")
    assert str(told.value) == (
        "Expected an image or a folder of images. Received: p/*.gif, which is a pattern that matches nothing."
    )
    with pytest.raises(DataError, match=r"matches nothing; did you mean 'p'\?$"):
        plan("pp/*.jpg")


def test_names_that_match_are_taken_whatever_they_are() -> None:
    touch("p/note.txt", "p/sub.d/5.jpg")
    os.symlink("nowhere", "p/q.jpg")
    assert paths("p/q*", "p/n*", "p/s*") == ["p/q.jpg", "p/note.txt", "p/sub.d/5.jpg"]


def test_a_folder_that_cannot_be_listed_is_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path == "p/x":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [(item.path, item.kind) for item in plan("p/**/*.jpg").items()][2:] == [
        ("p/x", "problem"),
        ("p/y/z/3.jpg", "file"),
    ]


def test_a_pattern_into_a_locked_folder_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        stat = os.stat
        patch.setattr(os, "stat", lambda path, **more: refuse(path) if path == "p/*.jpg" else stat(path, **more))
        patch.setattr(os, "scandir", refuse)
        item = next(iter(plan("p/*.jpg").items()))
    assert (item.path, item.kind, item.status) == ("p", "problem", "unreadable")
    assert item.place == "the folder cannot be listed: Permission denied"
