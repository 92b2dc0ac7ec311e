from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.errors import ModelError
from pipeline.models.classifier import build_backbone, build_classifier
from pipeline.models.preprocessing import preprocessing_of
from pipeline.models.resnet import resnet20
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.schema import BACKBONES as NAMES
from pipeline.recipe.schema import Model
from pipeline.terminal.console import start_tensorflow

start_tensorflow()
import keras  # noqa: E402


def tiny(**options: object) -> Model:
    return Model(**{"backbone": "resnet20", "input_size": 32} | options)


def expected_parameters(width: int, classes: int) -> int:
    """He et al. 2015, 4.2, with projections: no biases, four numbers a channel in each BatchNorm."""

    def conv_bn(kernel: int, into: int, out: int) -> int:
        return kernel * kernel * into * out + 4 * out

    total = conv_bn(3, 3, width)
    before = width
    for stage in range(3):
        filters = width * 2**stage
        for _ in range(3):
            total += conv_bn(3, before, filters) + conv_bn(3, filters, filters)
            if before != filters:
                total += conv_bn(1, before, filters)
            before = filters
    return total + before * classes + classes


@pytest.mark.parametrize("classes", [2, 10])
def test_resnet20_parameters(classes: int) -> None:
    model = build_classifier(tiny(), classes).model
    assert model.count_params() == expected_parameters(16, classes)


def test_resnet20_is_the_known_one() -> None:
    assert expected_parameters(16, 10) == 274_042
    assert resnet20(32, width=8).count_params() == expected_parameters(8, 1) - 33


def test_resnet20_blocks() -> None:
    model = resnet20(32)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    main = [x for x in convolutions if not x.name.endswith("_shortcut_conv")]
    assert len(main) == 19, "19 and the Dense layer of the head are 20"
    assert all(x.kernel_size == (3, 3) and not x.use_bias for x in main)
    shortcuts = {x.name: (x.kernel_size, x.strides) for x in convolutions if x not in main}
    assert shortcuts == {f"stage{s}_block1_shortcut_conv": ((1, 1), (2, 2)) for s in (2, 3)}
    assert [x.name for x in main if x.strides == (2, 2)] == ["stage2_block1_1_conv", "stage3_block1_1_conv"]
    assert sum(isinstance(x, keras.layers.BatchNormalization) for x in model.layers) == 21
    assert sum(isinstance(x, keras.layers.Add) for x in model.layers) == 9


def test_an_identity_block_adds_its_input() -> None:
    model = resnet20(32)
    add = model.get_layer("stage1_block2_add")
    assert {t._keras_history.operation.name for t in add.input} == {"stage1_block2_2_bn", "stage1_block1_out"}
    add = model.get_layer("stage2_block1_add")
    assert {t._keras_history.operation.name for t in add.input} == {"stage2_block1_2_bn", "stage2_block1_shortcut_bn"}
    for layer in (x for x in model.layers if isinstance(x, keras.layers.Add)):
        follower = model.get_layer(layer.name.replace("_add", "_out"))
        assert follower.input is layer.output
        assert isinstance(follower, keras.layers.ReLU)


@pytest.mark.parametrize("size", [32, 33, 64])
def test_resnet20_shapes(size: int) -> None:
    quarter = math.ceil(size / 4)
    assert resnet20(size).output_shape == (None, quarter, quarter, 64)


def test_the_classifier_is_flat_and_ends_with_softmax() -> None:
    built = build_classifier(tiny(), 3)
    assert not [x for x in built.model.layers if isinstance(x, keras.Model)]
    assert built.model.input_shape == (None, 32, 32, 3)
    assert built.model.output_shape == (None, 3)
    pixels = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    assert np.allclose(built.model.predict_on_batch(pixels).sum(axis=1), 1, atol=1e-6)
    assert built.backbone.layers == built.model.layers[: len(built.backbone.layers)], "the layers are shared"


@pytest.mark.parametrize(
    ("options", "names", "features"),
    [
        ({}, ["head_pool", "predictions"], 64),
        ({"pooling": "max"}, ["head_pool", "predictions"], 64),
        ({"pooling": "flatten"}, ["head_flatten", "predictions"], 64 * 8 * 8),
        ({"dense": (12, 7)}, ["head_pool", "head_dense1", "head_dense2", "predictions"], 7),
        ({"dropout": 0.25}, ["head_pool", "head_dropout", "predictions"], 64),
        ({"dense": (5,), "dropout": 0.5}, ["head_pool", "head_dense1", "head_dropout", "predictions"], 5),
    ],
)
def test_head(options: dict, names: list[str], features: int) -> None:
    built = build_classifier(tiny(**options), 4)
    head = built.model.layers[len(built.backbone.layers) :]
    assert [x.name for x in head] == names
    assert head[-1].kernel.shape == (features, 4)
    assert head[-1].activation is keras.activations.softmax
    if "dropout" in options:
        assert built.model.get_layer("head_dropout").rate == options["dropout"]
    if "dense" in options:
        assert [built.model.get_layer(f"head_dense{i + 1}").units for i in range(len(options["dense"]))] == [
            *options["dense"]
        ]
        assert built.model.get_layer("head_dense1").activation is keras.activations.relu
    if names[0] == "head_pool":
        kind = (
            keras.layers.GlobalMaxPooling2D if options.get("pooling") == "max" else keras.layers.GlobalAveragePooling2D
        )
        assert type(head[0]) is kind


# --- preprocessing ---


def test_every_backbone_of_a_recipe_is_known() -> None:
    assert list(BACKBONES) == list(NAMES.__args__), "in the same order, ResNets first"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name, entry in BACKBONES.items() if entry.family == "ResNet"])
def test_preprocessing_belongs_to_the_backbone(name: str) -> None:
    mode = "unit" if BACKBONES[name].application is None else "tf" if name.endswith("v2") else "caffe"
    spec = preprocessing_of(Model(backbone=name))
    assert spec.mode == mode
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    if mode == "unit":
        expected = pixels / 255
    else:
        package = keras.applications.resnet_v2 if mode == "tf" else keras.applications.resnet
        expected = package.preprocess_input(pixels.astype(np.float32))
    assert np.allclose(spec.apply(pixels), expected, atol=1e-4)


def test_preprocessing_can_be_named() -> None:
    assert preprocessing_of(tiny(preprocessing="torch")).mode == "torch"
    assert preprocessing_of(tiny(preprocessing="none", path="/m.keras")).mode == "none"
    assert build_classifier(tiny(preprocessing="caffe"), 2).preprocessing.mode == "caffe"


def test_a_model_file_does_not_say_its_preprocessing() -> None:
    with pytest.raises(ModelError, match=r"model\.preprocessing: expected caffe, tf, torch, unit or none"):
        preprocessing_of(tiny(path="/m.keras"))


# --- weights ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(3)
    for name, model in {"resnet20": resnet20(32), "thin": resnet20(32, width=8)}.items():
        for weight in model.weights:
            weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
        model.save_weights(folder / f"{name}.weights.h5")
        model.save(folder / f"{name}.h5")
    model.save(folder / "thin.keras")
    resnet50 = build_backbone("resnet50", 32)
    resnet50.save_weights(folder / "resnet50.weights.h5")
    resnet50.save(folder / "resnet50.h5")
    return folder


@pytest.mark.parametrize("name", ["resnet20.weights.h5", "resnet20.h5"])
def test_pretrained_weights_are_those_of_the_file(weights: Path, name: str) -> None:
    built = build_classifier(tiny(weights=str(weights / name)), 2)
    for weight in built.backbone.weights:
        assert np.array_equal(
            weight, np.random.default_rng(len(weight.path)).normal(size=weight.shape).astype(np.float32)
        )


def test_weights_fit_another_input_size(weights: Path) -> None:
    built = build_classifier(tiny(weights=str(weights / "resnet20.weights.h5"), input_size=48), 2)
    kernel = built.model.get_layer("stem_conv").kernel
    assert np.array_equal(kernel, np.random.default_rng(len(kernel.path)).normal(size=kernel.shape).astype(np.float32))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet20", "thin.weights.h5"),
        ("resnet20", "thin.h5"),
        ("resnet20", "thin.keras"),
        ("resnet20", "resnet50.weights.h5"),
        ("resnet20", "resnet50.h5"),
        ("resnet50", "resnet20.weights.h5"),
        ("resnet50", "resnet20.h5"),
        ("resnet101", "resnet50.h5"),
    ],
)
def test_weights_of_another_backbone_are_refused(weights: Path, backbone: str, name: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.weights: expected weights of {backbone}[.,].*Received: .*{name}"):
        build_classifier(tiny(backbone=backbone, weights=str(weights / name)), 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"hello", "no HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", r"a damaged HDF5 file \(.*Copy it again"),
        (b"\x93NUMPY\x01", "a NumPy array, not a model"),
    ],
)
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".npz"])
def test_a_file_without_weights(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    if content == b"hello" and suffix == ".npz":
        said = "NumPy arrays"
    with pytest.raises(ModelError, match=said):
        build_classifier(tiny(weights=str(tmp_path / f"x{suffix}")), 2)


@pytest.mark.parametrize("name", ["thin.keras", "saved"])
def test_a_whole_model_as_weights_is_sent_to_the_right_key(weights: Path, tmp_path: Path, name: str) -> None:
    path = weights / name
    if name == "saved":
        path = tmp_path / name
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a whole model: use model\.path for it"):
        build_classifier(tiny(weights=str(path)), 2)
    with pytest.raises(ModelError, match=r"Received: .*, a folder\."):
        build_classifier(tiny(weights=str(tmp_path)), 2)


@pytest.mark.parametrize("name", ["resnet20.weights.h5", "resnet20.h5"])
def test_weights_of_another_network_are_one_sentence_with_three_layers(
    weights: Path, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Of layers that have the same names and other shapes; Keras prints the weights themselves."""
    with pytest.raises(ModelError) as caught:
        build_classifier(tiny(backbone="resnet18", weights=str(weights / name)), 2)
    said = str(caught.value)
    assert "weights of another network: it" in said
    assert "\n" not in said
    assert len(said) < 500
    assert re.search(r"such as \w+, \w+, \w+ and \d+ more\. Name the file of resnet18", said)
    assert not [one for one in recwarn if "Skipping" in str(one.message)]


def test_weights_of_keras_3_under_another_name_are_told_by_their_content(weights: Path, tmp_path: Path) -> None:
    shutil.copy(weights / "resnet20.weights.h5", tmp_path / "mine.h5")
    shutil.copy(weights / "resnet20.h5", tmp_path / "mine.weights.h5")
    with pytest.raises(ModelError, match=r"Rename it to mine\.weights\.h5"):
        build_classifier(tiny(weights=str(tmp_path / "mine.h5")), 2)
    build_classifier(tiny(weights=str(tmp_path / "mine.weights.h5")), 2)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which does not exist"):
        build_classifier(tiny(weights=str(tmp_path / "x.weights.h5")), 2)


def test_imagenet_weights_exist_for_published_backbones_only() -> None:
    with pytest.raises(ModelError, match="ImageNet weights exist for ResNet: resnet50, "):
        build_classifier(tiny(weights="imagenet"), 2)
