"""Keras ResNets: those of keras.applications and a from-scratch ResNet-20, with a new classification head.

The model is one flat graph of named layers (the backbone is not nested), so that every later table can speak of its
layers. It takes float32 pixels *after* preprocessing and ends with softmax, as keras.applications' models do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.preprocessing import PreprocessingSpec
from pipeline.config import IMAGENET
from pipeline.errors import ModelError
from pipeline.own_preprocessing import own_preprocessing
from pipeline.recipe import Model, Preprocessing

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """How to build a feature extractor, and the preprocessing its published weights were trained with."""

    preprocessing: str
    application: str | None = None  # name in keras.applications; None: our own ResNet-20


BACKBONES = {
    "resnet20": Backbone("unit"),
    "resnet50": Backbone("caffe", "ResNet50"),
    "resnet101": Backbone("caffe", "ResNet101"),
    "resnet152": Backbone("caffe", "ResNet152"),
    "resnet50v2": Backbone("tf", "ResNet50V2"),
    "resnet101v2": Backbone("tf", "ResNet101V2"),
    "resnet152v2": Backbone("tf", "ResNet152V2"),
}


@dataclass(frozen=True)
class Built:
    """A classifier and what belongs to it."""

    model: keras.Model  # float32 NHWC in, softmax probabilities out
    backbone: keras.Model  # shares the layers of ``model``
    preprocessing: PreprocessingSpec


def build_classifier(config: Model, classes: int) -> Built:
    """Build the backbone, load its weights if the recipe names some, put a new head on it.

    Raises:
        ModelError: the weights file is missing or belongs to another backbone.
    """
    import keras

    spec = preprocessing_of(config)
    backbone = build_backbone(config.backbone, config.input_size)
    if config.weights == IMAGENET:
        _load_imagenet_weights(backbone, config.backbone)
    elif config.weights is not None:
        _load_backbone_weights(backbone, Path(config.weights), config.backbone)
    x = backbone.output
    if config.pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    elif config.pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(name="head_pool")(x)
    else:
        x = keras.layers.Flatten(name="head_flatten")(x)
    for i, units in enumerate(config.dense, 1):
        x = keras.layers.Dense(units, activation="relu", name=f"head_dense{i}")(x)
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    x = keras.layers.Dense(classes, activation="softmax", name="predictions")(x)
    return Built(keras.Model(backbone.input, x, name=config.backbone), backbone, spec)


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


def build_backbone(name: str, input_size: int) -> keras.Model:
    """A feature extractor without weights: float32 (N, size, size, 3) in, a feature map out."""
    import keras

    entry = BACKBONES[name]
    if entry.application is None:
        return resnet20(input_size)
    build = getattr(keras.applications, entry.application)
    return build(include_top=False, weights=None, input_shape=(input_size, input_size, 3))


def resnet20(input_size: int, width: int = 16) -> keras.Model:
    """ResNet-20 for small images, without its head.

    Three stages of three basic blocks with ``width``, 2x and 4x filters; identity blocks, and a convolutional block
    with stride 2 at the start of the second and third stage. He et al., Deep Residual Learning (2015), section 4.2,
    with projection shortcuts (option B).

    Args:
        input_size: height and width in pixels.
        width: filters of the first stage.

    Returns:
        float32 (N, size, size, 3) in; (N, size/4, size/4, 4*width) out.
    """
    import keras

    inputs = keras.Input((input_size, input_size, 3), name="pixels")
    x = _conv_bn(inputs, width, 3, 1, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage in range(3):
        filters = width * 2**stage
        for block in range(3):
            name = f"stage{stage + 1}_block{block + 1}"
            if stage > 0 and block == 0:
                x = convolutional_block(x, filters, 2, name)
            else:
                x = identity_block(x, filters, name)
    return keras.Model(inputs, x, name="resnet20")


def identity_block(x: Any, filters: int, name: str) -> Any:
    """Two 3x3 convolutions and the input added to them."""
    return _add(_main_branch(x, filters, 1, name), x, name)


def convolutional_block(x: Any, filters: int, stride: int, name: str) -> Any:
    """Two 3x3 convolutions, the first with a stride, and a 1x1 convolution of the input added to them."""
    return _add(_main_branch(x, filters, stride, name), _conv_bn(x, filters, 1, stride, f"{name}_shortcut"), name)


def _main_branch(x: Any, filters: int, stride: int, name: str) -> Any:
    import keras

    y = _conv_bn(x, filters, 3, stride, f"{name}_1")
    y = keras.layers.ReLU(name=f"{name}_1_relu")(y)
    return _conv_bn(y, filters, 3, 1, f"{name}_2")


def _add(main: Any, skip: Any, name: str) -> Any:
    import keras

    return keras.layers.ReLU(name=f"{name}_out")(keras.layers.Add(name=f"{name}_add")([main, skip]))


def _conv_bn(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
    import keras

    x = keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    # Keras' default momentum of 0.99 leaves the statistics near their start values in a short training.
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _load_imagenet_weights(backbone: keras.Model, name: str) -> None:
    import keras

    application = BACKBONES[name].application
    if application is None:
        published = ", ".join(n for n, b in BACKBONES.items() if b.application)
        raise ModelError(f"model.weights: expected a file, because ImageNet weights exist for {published} only.")
    build = getattr(keras.applications, application)
    try:
        pretrained = build(include_top=False, weights="imagenet", input_shape=backbone.input_shape[1:])
    except Exception as error:  # urllib, hash and disk errors
        raise ModelError(
            f"model.weights: expected to download the ImageNet weights of {name}. Received: {error}. "
            "Without a network, bring the file and name it: --set model.weights=/path/to/weights.h5"
        ) from error
    backbone.set_weights(pretrained.get_weights())


def _load_backbone_weights(backbone: keras.Model, path: Path, name: str) -> None:
    if not path.is_file():
        raise ModelError(f"model.weights: expected a file with {name} weights. Received: {path}, which does not exist.")
    try:
        if path.name.endswith(".weights.h5"):
            backbone.load_weights(path)
            return
        # A file of Keras 1 or 2, by layer name: Keras skips layers that the file lacks without a word.
        missing = [layer.name for layer in backbone.layers if layer.weights and layer.name not in _layer_names(path)]
        if not missing:
            backbone.load_weights(path, by_name=True, skip_mismatch=False)
    except Exception as error:  # h5py and Keras raise many types on a wrong file
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, which does not fit: {error}"
        ) from error
    if missing:
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, which lacks {len(missing)} of its layers, "
            f"such as {', '.join(missing[:3])}."
        )


def _layer_names(path: Path) -> set[str]:
    import h5py

    with h5py.File(path, "r") as file:
        return set(file.get("model_weights", file))
