"""Models as people bring them: saved by Keras 2 in its several formats, and SavedModels. Weights are not fresh."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import numpy as np
import tensorflow as tf
import tf_keras as k

SIZE = 32


def backbone():
    inputs = k.Input((SIZE, SIZE, 3))
    x = k.layers.Conv2D(8, 3, strides=2, name="conv1")(inputs)
    x = k.layers.BatchNormalization(name="bn1")(x)
    x = k.layers.ReLU(name="relu1")(x)
    y = k.layers.Conv2D(8, 3, padding="same", name="conv2")(x)
    y = k.layers.BatchNormalization(name="bn2")(y)
    return k.Model(inputs, k.layers.ReLU(name="out")(k.layers.Add(name="add")([x, y])), name="backbone")


def randomize(model):
    random = np.random.default_rng(0)
    model.set_weights(
        [
            random.uniform(0.2, 1, w.shape) if "variance" in v.name else random.normal(0, 0.3, w.shape)
            for v, w in zip(model.weights, model.get_weights())
        ]
    )
    return model


def nested(trainable=False):
    """What most transfer learning tutorials of Keras 2 end with: a frozen backbone in a Sequential, compiled."""
    base = backbone()
    base.trainable = trainable
    head = [k.layers.GlobalAveragePooling2D(), k.layers.Dropout(0.2), k.layers.Dense(4, activation="softmax")]
    model = randomize(k.Sequential([base, *head], name="nested"))
    model.compile(k.optimizers.legacy.Adam(learning_rate=1e-3), "categorical_crossentropy")
    return model


def called_in_training():
    """The same with a backbone that goes on using the statistics of the batch at hand, and drops out for ever."""
    inputs = k.Input((SIZE, SIZE, 3), name="pictures")
    x = k.layers.GlobalAveragePooling2D(name="pool")(backbone()(inputs, training=True))
    x = k.layers.Dropout(0.2, name="monte_carlo")(x, training=True)
    model = randomize(k.Model(inputs, k.layers.Dense(4, activation="softmax", name="scores")(x), name="in_training"))
    model.compile(k.optimizers.legacy.Adam(learning_rate=1e-3), "categorical_crossentropy")
    return model


def binary_with_operations():
    """A dictionary of one uint8 input, caffe preprocessing as TensorFlow functions, one sigmoid unit."""
    inputs = k.Input((SIZE, SIZE, 3), name="image", dtype="uint8")
    x = k.applications.resnet.preprocess_input(tf.cast(inputs, tf.float32))
    x = backbone()(x / 2.0, training=False)
    x = k.layers.Dense(1, name="score")(k.layers.Flatten()(x))
    return randomize(k.Model({"image": inputs}, k.layers.Activation("sigmoid")(x), name="binary"))


def augmented():
    """Augmentation, Rescaling and Normalization inside; tf.nn.softmax at the end."""
    inputs = k.Input((SIZE, SIZE, 3))
    x = k.layers.RandomRotation(0.2)(k.layers.RandomFlip()(inputs))
    x = k.layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.1, 0.2, 0.3])(k.layers.Rescaling(1 / 255)(x))
    x = k.layers.Dense(5)(k.layers.GlobalAveragePooling2D()(backbone()(x)))
    return randomize(k.Model(inputs, tf.nn.softmax(x), name="augmented"))


class Subclassed(k.Model):
    def __init__(self):
        super().__init__()
        self.base, self.head = backbone(), k.layers.Dense(3, activation="softmax")

    def call(self, inputs, training=None):
        return self.head(tf.reduce_mean(self.base(inputs, training=training), [1, 2]))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, SIZE, SIZE, 3), np.float32))
    return randomize(model)


def images(count=3, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def save(model, path: Path):
    """Save, and the answers of Keras 2 on ``images()`` as (N, classes) probabilities."""
    model.save(str(path))
    pixels = images()
    pixels = pixels if model.name == "binary" else pixels.astype(np.float32)
    return model({"image": pixels} if model.name == "binary" else pixels, training=False).numpy()


def rename_in_training_config(path: Path, old: str, new: str) -> None:
    with h5py.File(path, "a") as file:
        text = file.attrs["training_config"]
        assert old in text
        file.attrs["training_config"] = text.replace(old, new)
