"""Values that a recipe cannot take: the sentence is in the words of YAML, and the line that it advises loads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from export.errors import RecipeError
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import closest

RECIPE = "data: {source: digits}\nmodel: {backbone: resnet20, input_size: 32}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("build.flavour=trt", "Did you mean 'tensorrt'?"),
        ("build.flavour=TensorRT", "Did you mean 'tensorrt'?"),
        ("build.flavour=trt-rtx", "Did you mean 'rtx'?"),
        ("build.precisions=[half]", "Did you mean 'fp16'?"),
        ("build.precisions=[float32]", "Did you mean 'fp32'?"),
        ("quantize.sensitivity=yes", "Received: true. Did you mean 'always'?"),
        ("train.mixed_precision=off", "Received: false. Did you mean 'never'?"),
        ("train.class_weights=no", "Received: false. Did you mean 'none'?"),
        ("epochs=3", "Unknown key 'epochs'. Did you mean train.head.epochs or train.fine_tune.epochs?"),
        ("train.epochs=3", "Did you mean train.head.epochs or train.fine_tune.epochs?"),
        ("verify.thresholds.fp32.relative_error=automatic", "expected a number or auto. Received: 'automatic'."),
        ("model.preprocessing=CHOOSE", "expected one of caffe, tf, torch, unit, none. Received: CHOOSE, as `inspect`"),
        ("model.input_size=abc", "expected a whole number. Received: 'abc'."),
        ("model.input_size=null", "expected a whole number. Received: nothing (null)."),
        ("model.classes=3", "model.classes: expected a list. Received: 3, a number. Write [3]"),
        ("data.splits={train:0.8,test:0.2}", "a space after each colon. Received: train:0.8. Write train: 0.8"),
        ("export.opset=18", "export.opset: expected 17. Received: 18"),
    ],
)
def test_the_sentence(recipe: Path, override: str, said: str) -> None:
    assert said in refused(recipe, override)


@pytest.mark.parametrize("override", ["build.flavour=onnx", "build.flavour=gpu", "quantize.method=off"])
def test_nothing_is_advised_where_nothing_is_close(recipe: Path, override: str) -> None:
    assert "Did you mean" not in refused(recipe, override)


def test_a_short_name_stands_only_for_what_there_is() -> None:
    assert closest("trt", ["rtx", "auto"]) == "rtx"
    assert closest("ort", ["auto", "tensorrt", "onnxruntime"]) == "onnxruntime"
    assert closest("onnx", ["auto", "tensorrt", "onnxruntime"]) == "onnxruntime"


@pytest.mark.parametrize("word", ["none", "None", "NULL", "'null'", "nil"])
@pytest.mark.parametrize(
    "key", ["model.weights", "data.classes", "data.label_pattern", "data.download", "build.workspace_mib"]
)
def test_words_for_nothing(recipe: Path, key: str, word: str) -> None:
    override = f"{key}={word}"
    if word == "NULL":  # YAML's own
        assert load_recipe(recipe, [override])
        return
    said = refused(recipe, override)
    assert said.startswith(f"{key}: expected a value, or null for none. Received: the text")
    assert load_recipe(recipe, [f"{key}={said.partition(' Write ')[2].partition(',')[0]}"])


def test_words_for_nothing_in_the_file(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("input_size", "weights: None, input_size"))
    assert "model.weights: expected a value, or null for none. Received: the text 'None'" in refused(recipe)


def test_a_file_of_such_a_name(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe.parent / "none").touch()
    monkeypatch.chdir(recipe.parent)
    assert load_recipe(recipe, ["model.weights=none"]).model.weights == str(recipe.parent / "none")


@pytest.mark.parametrize(
    ("override", "written"),
    [
        ("build.precisions=int8", "[int8]"),
        ("build.precisions=fp16,int8", "[fp16, int8]"),
        ("build.precisions=fp16 int8", "[fp16, int8]"),
        ("benchmark.batches=8", "[8]"),
        ("benchmark.batches=1, 8", "[1, 8]"),
        ("model.dense=", "[]"),
        ("build.targets=SM86, SM89", "[SM86, SM89]"),
        ("name=5", '"5"'),
        ("description=2024-12-05", '"2024-12-05"'),
        ("description=1.5", '"1.5"'),
    ],
)
def test_the_line_that_is_advised_loads(recipe: Path, override: str, written: str) -> None:
    said = refused(recipe, override)
    line = re.search(r"on a command line (--set '.*')\.$", said)
    assert f"{written}; on a command line" in said
    assert line is not None
    option, value = shlex.split(line[1])
    assert option == "--set"
    assert isinstance(load_recipe(recipe, [value]), Recipe)


def test_layers_keep_their_spaces(recipe: Path) -> None:
    assert "Write [my layer, other]" in refused(recipe, "model.allow=my layer, other")
