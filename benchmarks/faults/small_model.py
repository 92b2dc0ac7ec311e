"""A small classifier that has every part that a fault is planted into, exported by the project.

It has what a ResNet of a recipe may lack: an average pool with padding, a border before a MaxPool of negative values, a
layer that enlarges, two parallel residual blocks of one shape, and a convolution without a border behind a ReLU.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.faults.specimen import Specimen
from export.preprocessing import PreprocessingSpec
from export.records import to_json
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE
from pipeline.data.decode import DecodeSpec
from pipeline.models.model_card import ModelCard
from pipeline.terminal.console import start_tensorflow

if TYPE_CHECKING:
    import keras

SIDE = 32
CLASSES = ("ash", "beech", "cedar", "elm", "fir", "oak", "pine", "yew")


def build_specimen(folder: Path, seed: int = 1, images: int = 48) -> Specimen:
    """Write the artifacts of the small model, exported by the project: FP32, FP16, INT8 and Keras' logits.

    Args:
        folder: is filled.
        seed: of the weights and the images. Defaults to 1.
        images: number of test images. Defaults to 48.
    """
    from export.from_keras.convert import export_keras
    from pipeline.runners.keras import open_keras

    random = np.random.default_rng(seed)
    for stage in ("train", "export", "quantize", "verify"):
        (folder / stage).mkdir(parents=True)
    preprocessing = PreprocessingSpec.from_mode("caffe")
    card = ModelCard(CLASSES, preprocessing, DecodeSpec((SIDE, SIDE), "stretch"), "softmax")
    model = _small_model(random, preprocessing.apply(draw_images(random, 64)))
    model.save(folder / KERAS)
    write_json(folder / CARD, to_json(card))
    export_keras(
        model,
        folder / ONNX["fp32"],
        preprocessing=preprocessing,
        classes=card.classes,
        metadata={"recipe": "specimen", "decode": json.dumps(to_json(card.decode))},
        output=card.output,
    )
    specimen = Specimen(folder, draw_images(random, 32))
    specimen.remake()
    pixels = draw_images(random, 4 * images)
    with open_keras(folder / KERAS, card, (), len(pixels)) as runner:
        # Drawn weights leave more images undecided than a training does, and rounding alone would flip these.
        decided = np.argsort(-_margins(runner.infer(pixels).probabilities), kind="stable")[: 2 * images]
        pixels = pixels[random.permutation(decided)[:images]]
        logits = runner.infer(pixels).logits
        noise = runner.noise(pixels, float(np.abs(logits).max()))
    meta = {"model_sha256": sha256_file(folder / KERAS), **card.metadata(), "output": card.output}
    text = json.dumps(meta | {"noise": asdict(noise)}, sort_keys=True)
    np.savez(
        folder / REFERENCE,
        pixels=pixels,
        labels=logits.argmax(axis=1).astype(np.int64),
        logits=logits,
        meta=np.frombuffer(text.encode(), dtype=np.uint8),
    )
    return specimen


def _margins(probabilities: np.ndarray) -> np.ndarray:
    """Return how much the best class of each row leads, (N,)."""
    ordered = np.sort(probabilities, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def draw_images(random: np.random.Generator, count: int) -> np.ndarray:
    """Return coloured images with detail on several scales, uint8 (count, 32, 32, 3)."""
    tint = random.uniform(20, 235, (count, 1, 1, 3))
    coarse = random.normal(0, 35, (count, 4, 4, 3)).repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    fine = random.normal(0, 20, (count, SIDE, SIDE, 3))
    return np.asarray((tint + coarse + fine).clip(0, 255), np.uint8)


def _small_model(random: np.random.Generator, images: np.ndarray) -> keras.Model:
    start_tensorflow()
    import keras
    from keras import layers

    def normalised(x: keras.KerasTensor, name: str, filters: int, kernel: int = 3) -> keras.KerasTensor:
        x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
        return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)

    def block(x: keras.KerasTensor, name: str, filters: int) -> keras.KerasTensor:
        skip = x
        x = layers.ReLU(name=f"{name}_1_relu")(normalised(x, f"{name}_1", filters))
        x = layers.Add(name=f"{name}_add")([normalised(x, f"{name}_2", filters), skip])
        return layers.ReLU(name=f"{name}_out")(x)

    keras.utils.set_random_seed(int(random.integers(2**31)))
    pixels = layers.Input((SIDE, SIDE, 3), name="pixels")
    x = normalised(pixels, "stem", 16)
    x = layers.ZeroPadding2D(1, name="pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool")(x)  # of values that are mostly negative at some borders
    left = block(layers.ReLU(name="left_relu")(normalised(x, "left", 16, 1)), "left_block", 16)
    right = block(layers.ReLU(name="right_relu")(normalised(x, "right", 16, 1)), "right_block", 16)
    x = layers.Concatenate(name="branches")([left, right])
    x = layers.AveragePooling2D(3, 2, padding="same", name="average")(x)
    x = layers.ReLU(name="middle_relu")(normalised(x, "middle", 24))
    x = layers.UpSampling2D(2, interpolation="bilinear", name="enlarge")(x)
    x = block(x, "last_block1", 24)
    x = block(x, "last_block2", 24)
    x = layers.ReLU(name="tail_relu")(normalised(x, "tail", 24, 1))  # reads what INT8 may lower, as it has no border
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    outputs = layers.Dense(len(CLASSES), activation="softmax", name="predictions")(x)
    model = keras.Model(pixels, outputs, name="specimen")
    _spread(model, random, images)
    return model


def _spread(model: keras.Model, random: np.random.Generator, images: np.ndarray) -> None:
    """Draw shifts and scales, and statistics of the images, so that no part of the model is without effect."""
    import keras

    normalisations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalisations:
        layer.gamma.assign(random.uniform(0.6, 1.4, layer.gamma.shape))
        layer.beta.assign(random.normal(-0.3 if layer.name == "stem_bn" else 0.5, 0.3, layer.beta.shape))
        layer.momentum = 0.0  # one pass sets the statistics to those of the images
    model(images, training=True)
    for layer in normalisations:
        layer.momentum = 0.99
        # Statistics of a training are not those of any batch, and small ones make the epsilon count.
        layer.moving_variance.assign(layer.moving_variance * random.uniform(0.7, 1.3, layer.moving_variance.shape))
    head = model.get_layer("predictions")
    features = keras.Model(model.input, head.input).predict(images, batch_size=16, verbose=0).astype(np.float64)
    kernel = random.normal(size=head.kernel.shape)
    logits = features @ kernel
    scale = 3.0 / (logits.std(axis=0) + 1e-9)
    head.set_weights([(kernel * scale).astype(np.float32), (-logits.mean(axis=0) * scale).astype(np.float32)])
