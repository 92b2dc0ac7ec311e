"""What somebody is told who names another thing than a folder with a folder of images for each class."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from export.errors import DataError, RecipeError
from pipeline.data.dataset import load_image_set
from pipeline.data.sample import DataMissingError
from pipeline.recipe.load import load_recipe
from pipeline.recipe.rules import _which_recipe
from pipeline.recipe.schema import Data

_made = iter(range(10**6))


def pictures(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(count):
        number = next(_made)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)).save(
            folder / f"cat_{number}.png"
        )
    return folder


def told(root: Path, source: str = "folder", kind: type[DataError] = DataError) -> str:
    with pytest.raises(kind) as info:
        load_image_set(Data(source=source, path=str(root)))  # type: ignore[arg-type]
    return str(info.value)


def test_one_level_of_folders_too_many(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / "deep" / "photos" / name)
    message = told(tmp_path / "deep")
    assert (
        f"photos holds the folders cat, dog: if these are the classes, --set data.path={tmp_path}/deep/photos"
        in message
    )
    assert load_image_set(Data(path=str(tmp_path / "deep" / "photos"))).classes == ("cat", "dog")


def test_classes_inside_groups_are_doubted_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for year in ("2023", "2024"):
        for name in ("cat", "dog"):
            pictures(tmp_path / year / name)
    assert load_image_set(Data(path=str(tmp_path))).classes == ("2023", "2024")
    assert "holds the folders cat, dog: if those are the classes" in caplog.text
    caplog.clear()
    pictures(tmp_path / "2024" / "owl")
    load_image_set(Data(path=str(tmp_path)))
    assert "if those are the classes" not in caplog.text


def test_images_without_a_folder_of_their_class(tmp_path: Path) -> None:
    message = told(pictures(tmp_path / "flat", 3))
    assert "3 images lie directly in it, without a class" in message
    assert f"--set data.path={tmp_path};" in message
    assert "data.label_pattern" in message
    load_image_set(Data(path=str(pictures(tmp_path / "flat", 1)), label_pattern=r"(\d)\.png"))


@pytest.mark.parametrize(
    ("name", "source", "advice"),
    [
        ("photos.zip", "folder", "an archive. Unpack it, and name the folder"),
        ("photos.tar.gz", "npz", "an archive. Unpack it, and name the folder"),
        ("x.npz", "folder", "fits with --set data.source=npz"),
        ("x.npz", "csv", "fits with --set data.source=npz"),
        ("x.csv", "folder", "fits with --set data.source=csv"),
        ("x.csv", "npz", "fits with --set data.source=csv"),
        ("x.jpg", "folder", "one image. Name the folder"),
    ],
)
def test_a_file_that_the_source_does_not_read(tmp_path: Path, name: str, source: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert advice in told(tmp_path / name, source)


def test_a_folder_that_the_source_does_not_read(tmp_path: Path) -> None:
    pictures(tmp_path / "a")
    for source in ("npz", "csv"):
        assert "fits with --set data.source=folder" in told(tmp_path, source)
    (tmp_path / "train.csv").write_text("path,label\n")
    assert "fits with --set data.source=csv" in told(tmp_path, "npz")


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("'\"/no/such/photos\"'", "The quotes are part of the name there; leave them out."),
        (r"C:\no\photos", "Backslashes are part of a name here; write / between folders."),
        ("~/no/such/photos", f"{Path.home()}/no/such/photos, which does not exist."),
    ],
)
def test_slips_in_a_path(tmp_path: Path, written: str, advice: str) -> None:
    (tmp_path / "r.yaml").write_text(f"data: {{path: {written}}}")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.data.path is not None
    assert advice in told(Path(recipe.data.path), kind=DataMissingError)


def test_a_trailing_slash_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"data": {"path": f"{tmp_path}/photos/"}}))
    assert load_recipe(tmp_path / "r.yaml").data.path == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("data.classes=[a, b]", "a list in model.classes"),
        ("model.input_size=[32, 48]", "so it is one number of pixels"),
        ("data.splits=0.5", "It is written as {train: 0.6"),
        ("data.path=[a, b]", "one folder or file"),
        (r'data.path="C:\Users\me"', "write / in paths, or single quotes"),
    ],
)
def test_values_of_another_form(tmp_path: Path, override: str, advice: str) -> None:
    (tmp_path / "r.yaml").write_text("data: {path: x}")
    with pytest.raises(RecipeError) as info:
        load_recipe(tmp_path / "r.yaml", [override])
    assert advice in str(info.value)


def test_files_that_are_not_taken_are_counted_by_their_ending(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    for name in ("cat/a.dng", "cat/b.DNG", "dog/c.dng", "notes.txt", "cat/README", ".DS_Store", "dog/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loose.png").write_bytes((next((tmp_path / "cat").glob("*.png"))).read_bytes())
    images = load_image_set(Data(path=str(tmp_path)))
    (said,) = [line for _, line in images.log_lines(finished=False) if "left out" in line]
    assert said == "left out: 3 .dng, 1 .txt, 1 file without an ending, 1 image in no class folder"


def test_what_another_system_leaves_beside_images_is_none(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
        (tmp_path / name / "._1.png").write_bytes(b"resource fork")
    images = load_image_set(Data(path=str(tmp_path)))
    assert (images.unreadable, images.others) == ((), {})


@pytest.mark.parametrize("name", ["my photos", "it's", "a: b", "#1", "$HOME", "[x]"])
def test_the_advised_path_is_the_folder_whatever_its_name_is(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "deep" / name
    for kind in ("cat", "dog"):
        pictures(inside / kind)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {path: x}")

    def followed(message: str) -> str | None:
        """What the words behind --set, as a shell reads them, make of a recipe."""
        words = shlex.split(re.findall(r"--set '?data\.path=.*?(?=; a class|$)", message)[0])
        return load_recipe(recipe, [words[1]]).data.path

    assert followed(told(tmp_path / "deep")) == str(inside)
    assert followed(told(inside / "cat")) == str(inside)
    assert followed(_which_recipe(inside)) == str(inside)
