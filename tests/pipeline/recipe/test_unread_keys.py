"""Keys that were set and that nothing reads: refused, or named, never ignored in silence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from export.errors import RecipeError
from export.files import ROOT
from pipeline.recipe.load import load_recipe
from pipeline.recipe.rules import READ_BY, unread_by_finished
from pipeline.recipe.schema import Data

CONFIGS = ROOT / "configs"


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as info:
        load_recipe(CONFIGS / f"{recipe}.yaml", overrides)
    return str(info.value)


def test_a_path_for_the_digits_names_the_recipe_that_fits(tmp_path: Path) -> None:
    message = refused("digits", "data.path=/no/such/folder")
    assert "data.path: expected none with data.source digits" in message
    assert "/no/such/folder, which does not exist." in message
    assert "-c configs/photos.yaml --set data.path=" in message
    (tmp_path / "photos").mkdir()
    assert f"-c configs/photos.yaml --set data.path={tmp_path}/photos" in refused(
        "digits", f"data.path={tmp_path}/photos"
    )
    for name, advice in {"x.npz": "data.source=npz", "x.csv": "data.source=csv", "x.zip": "Unpack it"}.items():
        (tmp_path / name).write_bytes(b"x")
        assert advice in refused("digits", f"data.path={tmp_path / name}")
    (tmp_path / "photos" / "train.csv").write_text("path,label")
    assert "data.source=csv" in refused("digits", f"data.path={tmp_path}/photos")


@pytest.mark.parametrize(
    ("recipe", "overrides", "key"),
    [
        ("digits", ["data.download=mnist"], "data.download"),
        ("digits", ["data.classes=classes.txt"], "data.classes"),
        ("digits", ["data.divide.train.test=0.5"], "data.divide"),
        ("digits", ["data.ready_splits=false"], "data.ready_splits"),
        ("photos", ["data.tfds=mnist"], "data.tfds"),
        ("photos", ["data.columns.image=file"], "data.columns"),
        ("mnist", ["data.label_pattern=^(.)"], "data.label_pattern"),
        ("imagenet", ["data.label_pattern=^(.)"], "data.label_pattern"),
        ("imagenet", ["data.download=flowers"], "data.download"),
        ("mnist", ["data.download=flowers"], "data.download"),
        ("photos", ["model.output=softmax"], "model.output"),
        ("photos", ["model.allow=[SavedModel]"], "model.allow"),
        ("photos", ["model.called_in_training=inference"], "model.called_in_training"),
        ("photos", ["model.padding=valid"], "model.padding"),
        ("digits", ["model.padding=valid"], "model.padding"),
    ],
)
def test_keys_that_the_source_or_the_model_does_not_read(recipe: str, overrides: list[str], key: str) -> None:
    message = refused(recipe, *overrides)
    assert message.startswith(f"{key}: expected ")
    assert "Received: " in message


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_here_is_read_whole(path: Path) -> None:
    recipe = load_recipe(path)
    assert list(unread_by_finished(recipe)) == []


def test_every_key_of_data_is_in_the_table_or_true_of_any_source() -> None:
    of_any = {"source", "splits", "duplicates_across_classes", "resize", "jpeg_scaling", "max_bad_images", "salt"}
    assert {field.name for field in fields(Data)} == of_any | set(READ_BY)


def test_a_training_that_does_not_take_place_is_named_in_one_line() -> None:
    recipe = load_recipe(CONFIGS / "signs.yaml", ["model.path=m.h5", "model.weights=w.h5"])
    (line,) = unread_by_finished(recipe)
    assert line == (
        "not used, because the model is finished (model.path) and nothing is trained: model.backbone, model.weights, "
        "model.padding, model.pooling, train.head, train.fine_tune, data.splits.train"
    )
    shares = ["model.path=m.h5", "data.splits={train: 0.5, validation: 0}", "data.divide.train={train: 0.5, test: 0.5}"]
    (line,) = unread_by_finished(load_recipe(CONFIGS / "photos.yaml", shares))
    assert line.endswith(", data.splits.train, data.divide.train.train")
    (line,) = unread_by_finished(load_recipe(CONFIGS / "imagenet.yaml", ["train.seed=2", "model.dropout=0.1"]))
    assert line.endswith("(model.head: published) and nothing is trained: model.dropout, train.seed")


def test_a_head_is_named_among_what_a_model_file_does_not_use() -> None:
    (line,) = unread_by_finished(load_recipe(CONFIGS / "imagenet.yaml", ["model.path=m.h5"]))
    assert line.endswith("nothing is trained: model.weights, model.head")


def test_what_could_be_fetched_may_be_here_in_another_form() -> None:
    recipe = load_recipe(CONFIGS / "mnist.yaml", ["data.source=folder", "data.download=mnist", "data.path=x"])
    assert recipe.data.path is not None
