"""What happens to a picture is read in the model card; a recipe that says otherwise is refused by the key's name."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.errors import ProjectError
from export.preprocessing import MeanImage, PreprocessingSpec
from export.records import to_json
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.cli.commands import main
from pipeline.data.decode import DecodeSpec, load_image
from pipeline.models.model_card import ModelCard, read_card, refuse_disagreement
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Data, Model, Preprocessing, Recipe
from pipeline.workflow.context import Context
from tests.made_records import make_card

CARD = make_card(("a", "b"), (64, 64), backbone="resnet20")
RECIPE = Recipe("toy", data=Data(source="digits"), model=Model(backbone="resnet20", input_size=64))


def test_the_recipe_that_trained_it_agrees() -> None:
    refuse_disagreement(RECIPE, CARD, "train")
    refuse_disagreement(replace(RECIPE, model=replace(RECIPE.model, preprocessing="unit")), CARD, "train")
    refuse_disagreement(replace(RECIPE, model=replace(RECIPE.model, classes=("a", "b"))), CARD, "train")


@pytest.mark.parametrize(
    ("section", "changes", "has", "says"),
    [
        ("data", {"resize": "pad"}, "stretch", "pad"),
        ("data", {"jpeg_scaling": "dct"}, "none", "dct"),
        ("model", {"input_size": 96}, "64x64", "96x96"),
        ("model", {"backbone": "resnet18"}, "resnet20", "resnet18"),
        ("model", {"preprocessing": "caffe"}, "unit", "caffe"),
        ("model", {"path": "/x/b.h5"}, "a model that is trained here", "a finished model"),
        ("model", {"classes": ("b", "a")}, r"\['a', 'b'\]", r"\['b', 'a'\]"),
        ("model", {"preprocessing": Preprocessing(mean=(1.0, 2.0, 3.0))}, "'mode': 'unit'", "'mode': 'custom'"),
    ],
)
def test_another_recipe_is_refused_by_name(section: str, changes: dict[str, Any], has: str, says: str) -> None:
    recipe = replace(RECIPE, **{section: replace(getattr(RECIPE, section), **changes)})
    (key,) = changes
    with pytest.raises(ProjectError, match=rf"(?s){section}\.{key}: expected .*{has}.* Received: .*{says}.*`retrain`"):
        refuse_disagreement(recipe, CARD, "retrain")


def test_a_finished_model_has_the_size_of_its_file() -> None:
    finished = replace(RECIPE, model=Model(path="m.keras", input_size=224, backbone="resnet50"))
    refuse_disagreement(finished, make_card(("a", "b"), (64, 64), source="m.keras"), "train")
    with pytest.raises(ProjectError, match=r"model\.path: expected a model that is trained here"):
        refuse_disagreement(finished, make_card(("a", "b"), (64, 64)), "train")


def test_a_size_that_somebody_asked_for_is_no_other_than_the_file_has() -> None:
    card = make_card(("a", "b"), (64, 64), source="m.keras")
    finished = replace(RECIPE, model=Model(path="m.keras", input_size=64))
    refuse_disagreement(finished, card, "train")
    with pytest.raises(ProjectError, match=r"model\.input_size: expected 64x64.* Received: 96x96\. Leave it out, "):
        refuse_disagreement(replace(finished, model=Model(path="m.keras", input_size=96)), card, "train")


def test_a_finished_model_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"one")
    (tmp_path / "toy.yaml").write_text("{data: {source: digits}, model: {path: m.h5, preprocessing: unit}}")
    context = Context(load_recipe(tmp_path / "toy.yaml"), tmp_path / "toy.yaml", tmp_path / "artifacts")
    folder = context.folder("train")
    folder.mkdir(parents=True)
    write_json(folder / "model.json", make_card(("a", "b"), source="m.h5"))
    key = Key({"model.path": sha256_file(tmp_path / "m.h5")}, {}, "")
    write_manifest(folder, stage="train", recipe="toy", key=key, seconds=1, result={})
    assert context.card().source == "m.h5"
    (tmp_path / "m.h5").write_bytes(b"two")
    with pytest.raises(ProjectError, match=r"model\.path: expected the file that the model was imported from"):
        context.card()
    (tmp_path / "m.h5").unlink()
    assert context.card().source == "m.h5", "artifacts travel without it"


def test_a_mean_that_is_on_another_machine_is_not_missed(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", np.array([1.0, 2.0, 3.0]))
    own = replace(RECIPE, model=replace(RECIPE.model, preprocessing=Preprocessing(mean=str(tmp_path / "mean.npy"))))
    card = replace(CARD, preprocessing=PreprocessingSpec("RGB", (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)))
    refuse_disagreement(own, card, "train")
    with pytest.raises(ProjectError, match=r"model\.preprocessing: expected"):
        refuse_disagreement(own, CARD, "train")
    (tmp_path / "mean.npy").unlink()
    refuse_disagreement(own, card, "train")


# --- the card as a file ---


def write(path: Path, card: ModelCard = CARD, **changes: Any) -> Path:
    write_json(path, card)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | changes))
    return path


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    mean = MeanImage.from_array(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    spec = PreprocessingSpec("BGR", (0.0, 0.0, 0.0), (1.0, 2.0, 3.0), mean_image=mean)
    for card in (CARD, replace(CARD, preprocessing=spec, changes=("one", "two"), parameters=7, transfer=True)):
        write_json(tmp_path / "model.json", card)
        assert read_card(tmp_path / "model.json") == card
    assert "allow" not in json.loads((tmp_path / "model.json").read_text())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 3}, "the model card of schema 4"),
        ({"allow": ["preprocess"]}, "the unknown key 'allow'"),
        ({"classes": ["a"]}, "1 class,"),
        ({"classes": ["a", "a"]}, "2 classes, 1 of them different"),
        ({"classes": "ab"}, "'classes' of type a list"),
        ({"output": "tanh"}, "'output' of type 'auto' or 'logits' or 'softmax' or 'sigmoid'"),
        ({"decode": {"size": [64], "resize": "stretch"}}, "'decode.size' of type a list of 2"),
        ({"decode": {"size": [64, 0], "resize": "stretch"}}, "a consistent DecodeSpec as 'decode'.*64x0"),
        ({"decode": {"size": [64, 64], "resize": "squeeze"}}, "'decode.resize'"),
        ({"decode": {"size": [64, 64], "resize": "pad", "transparency": "on white"}}, "'decode.transparency' of type"),
        ({"preprocessing": {}}, "'preprocessing' in .*channel_order, mean and scale"),
        ({"preprocessing": {"channel_order": "RGB", "mean": ["a"] * 3, "scale": [1, 1, 1]}}, "'preprocessing' in"),
        (
            {"preprocessing": {"channel_order": "RGB", "mean": [0, 0, 0], "scale": [1, 1, 1],
                               "mean_image": {"shape": [2, 2, 3], "float32": "AAAA"}}},
            "'preprocessing' in .*mean image",
        ),
    ],
)  # fmt: skip
def test_a_damaged_card_is_one_error_with_file_and_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProjectError, match=rf"(?s){words}.*Run `python -m pipeline train` again") as caught:
        read_card(write(tmp_path / "model.json", **changes))
    assert "model.json" in str(caught.value)


def older_card(tree: dict[str, Any]) -> dict[str, Any]:
    """As the version before wrote it, which decoded JPEG by Pillow."""
    decode = {key: value for key, value in tree["decode"].items() if key not in ("jpeg", "wide")}
    return tree | {"schema": 3, "decode": decode}


def test_rules_of_decoding_are_part_of_the_card(tmp_path: Path) -> None:
    decode = json.loads(write(tmp_path / "model.json").read_text())["decode"]
    assert (decode["jpeg"], decode["wide"]) == ("libjpeg-turbo, strict", "32-bit and float refused")
    with pytest.raises(ProjectError, match=r"'decode\.jpeg' of type 'libjpeg-turbo, strict'"):
        read_card(write(tmp_path / "model.json", decode={**decode, "jpeg": "Pillow"}))


@pytest.mark.parametrize(
    "words",
    [
        "export",
        "quantize",
        "build",
        "verify",
        "infer",
        "infer x.png",
        "report",
        "benchmark",
        "bundle",
        "verify --explain",
    ],
)
def test_a_card_of_an_earlier_version_is_refused_with_the_command_that_trains(
    tmp_path: Path, words: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, artifacts = tmp_path / "my recipe.yaml", tmp_path / "artifacts"
    recipe.write_text("{name: toy, data: {source: digits}, model: {backbone: resnet20, input_size: 64}}")
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    folder = artifacts / "toy" / "train"
    folder.mkdir(parents=True)
    tree = older_card(json.loads(write(folder / "model.json").read_text()))
    (folder / "model.json").write_text(json.dumps(tree))
    verb, *more = words.replace("x.png", str(tmp_path / "x.png")).split(" ", 1)
    options = ["--set", "train.seed=3", "--artifacts", str(artifacts)]
    assert main([verb, "-c", str(recipe), *options, *more]) == 2
    said = caplog.text + capfd.readouterr().err
    train = shlex.join(["pipeline", "train", "-c", str(recipe), *options])
    assert "Expected the model card of schema 4" in said
    assert f"{train}` again" in said


def test_the_receiver_of_a_bundle_is_not_told_to_train(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "train" / "model.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(older_card(json.loads(write(path).read_text()))))
    (tmp_path / "toy" / "recipe.yaml").write_text("{}")
    with pytest.raises(ProjectError, match=r"schema 4 .*make it again with `bundle`.*--force\.$") as caught:
        read_card(path)
    assert "train`" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["classes", "preprocessing", "decode", "output", "source", "changes", "parameters", "schema"]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda x: st.lists(x, max_size=3)
                 | st.dictionaries(st.sampled_from(["mean", "scale", "size", "x"]), x, max_size=3), max_leaves=5),
)  # fmt: skip
def test_any_value_in_a_card_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    path = write(tmp_path_factory.mktemp("card") / "model.json", **{key: value})
    try:
        read_card(path)
    except ProjectError as error:
        assert "model.json" in str(error)  # noqa: PT017 - a card that is read is as good


# --- one way from a file to pixels ---


@pytest.mark.parametrize("resize", ["stretch", "crop", "imagenet", "pad"])
def test_the_specification_is_what_decodes(tmp_path: Path, resize: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    decode = DecodeSpec((24, 40), resize)
    expected = load_image(tmp_path / "x.png", (24, 40), resize).pixels
    np.testing.assert_array_equal(decode.pixels(tmp_path / "x.png"), expected)
    np.testing.assert_array_equal(decode.pixels((tmp_path / "x.png").read_bytes()), expected)
    np.testing.assert_array_equal(decode.pixels(pixels), expected)


class _Runner:
    def __init__(self, classes: int, metadata: dict[str, Any] | None) -> None:
        self.classes, self.metadata = classes, metadata


@pytest.mark.parametrize(
    ("classes", "change", "words"),
    [
        (3, {}, "Expected 3 class names, as m.onnx has outputs. Received: 2"),
        (1, {}, "Expected 1 class name,"),
        (2, {"classes": ["b", "a"]}, r"with the classes of train/model.json: \['a', 'b'\]. Received: \['b', 'a'\]"),
        (2, {"decode": None}, "with the decode of train/model.json.*Received: None"),
        (2, {"decode": {**to_json(CARD.decode), "resize": "pad"}}, "'resize': 'pad'"),
        (2, {"preprocessing": {"mode": "caffe"}}, "with the preprocessing of"),
    ],
)
def test_a_file_of_another_model_is_refused(classes: int, change: dict[str, Any], words: str) -> None:
    CARD.check_runner(_Runner(2, CARD.metadata()), "m.onnx")  # type: ignore[arg-type]
    CARD.check_runner(_Runner(2, None), "model.keras")  # type: ignore[arg-type]
    with pytest.raises(ProjectError, match=rf"{words}.*\. Run `python -m pipeline run` again"):
        CARD.check_runner(_Runner(classes, CARD.metadata() | change), "m.onnx")  # type: ignore[arg-type]
