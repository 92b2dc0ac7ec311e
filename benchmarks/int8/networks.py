"""The networks that are quantized: drawn or trained here, exported, and kept in a folder with their images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from export.errors import DataError
from export.files import replacing_folder
from export.records import read_record
from export.words import count
from pipeline.artifacts.archives import read_arrays
from pipeline.artifacts.files import write_json
from pipeline.data.dataset import ImageSet, Pixels, load_image_set
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import Sample
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.schema import Data, Model, Splits

if TYPE_CHECKING:
    from pipeline.models.classifier import BuiltClassifier

log = logging.getLogger(__name__)

Weights = Literal["drawn", "trained"]
SPLITS = Splits(train=0.5, validation=0.05, calibration=0.15, test=0.3)
FEWEST = 8  # images of each of the splits that a network reads
ONNX, IMAGES, CARD = "model.onnx", "images.npz", "network.json"
_BATCH = 32
_LEARNING_RATE = 1e-3
_MOMENTUM = 0.9  # of BatchNorm: with 0.99 its statistics lag behind the weights of a short training
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a network is, the record ``network.json``.

    Attributes:
        backbone: its name in a recipe.
        weights: "drawn": random weights with the statistics of a trained network, see `benchmarks.backbones.spread`;
            "trained": from random weights, on the images of the split train.
        input_size: height and width of the images.
        parameters: number of parameters.
        classes: names of the classes of the images.
        images: number of images of each split that were used: train, scales, held_out, test.
        epochs: number of passes over the training images; 0 for drawn weights.
        accuracy: of the Keras model on the test images.
        schema: version of this file's format.
    """

    backbone: str
    weights: Weights
    input_size: int
    parameters: int
    classes: tuple[str, ...]
    images: Mapping[str, int]
    epochs: int
    accuracy: float
    schema: int = 1


@dataclass(frozen=True)
class Images:
    """The images of a network.

    Attributes:
        scales: that give scales, uint8 (N, height, width, 3) RGB.
        held_out: that choose between graphs, uint8 as above.
        held_out_labels: int64 (N,).
        test: that judge the result and choose nothing, uint8 as above.
        test_labels: int64 (N,).
    """

    scales: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def read_network(folder: Path) -> Network:
    """Read the record of a network that `make_network` made.

    Raises:
        ProjectError: missing, damaged, or of another schema; with the file and the key.
    """
    return read_record(Network, folder / CARD, remedy="Delete that folder to make it again.", what="network")


def read_images(folder: Path) -> Images:
    """Read the images of a network that `make_network` made."""
    names = tuple(Images.__dataclass_fields__)
    return Images(**read_arrays(folder / IMAGES, names))


def load_photographs(data: Path) -> ImageSet:
    """Divide photographs into the splits.

    Args:
        data: a folder with a subfolder for each class.

    Raises:
        DataError: too few of them for one of the splits that a network reads.
    """
    images = load_image_set(Data(path=str(data), splits=SPLITS))
    few = {split: len(images.splits[split]) for split in ("train", "calibration", "test")}
    if min(few.values()) < FEWEST:
        raise DataError(
            f"--data: expected at least {count(FEWEST, 'photograph')} each for train, calibration and test. Received: "
            f"{data}, which gives {', '.join(f'{number} {split}' for split, number in few.items())}. Name a larger one."
        )
    return images


def make_network(
    folder: Path, backbone: str, weights: Weights, images: ImageSet, *, size: int, epochs: int, most: int
) -> Network:
    """Draw or train a network, export it, and write its folder; nothing is left behind if that fails.

    Args:
        folder: gets ``model.keras``, ``model.onnx``, ``images.npz`` and ``network.json``.
        backbone: its name.
        weights: "drawn" or "trained".
        images: from `load_photographs`.
        size: height and width of the input; raised to the smallest that the backbone takes.
        epochs: number of passes over the training images.
        most: largest number of calibration images, a quarter of which is held out, and half that of test images.

    Raises:
        ProjectError: the backbone cannot be exported.
    """
    import keras

    from benchmarks.backbones import spread
    from export.from_keras.convert import export_keras
    from pipeline.models.classifier import build_classifier

    size = max(size, BACKBONES[backbone].smallest)
    pixels = Pixels(DecodeSpec((size, size), "stretch"), 0)

    def decoded(split: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        return pixels.all(_mixed(images.splits[split])[:limit], f"  {split}")

    calibration, labels = decoded("calibration", most)
    held = max(1, len(labels) // 4)
    parts = Images(calibration[:-held], calibration[-held:], labels[-held:], *decoded("test", 2 * most))
    keras.utils.set_random_seed(_SEED)
    built = build_classifier(Model(backbone=backbone, input_size=size), len(images.classes))  # type: ignore[arg-type]
    train, train_labels = decoded("train", None if weights == "trained" else 64)
    if weights == "trained":
        _train(built, train, train_labels, epochs)
    else:
        spread(built.model, built.backbone, built.preprocessing.apply(train))
    answers = built.model.predict(built.preprocessing.apply(parts.test), batch_size=_BATCH, verbose=0)
    network = Network(
        backbone=backbone,
        weights=weights,
        input_size=size,
        parameters=int(built.model.count_params()),
        classes=images.classes,
        images={
            "train": len(train_labels) if weights == "trained" else 0,
            **{"scales": len(parts.scales), "held_out": held, "test": len(parts.test)},
        },
        epochs=epochs if weights == "trained" else 0,
        accuracy=float(np.mean(answers.argmax(axis=1) == parts.test_labels)),
    )
    with replacing_folder(folder) as made:
        built.model.save(made / "model.keras", include_optimizer=False)
        export_keras(built.model, made / ONNX, preprocessing=built.preprocessing, classes=images.classes)
        np.savez(made / IMAGES, **{name: getattr(parts, name) for name in Images.__dataclass_fields__})
        write_json(made / CARD, network)
    log.info("  %s, %s: accuracy %.1f %%", backbone, weights, 100 * network.accuracy)
    return network


def _mixed(samples: Sequence[Sample]) -> list[Sample]:
    """Return the images so that the first few are of all classes, in an order that does not change."""
    return [samples[i] for i in np.random.default_rng(_SEED).permutation(len(samples))]


def _train(built: BuiltClassifier, pixels: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    """Train all layers with Adam and a learning rate that falls along half a cosine wave."""
    import keras

    for layer in built.backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = _MOMENTUM
    steps = epochs * -(-len(labels) // _BATCH)
    rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
    built.model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    built.model.fit(
        built.preprocessing.apply(pixels), labels, batch_size=_BATCH, epochs=epochs, verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: log.info(
                    "  epoch %d/%d: loss %.3f, accuracy %.3f", epoch + 1, epochs, logs["loss"], logs["accuracy"]
                )
            )
        ],
    )  # fmt: skip
