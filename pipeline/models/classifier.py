"""Classifiers: a backbone from keras.applications or from this package's blocks, with a new or its published head.

The model is one flat graph of named layers (the backbone is not nested), so that later stages can name its layers. It
takes float32 pixels *after* preprocessing and ends with softmax, as keras.applications' models do.
"""

from dataclasses import dataclass
from typing import Any

import keras

from export.errors import ModelError
from export.preprocessing import PreprocessingSpec
from pipeline.models.preprocessing import preprocessing_of
from pipeline.models.resnet import resnet, resnet20
from pipeline.models.weights import load_weights
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.model_rules import check_published_head
from pipeline.recipe.schema import Model


@dataclass(frozen=True)
class BuiltClassifier:
    """A new classifier, its backbone and its preprocessing.

    Attributes:
        model: float32 (N, height, width, 3) in, softmax probabilities (N, classes) out.
        backbone: shares its layers with ``model``.
        preprocessing: applied to pixels before ``model``.
        head_input: name of the layer whose output (N, features) the head is trained on. Defaults to "": no new head.
    """

    model: keras.Model
    backbone: keras.Model
    preprocessing: PreprocessingSpec
    head_input: str = ""


def build_classifier(config: Model, classes: int) -> BuiltClassifier:
    """Build the backbone, load its weights if the recipe names some, and add a head.

    Raises:
        ModelError: the weights file is missing or belongs to another backbone, or the head does not fit.
        DownloadError: ImageNet weights that are neither cached nor can be downloaded.
    """
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
    return BuiltClassifier(keras.Model(backbone.input, x, name=config.backbone), backbone, spec, head_input)


def build_backbone(name: str, input_size: int, padding: str = "same") -> keras.Model:
    """Build a feature extractor without pretrained weights: float32 (N, size, size, 3) in, a feature map out."""
    entry = BACKBONES[name]
    if entry.application is not None:
        return _application(entry.application, input_size, include_top=False)
    if entry.layers == 20:
        return resnet20(input_size)
    return resnet(entry.layers, input_size, "valid" if padding == "valid" else "same")


def _published(config: Model, classes: int, spec: PreprocessingSpec) -> BuiltClassifier:
    check_published_head(config, classes)
    application = BACKBONES[config.backbone].application
    assert application is not None, "`check_model` refuses it"
    model = _application(application, config.input_size, include_top=True, classes=classes)
    load_weights(model, config, top=True)
    return BuiltClassifier(model, model, spec)


def _application(name: str, size: int, **options: Any) -> keras.Model:
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), **options)


def _pool(x: Any, config: Model) -> Any:
    layers = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
    if config.pooling in layers:
        return layers[config.pooling](name="head_pool")(x)
    if config.pooling == "avg2x2":
        if min(x.shape[1:3]) < 2:
            raise ModelError(
                f"model.pooling: expected a feature map of at least 2x2 for avg2x2. Received: "
                f"{x.shape[1]}x{x.shape[2]} of {config.backbone} at model.input_size {config.input_size}. "
                "Use a larger input, or pooling avg."
            )
        x = keras.layers.AveragePooling2D((2, 2), name="head_pool")(x)
    return keras.layers.Flatten(name="head_flatten")(x)
