"""The families of keras.applications as backbones: preprocessing, sizes, published weights, training."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import ModelError, RecipeError
from pipeline.data.dataset import ImageSet, load_image_set
from pipeline.keras_files.code_scan import scan_config
from pipeline.models import weights
from pipeline.models.classifier import build_classifier
from pipeline.models.preprocessing import preprocessing_of
from pipeline.models.weights import load_weights, set_weights
from pipeline.recipe.backbones import BACKBONES, by_family
from pipeline.recipe.load import load_recipe
from pipeline.recipe.published_weights import imagenet_weights, published_backbones
from pipeline.recipe.schema import Data, FineTunePhase, HeadPhase, Model, Recipe, Splits, Train
from pipeline.terminal.console import start_tensorflow
from pipeline.training.train import train
from tests.conftest import make_colour_images

start_tensorflow()
import keras  # noqa: E402

APPLICATIONS = [name for name, entry in BACKBONES.items() if entry.application]
QUICK = ("mobilenet", "mobilenetv3small", "vgg16")
LONG = ("efficientnetb0", "efficientnetv2b0", "densenet121", "convnexttiny", "inceptionv3", "xception", "nasnetmobile")


def module_of(name: str) -> Any:
    """The module of ``keras.src.applications`` that defines a backbone."""
    return inspect.getmodule(getattr(keras.applications, BACKBONES[name].application or ""))


def source_of(name: str) -> str:
    """The source of that module; ResNetV2's is written with ResNet's."""
    return inspect.getsource(keras.src.applications.resnet if name.startswith("resnet") else module_of(name))


def recipe_file(folder: Path, **model: Any) -> Path:
    path = folder / "r.yaml"
    path.write_text(f"data: {{path: /x}}\nmodel: {model}\n".replace("'", ""))
    return path


@pytest.mark.parametrize("name", APPLICATIONS)
def test_preprocessing_is_that_of_its_module(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = module_of(name).preprocess_input(pixels.astype(np.float32))
    np.testing.assert_allclose(preprocessing_of(Model(backbone=name)).apply(pixels), expected, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_sizes_are_those_in_the_source(name: str) -> None:
    """Smallest and native input: written as ``min_size`` and as a default, or as an argument of the scaling."""
    source = source_of(name)
    smallest = BACKBONES[name].smallest
    assert f"min_size={smallest}," in source or f"rows < {smallest}" in source
    assert f"{BACKBONES[name].native}," in source or f"default_size = {BACKBONES[name].native}" in source


@pytest.mark.parametrize("name", published_backbones())
def test_hashes_are_in_the_sources_of_keras(name: str) -> None:
    """Each with its file's name where the source has it whole; those it puts together are asked for below."""
    source = source_of(name)
    for top in (True, False):
        assert f'"{imagenet_weights(name, top).digest.partition(":")[2]}"' in source
    folder, _, _ = imagenet_weights(name, True).url.rpartition("/")
    assert f'"{folder}/' in source.replace('"\n    "', "")


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3small", "vgg16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nasnetmobile", *LONG[:5]))],
)
@pytest.mark.parametrize("top", [True, False])
def test_keras_asks_for_the_same_file(name: str, top: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def asked(fname: str, origin: str, file_hash: str, cache_subdir: str) -> None:
        raise Asked((fname, origin, file_hash, cache_subdir))

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", asked)
    with pytest.raises(Asked) as caught:
        getattr(keras.applications, BACKBONES[name].application or "")(include_top=top, weights="imagenet")
    ours = imagenet_weights(name, top)
    expected = (ours.name, ours.url, ours.digest.partition(":")[2], ours.folder)
    assert caught.value.args[0] == expected


@pytest.mark.parametrize("name", ["mobilenet", "mobilenetv2"])
def test_what_is_published_without_a_hash_is_not_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "fetch", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(ModelError, match=rf"for {name}, for which Keras publishes no weights with a hash\..*ResNet: "):
        load_weights(keras.Sequential(), Model(backbone=name, weights="imagenet"))  # type: ignore[arg-type]


def test_a_network_that_normalises_inside_takes_pixels_as_they_are() -> None:
    assert preprocessing_of(Model(backbone="efficientnetb0", preprocessing="none")).mode == "none"
    with pytest.raises(ModelError, match=r"expected auto or none, because efficientnetb0 normalises.*Received: tf"):
        preprocessing_of(Model(backbone="efficientnetb0", preprocessing="tf"))
    assert preprocessing_of(Model(backbone="efficientnetb0", path="/m.keras", preprocessing="tf")).mode == "tf"


def test_recipes_know_the_smallest_input_of_each(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.input_size: expected 75 to 600 for inceptionv3\. Received: 64"):
        load_recipe(recipe_file(tmp_path, backbone="inceptionv3", input_size=64))
    load_recipe(recipe_file(tmp_path, backbone="inceptionv3", input_size=75))
    load_recipe(recipe_file(tmp_path, backbone="efficientnetb7", input_size=600))
    load_recipe(recipe_file(tmp_path, backbone="inceptionv3", path="/m.keras", input_size=64))


def test_an_unknown_backbone_is_answered_by_family(tmp_path: Path) -> None:
    message = (
        r"expected a backbone\. Received: 'efficientnet_b0'\. Did you mean 'efficientnetb0'\? There are ResNet: "
        r"resnet18, resnet20, resnet34 and 7 more; EfficientNet: .*, efficientnetb7; EfficientNetV2: .* and 4 more"
    )
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path, backbone="efficientnet_b0"))
    assert by_family(["vgg16", "resnet50", "vgg19"]) == "VGG: vgg16, vgg19; ResNet: resnet50"


def test_the_published_head_of_vgg_has_one_size() -> None:
    config = Model(backbone="vgg16", head="published", weights="imagenet", input_size=64)
    with pytest.raises(ModelError, match=r"model\.input_size: expected 224, .*head of vgg16 takes\. Received: 64"):
        build_classifier(config, 1000)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in LONG)])
def test_a_classifier_of_each_family(name: str) -> None:
    built = build_classifier(Model(backbone=name, input_size=max(64, BACKBONES[name].smallest)), 5)  # type: ignore[arg-type]
    assert built.model.output_shape == (None, 5)
    assert built.model.get_layer(built.head_input).output.shape == (None, built.backbone.output.shape[-1])
    assert not scan_config({"class_name": "Functional", "config": built.model.get_config()})


# --- weights ---


def counted(start: int) -> keras.Model:
    """Layers as keras.applications leaves unnamed, and Keras counts over the whole process."""
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = inputs
    for number in range(2):
        x = keras.layers.Conv2D(3, 3, name=f"conv2d_{start + number}")(x)
        x = keras.layers.BatchNormalization(name=f"batch_normalization_{start + number}")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("start", [7, 1])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_that_keras_counts_are_loaded_in_their_order(tmp_path: Path, start: int) -> None:
    """With 1 the names overlap: by name alone the second convolution would get the first's weights."""
    source, target = counted(0), counted(start)
    source.save(tmp_path / "w.h5")
    load_weights(target, Model(backbone="inceptionv3", weights=str(tmp_path / "w.h5")))
    for one, other in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_names_are_not_loaded_by_order(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = keras.layers.Conv2D(3, 3, name="mine")(inputs)
    keras.Model(inputs, keras.layers.Conv2D(3, 3, name="mine_too")(x)).save(tmp_path / "w.h5")
    with pytest.raises(ModelError, match="lacks 4 of its layers, such as conv2d_0"):
        load_weights(counted(0), Model(backbone="inceptionv3", weights=str(tmp_path / "w.h5")))


def normalising(again: bool = False) -> keras.Model:
    """The start of an EfficientNet: as Keras builds it for other weights, or (``again``) for its published ones."""
    inputs = keras.Input((4, 4, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 255, name="rescaling")(inputs)
    x = keras.layers.Normalization(name="normalization")(x)
    if again:
        x = keras.layers.Rescaling([1 / s**0.5 for s in (0.229, 0.224, 0.225)], name="rescaling_1")(x)
    model = keras.Model(inputs, x)
    set_weights(model, [np.array(v, np.float32) for v in ((0.4, 0.5, 0.6), (0.05, 0.06, 0.07))] + [np.int32(0)])
    return model


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)


def test_a_normalization_computes_with_the_weights_it_was_given() -> None:
    mean, variance = (np.array(v, np.float32) for v in ((0.4, 0.5, 0.6), (0.05, 0.06, 0.07)))
    np.testing.assert_allclose(
        normalising().predict(PIXELS, verbose=0), (PIXELS / 255 - mean) / np.sqrt(variance), rtol=1e-4, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["imagenet", "the published file", "a whole model"])
def test_efficientnets_published_weights_divide_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Keras builds the network with one more Rescaling where it loads these weights, and only there."""
    source, target, path = normalising(again=True), normalising(), tmp_path / "w.h5"
    source.save(path) if way == "a whole model" else normalising().save(path)
    if way == "imagenet":
        monkeypatch.setattr(weights, "fetch", lambda *_: path)
    if way == "the published file":
        digest = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
        monkeypatch.setattr(
            weights, "imagenet_weights", lambda name, top: replace(imagenet_weights(name, top), digest=digest)
        )
    load_weights(target, Model(backbone="efficientnetb0", weights="imagenet" if way == "imagenet" else str(path)))
    expected = source.predict(PIXELS, verbose=0)
    np.testing.assert_allclose(target.predict(PIXELS, verbose=0), expected, rtol=1e-4, atol=1e-5)
    normalising().save(tmp_path / "own.h5")
    target = normalising()
    load_weights(target, Model(backbone="efficientnetb0", weights=str(tmp_path / "own.h5")))
    assert np.abs(target.predict(PIXELS, verbose=0) - expected).max() > 0.5, "weights of a model without it stay"


# --- training ---


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = make_colour_images(tmp_path_factory.mktemp("colours") / "images", 12)
    return load_image_set(Data(path=str(folder), splits=Splits(0.6, 0.2, 0.1, 0.1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3small", "efficientnetb0", "convnexttiny"])
@pytest.mark.parametrize("mixed", ["never", "always"])
def test_they_train_in_both_phases(images: ImageSet, tmp_path: Path, name: str, mixed: Any) -> None:
    settings = Train(
        batch_size=8, head=HeadPhase(1), fine_tune=FineTunePhase(1), mixed_precision=mixed, save_backbone=True
    )
    base = Recipe("toy", model=Model(backbone=name, input_size=32), train=settings)  # type: ignore[arg-type]
    recipe = replace(base, quantize=replace(base.quantize, min_images=1), verify=replace(base.verify, min_images=1))
    train(recipe, images, tmp_path)
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert {w.dtype for w in model.weights} <= {"float32", "int32", "uint32", "int64"}
    start = build_classifier(replace(recipe.model, weights=str(tmp_path / "backbone.weights.h5")), 2)
    for one, other in zip(start.backbone.get_weights(), model.get_weights()):
        assert np.isfinite(other).all()
        assert one.shape == other.shape
