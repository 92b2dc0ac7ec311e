"""Backbones and heads: exact parameter counts, names that weights files rely on, preprocessing, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.errors import ModelError
from export.files import ROOT
from export.preprocessing import PreprocessingSpec
from pipeline.models.classifier import build_backbone, build_classifier
from pipeline.models.resnet import Style, convolutional_block, identity_block, resnet
from pipeline.models.weights import keras2_name
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.load import load_recipe
from pipeline.recipe.rules import WITH_STEM
from pipeline.recipe.schema import Model
from pipeline.terminal.console import start_tensorflow

start_tensorflow()
import keras  # noqa: E402

SIGNS = Model(backbone="resnet50-blocks", input_size=64, padding="valid", pooling="avg2x2")


def counts(model: keras.Model) -> tuple[int, int]:
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return trainable, model.count_params() - trainable


def test_the_signs_resnet50_has_exactly_its_parameters() -> None:
    model = build_classifier(SIGNS, 6).model
    assert model.count_params() == 23_600_006
    assert counts(model) == (23_546_886, 53_120)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 53
    assert all(layer.use_bias for layer in convolutions)
    assert [layer.name for layer in model.layers[:4]] == ["pixels", "stem_pad", "conv1", "bn_conv1"]
    first = model.get_layer("conv1")
    assert (first.kernel_size, first.strides, first.padding) == ((7, 7), (2, 2), "valid")
    pool = model.get_layer("stem_pool")
    assert (pool.pool_size, pool.strides, pool.padding) == ((3, 3), (2, 2), "valid")
    assert model.get_layer("res3a_branch2a").strides == (2, 2), "the stride is on the first 1x1"
    assert model.get_layer("res3a_branch2b").strides == (1, 1)
    assert model.get_layer("res3a_branch1").strides == (2, 2)
    assert tuple(model.get_layer("head_pool").output.shape[1:]) == (1, 1, 2048)


def test_the_same_builder_gives_224_with_same_padding() -> None:
    model = build_classifier(Model(backbone="resnet50-blocks", input_size=224, padding="same"), 17).model
    assert "stem_pad" not in {layer.name for layer in model.layers}
    assert model.count_params() == 23_587_712 + 2048 * 17 + 17
    assert model.output.shape == (None, 17)
    assert tuple(model.get_layer("head_pool").input.shape[1:]) == (7, 7, 2048)


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [
        # torchvision's counts without fc: 11,176,512 and 21,284,672, plus 2 BatchNorm statistics a channel.
        ("resnet18", 11_176_512 + 2 * 4_800, 512),
        ("resnet34", 21_284_672 + 2 * 8_512, 512),
    ],
)
def test_basic_block_resnets(name: str, parameters: int, channels: int) -> None:
    model = build_backbone(name, 64)
    assert model.count_params() == parameters
    assert model.output.shape == (None, 2, 2, channels)


@pytest.mark.parametrize("name", [name for name, entry in BACKBONES.items() if entry.application is None])
def test_padding_is_for_the_backbones_whose_stem_has_it(name: str) -> None:
    padded = {layer.name for layer in build_backbone(name, 64, "valid").layers} & {"stem_pad"}
    assert bool(padded) == (name in WITH_STEM)


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet50-blocks", 16), ("resnet20", 0)])
def test_blocks_of_a_fresh_backbone_start_as_their_shortcuts(name: str, blocks: int) -> None:
    """That keeps what is trained from scratch well conditioned; resnet20 stays as its published weights were made."""
    norms = [layer for layer in build_backbone(name, 64).layers if isinstance(layer, keras.layers.BatchNormalization)]
    still = [layer.name for layer in norms if not np.any(layer.gamma)]
    assert len(still) == blocks
    assert all(layer.endswith(("_branch2c", "_2_bn")) for layer in still)


def test_weights_of_the_digits_recipe_still_load() -> None:
    recipe = load_recipe(ROOT / "configs" / "digits.yaml")
    built = build_classifier(recipe.model, 10)
    names = [layer.name for layer in built.backbone.layers]
    assert names[:4] == ["pixels", "stem_conv", "stem_bn", "stem_relu"]
    assert "stage2_block1_shortcut_conv" in names
    assert names[-1] == "stage3_block3_out"
    # A ResNet-20 that was trained has moved its statistics away from their start values.
    assert np.abs(built.backbone.get_layer("stem_bn").get_weights()[2]).max() > 1e-3
    fresh = build_backbone("resnet20", 32)
    fresh.load_weights(ROOT / "configs" / "digits-backbone.weights.h5")
    for one, other in zip(built.backbone.get_weights(), fresh.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_blocks_take_filters_kernel_stride_and_initializer() -> None:
    x = keras.Input((16, 16, 8))
    initializer = keras.initializers.RandomUniform(0, 0.5, seed=3)
    y = convolutional_block(x, (4, 4, 24), 5, 4, initializer, name="a", style=Style(bias=True))
    assert y.shape == (None, 4, 4, 24)
    y = identity_block(y, (6, 24), 1, 1, "zeros", name="b")
    z = identity_block(y, (6, 24), 3, 2, "he_normal", name="c")
    assert z.shape == (None, 2, 2, 24)
    model = keras.Model(x, z)
    assert model.get_layer("a_2_conv").kernel_size == (5, 5)
    assert model.get_layer("a_1_conv").strides == model.get_layer("a_shortcut_conv").strides == (4, 4)
    assert model.get_layer("a_1_conv").get_weights()[0].min() >= 0
    assert not model.get_layer("b_1_conv").get_weights()[0].any()
    with pytest.raises(ValueError, match="Expected 24 filters at the end"):
        identity_block(y, (6, 12), name="d")
    with pytest.raises(ValueError, match="Expected two filters"):
        convolutional_block(y, (6,), name="e")


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_preprocessing_modes(mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = keras.applications.imagenet_utils.preprocess_input(pixels.astype(np.float32), mode=mode)
    np.testing.assert_allclose(PreprocessingSpec.from_mode(mode).apply(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "dense", "dropout", "expected"),
    [
        ("avg", (), 0.0, ["head_pool", "predictions"]),
        ("max", (7,), 0.5, ["head_pool", "head_dense1", "head_dropout", "predictions"]),
        ("flatten", (7, 5), 0.0, ["head_flatten", "head_dense1", "head_dense2", "predictions"]),
        ("avg2x2", (), 0.0, ["head_pool", "head_flatten", "predictions"]),
    ],
)
def test_heads(pooling: str, dense: tuple[int, ...], dropout: float, expected: list[str]) -> None:
    config = Model(backbone="resnet20", input_size=48, pooling=pooling, dense=dense, dropout=dropout)  # type: ignore[arg-type]
    built = build_classifier(config, 4)
    assert [layer.name for layer in built.model.layers][-len(expected) :] == expected
    assert built.model.get_layer("head_flatten" if "flatten" in pooling else "head_pool") is not None


@pytest.mark.parametrize("size", [32, 33, 95, 512])
def test_input_sizes(size: int) -> None:
    for name in ("resnet18", "resnet20"):
        assert build_backbone(name, size).input_shape == (None, size, size, 3)


def test_a_feature_map_too_small_for_the_head_is_refused() -> None:
    with pytest.raises(ModelError, match=r"at least 2x2 for avg2x2. Received: 1x1 of resnet18"):
        build_classifier(Model(backbone="resnet18", input_size=32, pooling="avg2x2"), 3)


def test_imagenet_weights_exist_for_applications_only() -> None:
    with pytest.raises(ModelError, match="ImageNet weights exist for ResNet: resnet50, "):
        build_classifier(Model(backbone="resnet18", weights="imagenet", input_size=32), 3)


def test_a_published_head_needs_its_thousand_classes() -> None:
    config = Model(backbone="resnet50", head="published", weights="imagenet")
    with pytest.raises(ModelError, match=r"has 1,000 outputs\. Received: 5 classes"):
        build_classifier(config, 5)
    with pytest.raises(ModelError, match=r"needs a backbone of keras.applications"):
        build_classifier(replace(config, backbone="resnet18"), 1000)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
    other.save(tmp_path / "other.h5")
    config = Model(backbone="resnet20", input_size=32)
    with pytest.raises(ModelError, match=r"lacks \d+ of its layers, such as stem_conv"):
        build_classifier(replace(config, weights=str(tmp_path / "other.h5")), 3)
    with pytest.raises(ModelError, match="which does not exist"):
        build_classifier(replace(config, weights=str(tmp_path / "none.h5")), 3)
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(ModelError, match="no HDF5 file"):
        build_classifier(replace(config, weights=str(tmp_path / "text.h5")), 3)


def test_classic_names() -> None:
    """The block builder and keras.applications name the same 106 layers, so either's weights file is understood."""
    published = [layer for layer in build_backbone("resnet50", 64).layers if layer.weights]
    own = {layer.name: layer for layer in resnet(50, 64).layers if layer.weights}
    assert {keras2_name(layer.name) for layer in published} == set(own)
    for layer in published:
        assert [w.shape for w in layer.weights] == [w.shape for w in own[keras2_name(layer.name)].weights]


def test_a_file_with_the_names_of_keras_2_0_loads(tmp_path: Path) -> None:
    source = resnet(50, 64)
    classifier = keras.Model(source.input, keras.layers.Dense(6, name="fc6")(keras.layers.Flatten()(source.output)))
    classifier.save(tmp_path / "resnet50.h5")
    pixels = np.random.default_rng(2).random((1, 64, 64, 3), dtype=np.float32)
    config = Model(backbone="resnet50-blocks", input_size=64, weights=str(tmp_path / "resnet50.h5"))
    loaded = build_classifier(config, 6).backbone
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), source.predict(pixels, verbose=0), rtol=1e-5)
    renamed = build_classifier(replace(config, backbone="resnet50"), 6).backbone
    kernel = renamed.get_layer("conv3_block2_2_conv").get_weights()[0]
    np.testing.assert_array_equal(kernel, source.get_layer("res3b_branch2b").get_weights()[0])
