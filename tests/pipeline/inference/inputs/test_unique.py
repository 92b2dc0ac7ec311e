"""A path that is named twice is one item, at its first place; links and equal bytes are items of their own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.inference.inputs import plan as plan_module
from pipeline.inference.inputs.unique import absolute
from tests.pipeline.inference.inputs.parts import paths, plan, touch


@pytest.fixture(params=[64, 4, 0])
def bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """With few bits, most hashes are those of other paths too."""
    monkeypatch.setattr(plan_module, "hash_of", lambda key: hash(key) % 2**request.param)
    return request.param


def test_a_path_named_twice_is_one_item_at_its_first_place(bits: int) -> None:
    touch("p/a.jpg", "p/b.jpg", "p/c/d.jpg", "e.jpg")
    here = os.getcwd()
    assert paths("p/b.jpg", "p", "./p//a.jpg", "e.jpg", f"{here}/e.jpg", f"{here}/p/c", "p/c/../b.jpg") == [
        "p/b.jpg",
        "p/a.jpg",
        "p/c/d.jpg",
        "e.jpg",
    ]
    assert paths("p", "p/b.jpg") == ["p/a.jpg", "p/b.jpg", "p/c/d.jpg"]


def test_lists_with_many_repeats(bits: int) -> None:
    draw = random.Random(5)
    names = [f"{draw.randrange(150)}.jpg" for _ in range(600)]
    Path("list").write_text("\n".join(names))
    assert paths(lists=["list", "list"]) == list(dict.fromkeys(names))
    Path("unique").write_text("\n".join(dict.fromkeys(names)))
    made = plan(lists=["list"])
    assert len(made) == len(set(names))
    assert made.digest == plan(lists=["unique"]).digest


def test_links_and_equal_bytes_are_items_of_their_own(bits: int) -> None:
    touch("p/a.jpg")
    os.link("p/a.jpg", "p/b.jpg")
    os.symlink("a.jpg", "p/c.jpg")
    os.symlink("p", "q")
    assert paths("p", "q") == ["p/a.jpg", "p/b.jpg", "p/c.jpg", "q/a.jpg", "q/b.jpg", "q/c.jpg"]


def test_a_folder_above_a_link_is_not_the_one_that_the_name_shows() -> None:
    touch("x/y/", "a.jpg", "x/a.jpg")
    os.symlink("x/y", "link")
    assert paths("a.jpg", "link/../a.jpg", "x/a.jpg") == ["a.jpg", "link/../a.jpg"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", "/w/a.jpg"),
        ("./a//b/./c.jpg", "/w/a/b/c.jpg"),
        ("/a/b/", "/a/b"),
        ("//a", "/a"),
        ("..", "/"),
        ("../a", "/a"),
        ("/../../a", "/a"),
        ("a..b/..c", "/w/a..b/..c"),
        ("/a/.", "/a"),
        (".", "/w"),
    ],
)
def test_absolute_paths(path: str, expected: str) -> None:
    assert absolute(path, "/w") == expected
