"""Classifiers: a backbone of keras.applications or written out from blocks, with a new head or its published one.

The model is one flat graph of named layers (the backbone is not nested), so that every later table can speak of its
layers. It takes float32 pixels *after* preprocessing and ends with softmax, as keras.applications' models do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.preprocessing import PreprocessingSpec
from pipeline.blocks import resnet, resnet20
from pipeline.config import IMAGENET
from pipeline.download import fetch, imagenet_weights
from pipeline.errors import ModelError
from pipeline.model_guards import check_weights_file
from pipeline.own_preprocessing import own_preprocessing
from pipeline.recipe import Model, Preprocessing

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """How to build a feature extractor, and the preprocessing its published weights were trained with."""

    preprocessing: str
    application: str | None = None  # name in keras.applications; None: written out in pipeline.blocks
    layers: int = 0


BACKBONES = {
    "resnet18": Backbone("unit", layers=18),
    "resnet20": Backbone("unit", layers=20),
    "resnet34": Backbone("unit", layers=34),
    "resnet50-blocks": Backbone("unit", layers=50),
    "resnet50": Backbone("caffe", "ResNet50"),
    "resnet101": Backbone("caffe", "ResNet101"),
    "resnet152": Backbone("caffe", "ResNet152"),
    "resnet50v2": Backbone("tf", "ResNet50V2"),
    "resnet101v2": Backbone("tf", "ResNet101V2"),
    "resnet152v2": Backbone("tf", "ResNet152V2"),
}
PUBLISHED_CLASSES = 1000


@dataclass(frozen=True)
class Built:
    """A classifier and what belongs to it."""

    model: keras.Model  # float32 NHWC in, softmax probabilities out
    backbone: keras.Model  # shares the layers of ``model``
    preprocessing: PreprocessingSpec
    head_input: str = ""  # the layer whose output the head learns from, (N, features)


def build_classifier(config: Model, classes: int) -> Built:
    """Build the backbone, load its weights if the recipe names some, put a head on it.

    Raises:
        ModelError: the weights file is missing or belongs to another backbone, the head does not fit.
        DownloadError: ImageNet weights that are not here and cannot be fetched.
    """
    import keras

    spec = preprocessing_of(config)
    if config.head == "published":
        return _published(config, classes, spec)
    backbone = build_backbone(config.backbone, config.input_size, config.padding)
    load_weights(backbone, config)
    x = _pool(backbone.output, config)
    head_input = "head_pool" if config.pooling in ("avg", "max") else "head_flatten"
    for i, units in enumerate(config.dense, 1):
        x = keras.layers.Dense(units, activation="relu", name=f"head_dense{i}")(x)
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    x = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return Built(keras.Model(backbone.input, x, name=config.backbone), backbone, spec, head_input)


def build_backbone(name: str, input_size: int, padding: str = "same") -> keras.Model:
    """A feature extractor without weights: float32 (N, size, size, 3) in, a feature map out."""
    import keras

    entry = BACKBONES[name]
    if entry.application is not None:
        build = getattr(keras.applications, entry.application)
        return build(include_top=False, weights=None, input_shape=(input_size, input_size, 3))
    if entry.layers == 20:
        return resnet20(input_size)
    return resnet(entry.layers, input_size, "valid" if padding == "valid" else "same")


def preprocessing_of(config: Model) -> PreprocessingSpec:
    """The preprocessing that the recipe names, or that belongs to its backbone.

    Raises:
        ModelError: a model file is deployed and the recipe leaves its preprocessing open.
    """
    if isinstance(config.preprocessing, Preprocessing):
        return own_preprocessing(config.preprocessing)
    if config.preprocessing != "auto":
        return PreprocessingSpec.from_mode(config.preprocessing)
    if config.path is not None:
        raise ModelError(
            "model.preprocessing: expected caffe, tf, torch, unit or none, because a model file does not say how its "
            "training images were prepared. Received: auto. Use 'none' if the model normalises inside (a Rescaling "
            "layer), 'unit' for x/255, 'caffe' for keras.applications' ResNet50, 'tf' for its V2 models."
        )
    return PreprocessingSpec.from_mode(BACKBONES[config.backbone].preprocessing)


def load_weights(model: keras.Model, config: Model, top: bool = False) -> None:
    """Load what ``model.weights`` names into a backbone, or (``top``) into a whole classifier.

    Raises:
        ModelError: no such file, or weights of another network.
        DownloadError: ImageNet weights that are not here and cannot be fetched.
    """
    if config.weights is None:
        return
    if config.weights != IMAGENET:
        _load_file(model, Path(config.weights), config.backbone)
        return
    if BACKBONES[config.backbone].application is None:
        published = ", ".join(n for n, b in BACKBONES.items() if b.application)
        raise ModelError(
            f"model.weights: expected a file. Received: {IMAGENET}, but ImageNet weights exist for "
            f"{published} only. Name one of these as model.backbone, or a file as model.weights."
        )
    path = fetch(imagenet_weights(config.backbone, top), "--set model.weights=/path/to/weights.h5")
    model.load_weights(path)  # in the order of layers, as keras.applications does with these files


def _published(config: Model, classes: int, spec: PreprocessingSpec) -> Built:
    import keras

    application = BACKBONES[config.backbone].application
    if application is None or config.weights is None:
        raise ModelError(
            "model.head: published needs a backbone of keras.applications and its weights. Received: "
            f"model.backbone {config.backbone}, model.weights {config.weights}. Set model.weights to imagenet or to "
            "a file that holds the top too."
        )
    if classes != PUBLISHED_CLASSES:
        raise ModelError(
            f"model.head: published has {PUBLISHED_CLASSES} outputs. Received: {classes} classes. "
            "Name all of them in data.classes (a file, or imagenet), or use model.head=new."
        )
    build = getattr(keras.applications, application)
    size = config.input_size
    model = build(include_top=True, weights=None, input_shape=(size, size, 3), classes=classes)
    load_weights(model, config, top=True)
    return Built(model, model, spec)


def _pool(x: Any, config: Model) -> Any:
    import keras

    if config.pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    if config.pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name="head_pool")(x)
    if config.pooling == "avg2x2":
        if min(x.shape[1:3]) < 2:
            raise ModelError(
                f"model.pooling: expected a feature map of at least 2x2 for avg2x2. Received: "
                f"{x.shape[1]}x{x.shape[2]} of {config.backbone} at model.input_size {config.input_size}. "
                "Use a larger input, or pooling avg."
            )
        x = keras.layers.AveragePooling2D((2, 2), name="head_pool")(x)
    return keras.layers.Flatten(name="head_flatten")(x)


def _load_file(model: keras.Model, path: Path, name: str) -> None:
    if not path.is_file():
        raise ModelError(f"model.weights: expected a file with {name} weights. Received: {path}, which does not exist.")
    try:
        check_weights_file(path)
        if path.name.endswith(".weights.h5"):
            model.load_weights(path)
            return
        # A file of Keras 1 or 2, by layer name: Keras skips layers that the file lacks without a word.
        held = _layer_names(path)
        missing = [layer.name for layer in model.layers if layer.weights and layer.name not in held]
        renamed = {layer: classic_name(layer.name) for layer in model.layers if layer.weights}
        if missing and all(old in held for old in renamed.values()):
            _load_renamed(renamed, path)
            return
        if not missing:
            model.load_weights(path, by_name=True, skip_mismatch=False)
    except Exception as error:  # h5py and Keras raise many types on a wrong file
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, which does not fit: {error}"
        ) from error
    if missing:
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, which lacks {len(missing)} of its layers, "
            f"such as {', '.join(missing[:3])}."
        )


def classic_name(layer: str) -> str:
    """The name that Keras 2.0 to 2.2 gave a layer of keras.applications' ResNet50 (``res2a_branch2a``)."""
    fixed = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1", "predictions": "fc1000"}
    match = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", layer)
    if match is None:
        return fixed.get(layer, layer)
    stage, block, part, kind = match.groups()
    branch = "branch1" if part == "0" else "branch2" + "abc"[int(part) - 1]
    return f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_{branch}"


def _load_renamed(renamed: dict[Any, str], path: Path) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        for layer, old in renamed.items():
            names = [n.decode() if isinstance(n, bytes) else n for n in root[old].attrs["weight_names"]]
            layer.set_weights([root[old][name][()] for name in names])


def _layer_names(path: Path) -> set[str]:
    import h5py

    with h5py.File(path, "r") as file:
        return set(file.get("model_weights", file))
