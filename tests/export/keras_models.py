"""Small Keras ResNets with weights as a training leaves them: biases, means and variances that are not fresh."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers

CLASSES = ("cat", "dog", "owl", "emu", "yak")


def _conv_bn(x, filters, kernel, name, strides=1, relu=True):
    x = layers.Conv2D(filters, kernel, strides=strides, padding="same", name=f"{name}_conv")(x)
    x = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _stem(x, relu=True):
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = layers.Conv2D(8, 7, strides=2, name="conv1_conv")(x)
    if relu:
        x = layers.BatchNormalization(name="conv1_bn")(x)
        x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _block_v1(x, filters, name, strides, project):
    y = _conv_bn(x, filters, 1, f"{name}_1", strides)
    y = _conv_bn(y, filters, 3, f"{name}_2")
    y = _conv_bn(y, 2 * filters, 1, f"{name}_3", relu=False)
    skip = _conv_bn(x, 2 * filters, 1, f"{name}_0", strides, relu=False) if project else x
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([skip, y]))


def _block_v2(x, filters, name, strides, project):
    before = layers.BatchNormalization(name=f"{name}_preact_bn")(x)
    before = layers.ReLU(name=f"{name}_preact_relu")(before)
    if project:
        skip = layers.Conv2D(2 * filters, 1, strides=strides, name=f"{name}_0_conv")(before)
    else:
        skip = layers.MaxPooling2D(1, strides, name=f"{name}_0_pool")(x) if strides > 1 else x
    y = _conv_bn(before, filters, 1, f"{name}_1")
    y = _conv_bn(y, filters, 3, f"{name}_2", strides)
    y = layers.Conv2D(2 * filters, 1, name=f"{name}_3_conv")(y)
    return layers.Add(name=f"{name}_out")([skip, y])


def backbone(version=1, size=32):
    x = inputs = layers.Input((size, size, 3), name="pixels")
    x = _stem(x, relu=version == 1)
    block = _block_v1 if version == 1 else _block_v2
    x = block(x, 8, "conv2_block1", 1, True)
    x = block(x, 8, "conv2_block2", 1, False)
    x = block(x, 16, "conv3_block1", 2, True)
    x = block(x, 16, "conv3_block2", 1 if version == 1 else 2, False)
    if version == 2:
        x = layers.ReLU(name="post_relu")(layers.BatchNormalization(name="post_bn")(x))
    return keras.Model(inputs, x, name=f"resnet_v{version}")


def classifier(version=1, size=32, head="softmax", pooling="gap", nested=False, seed=0):
    """A ResNet of four blocks, two of them with a projection, and a head.

    head: "softmax" or "linear" (the Dense's activation), "activation" or "layer" (a softmax of its own).
    pooling: "gap", or "flatten" (average pooling and Flatten).
    nested: the backbone stays one layer, as in transfer learning.
    """
    base = backbone(version, size)
    inputs = layers.Input((size, size, 3), name="images_in") if nested else base.input
    x = base(inputs, training=False) if nested else base.output
    if pooling == "gap":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    else:
        x = layers.AveragePooling2D(2, name="avg_pool")(x)
        x = layers.Flatten(name="flatten")(x)
    activation = head if head in ("softmax", "linear") else None
    x = layers.Dense(len(CLASSES), activation=activation, name="predictions")(x)
    if head == "activation":
        x = layers.Activation("softmax", name="probabilities_out")(x)
    if head == "layer":
        x = layers.Softmax(name="probabilities_out")(x)
    model = keras.Model(inputs, x, name="classifier")
    randomize(model, seed)
    return model


def randomize(model, seed=0, gamma=(0.6, 1.2)):
    """Weights as after training: nothing is zero or one. Deep models need a small gamma, or their values explode."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        role = weight.path.rsplit("/", 1)[-1]
        if role == "kernel":
            value = random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif role == "moving_variance":
            value = random.uniform(0.5, 1.5, shape)
        elif role == "gamma":
            value = random.uniform(*gamma, shape)
        else:
            value = random.normal(0, 0.2, shape)
        weight.assign(value)


def images(count, size=32, seed=0):
    """uint8 (count, size, size, 3): coarse patches and noise, more like pictures than white noise is."""
    random = np.random.default_rng(seed)
    patch = max(size // 8, 1)
    coarse = random.integers(0, 256, (count, size // patch, size // patch, 3))
    smooth = coarse.repeat(patch, axis=1).repeat(patch, axis=2)
    return np.clip(smooth + random.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
