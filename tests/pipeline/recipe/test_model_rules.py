"""What a recipe and its images tell of a model before TensorFlow is loaded, and before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.errors import ModelError
from export.files import ROOT
from pipeline.recipe.load import load_recipe
from pipeline.recipe.model_rules import check_with_classes
from pipeline.recipe.schema import Export, Model, Recipe
from pipeline.workflow.context import Context


def loaded(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "toy.yaml"
    path.write_text("data: {source: digits}\nquantize: {min_images: 20}\nmodel: {backbone: resnet20, input_size: 32}\n")
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("model.backbone=mobilenet", "model.weights=imagenet"),
            r"expected a file\. Received: imagenet for mobilenet, .*MobileNet: mobilenetv3small, .* as model\.backbone",
        ),
        (("model.weights=imagenet",), "Received: imagenet for resnet20, for which Keras publishes no weights"),
        (
            ("model.backbone=efficientnetb0", "model.preprocessing=tf"),
            "expected auto or none, because efficientnetb0 normalises 0..255 in its first layers. Received: tf",
        ),
        (("model.head=published",), "model.head: published needs a backbone of keras.applications and its weights"),
        (
            ("model.head=published", "model.weights=imagenet", "model.backbone=vgg16", "model.input_size=64"),
            "model.input_size: expected 224, .* head of vgg16 takes. Received: 64",
        ),
    ],
)
def test_a_recipe_that_no_model_can_be_built_of_does_not_load(
    tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        loaded(tmp_path, *overrides)


def test_what_says_nothing_of_a_model_file_is_let_be(tmp_path: Path) -> None:
    assert loaded(tmp_path, "model.path=m.keras", "model.weights=imagenet").model.weights == "imagenet"
    assert loaded(tmp_path, "model.path=m.keras", "model.backbone=efficientnetb0", "model.preprocessing=tf")


def test_more_best_classes_than_there_are(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "export.top_k=11")
    with pytest.raises(ModelError, match=r"export\.top_k: expected at most 10, .*Received: 11.*--set export.top_k=10$"):
        Context(recipe, tmp_path / "toy.yaml", tmp_path).leave_out_damaged()
    check_with_classes(loaded(tmp_path, "export.top_k=10"), 10)
    check_with_classes(Recipe("r", export=Export(top_k=0)), 2)


def test_the_published_head_for_other_classes_is_refused_with_the_images() -> None:
    recipe = Recipe("r", model=Model(head="published", weights="imagenet"))
    with pytest.raises(ModelError, match=r"model\.head: published has 1,000 outputs\. Received: 2 classes"):
        check_with_classes(recipe, 2)
    check_with_classes(recipe, 1000)


def test_tensorflow_is_not_needed_for_it() -> None:
    code = "import sys, pipeline.recipe.load, pipeline.recipe.model_rules; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
