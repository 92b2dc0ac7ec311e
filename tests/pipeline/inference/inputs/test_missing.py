"""Inputs that are not there: an error where none is, a row where others are; with the name that was meant."""

from __future__ import annotations

import os

import pytest

from export.errors import DataError
from tests.pipeline.inference.inputs.parts import paths, plan, touch


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (
            ["phtos"],
            "Expected an image or a folder of images. Received: phtos, which does not exist; did you mean 'photos'?",
        ),
        (["photos/cta.jpg"], "photos/cta.jpg, which does not exist; did you mean 'photos/cat.jpg'?"),
        (["phots/sub/cat.jpg"], "phots/sub/cat.jpg, which does not exist; did you mean 'photos'?"),
        (["photos/cat.jpg/x.jpg"], "photos/cat.jpg/x.jpg, which does not exist."),
        (["zzz"], "zzz, which does not exist."),
        (["photos/*.gif"], "photos/*.gif, which is a pattern that matches nothing."),
        (["https://h/x.jpg"], "https://h/x.jpg, which is a URL; download it, and name the file."),
        ([""], "'', which is an empty name."),
        (["a", "b"], "Expected images or folders of images. Received: a, b, of which none exists."),
        ([], "Expected an image or a folder of images. Received: nothing."),
    ],
)
def test_none_exists(inputs: list[str], received: str) -> None:
    touch("photos/cat.jpg")
    with pytest.raises(DataError) as told:
        plan(*inputs)
    assert str(told.value).endswith(received)
    assert os.listdir(".run") == []


def test_an_absolute_path_that_does_not_exist() -> None:
    touch("photos/cat.jpg")
    here = os.getcwd()
    with pytest.raises(DataError) as told:
        plan(f"{here}/photo/cat.jpg")
    assert str(told.value).endswith(f"which does not exist; did you mean '{here}/photos'?")


def test_others_exist() -> None:
    touch("photos/cat.jpg")
    made = plan("phtos", "photos", "zzz", "photos/*.gif", "s3://b/x.jpg")
    assert [(item.path, item.kind, item.status) for item in made.items()] == [
        ("phtos", "problem", "missing"),
        ("photos/cat.jpg", "file", "unreadable"),
        ("zzz", "problem", "missing"),
        ("photos/*.gif", "problem", "missing"),
        ("s3://b/x.jpg", "problem", "missing"),
    ]
    assert next(made.items()).place == "does not exist; did you mean 'photos'?"


def test_one_is_missing_and_the_others_hold_no_image() -> None:
    touch("empty/a.txt")
    with pytest.raises(DataError, match=r"Received: none in empty, but 1 \.txt\. Convert those"):
        plan("zzz", "empty")


def test_links_and_names_that_the_system_refuses_are_items() -> None:
    os.symlink("nowhere", "link")
    os.symlink("loop", "loop")
    long = "x" * 300
    assert paths("link", "loop", long, "d/" * 3000) == ["link", "loop", long, "d/" * 3000]
    assert {item.kind for item in plan("link", "loop", long).items()} == {"file"}
