"""Small Keras 3 classifiers, as strangers bring them: some layers in front, a body, an end."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from PIL import Image

SIZE = (16, 20)


def classifier(end, first=(layers.Rescaling,), shape=(*SIZE, 3), dtype=None, batch=None, into=lambda x: x):
    """A classifier of random weights whose answers differ from picture to picture.

    Args:
        end: takes the features (N, 63), gives the output.
        first: layers on the pixels; a Rescaling to -1..1 by default.
        shape: of the input, without the batch.
        dtype: of the input.
        batch: how many at once; None for any.
        into: makes an NHWC picture of what comes out of `first`.
    """
    keras.utils.set_random_seed(7)
    x = inputs = keras.Input(shape, batch_size=batch, dtype=dtype, name="picture")
    for layer in first:
        x = layers.Rescaling(1 / 127.5, -1, name="to_unit")(x) if layer is layers.Rescaling else layer(x)
    x = layers.Conv2D(9, 3, strides=5, activation="relu", name="conv")(into(x))
    return keras.Model(inputs, end(layers.Flatten(name="features")(x)), name="brought")


def dense(units, activation=None, stddev=1.0, name="head"):
    """A Dense whose answers are spread."""
    spread = keras.initializers.RandomNormal(stddev=stddev)
    return layers.Dense(units, activation=activation, kernel_initializer=spread, name=name)


def pillow_grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, height, width, 1), by Pillow."""
    return np.stack([np.asarray(Image.fromarray(picture).convert("L")) for picture in pixels])[..., None]


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
