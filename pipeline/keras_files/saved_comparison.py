"""Comparison of a SavedModel's signature with the Keras model that was built from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import ModelError, cause
from export.from_keras.probes import probe_pixels
from export.metrics.difference import relative_difference
from pipeline.keras_files.graph_rewriting import has_half

if TYPE_CHECKING:
    import keras

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # relative to the largest output value
COUNT = 3  # images, for batches of 1, 2 and 3
ANY_SIZE = 224  # pixels of a side, for a signature without a fixed size
RANGES = ((0.0, 255.0), (0.0, 1.0))


@dataclass(frozen=True)
class Predictions:
    """Predictions of a signature for images, each in a batch of its own; ``tolerance`` is relative to the largest."""

    images: np.ndarray
    values: np.ndarray
    tolerance: float


def signature_predictions(signature: Any, name: str, spec: Any, where: str) -> list[Predictions]:
    """Run a signature on probe images, and check that each prediction depends on its image alone.

    Args:
        signature: signature with one input and one output, from ``tf.saved_model.load``.
        name: name of its input.
        spec: ``tf.TensorSpec`` of its input.
        where: file and signature, for messages.

    Raises:
        ModelError: it does not run, or a prediction depends on chance or on the other images of the batch.
    """
    import tensorflow as tf

    tolerance = HALF_TOLERANCE if has_half(signature.graph.as_graph_def()) else TOLERANCE
    fixed = spec.shape[0]

    def run(images: np.ndarray) -> np.ndarray:
        try:
            result = signature(**{name: tf.constant(images, spec.dtype)})
        except tf.errors.OpError as error:
            raise ModelError(
                f"Expected a SavedModel that runs on images. Received: {where}, which fails on {images.shape}: "
                f"{cause(error)}"
            ) from error
        return np.asarray(next(iter(result.values())), np.float32)

    predictions = []
    for images in _probes(spec):
        batches = [images] if fixed is None else [np.repeat(image[None], fixed, axis=0) for image in images]
        outputs = [run(batch) for batch in batches]
        if any(relative_difference(output, run(batch)) > tolerance for output, batch in zip(outputs, batches)):
            raise ModelError(
                f"Expected one prediction for an image. Received: {where}, which predicts differently for the same "
                "images each time: its graph has a dropout or noise of training in it. Export the model with "
                "training=False."
            )
        if fixed is None:
            alone = np.concatenate([run(image[None]) for image in images])
            together = outputs[0]
        else:
            together = run(np.resize(images, (fixed, *images.shape[1:])))[:COUNT]
            alone = np.concatenate([output[:1] for output in outputs])
        if relative_difference(alone[: len(together)], together) > tolerance:
            raise ModelError(
                f"Expected a prediction that depends on its image alone. Received: {where}, where it depends on the "
                "other images of the batch, as with a BatchNormalization in training mode. Export the model with "
                "training=False."
            )
        predictions.append(Predictions(images, alone, tolerance))
    return predictions


def describe_difference(model: keras.Model, expected: list[Predictions]) -> str:
    """Describe how a model's predictions differ from a signature's at several batch sizes; empty if they do not."""
    for known in expected:
        for size in (1, 2, COUNT):
            parts = [known.images[k : k + size] for k in range(0, len(known.values), size)]
            try:
                values = np.concatenate([np.asarray(model(part, training=False)) for part in parts])
            except Exception as error:  # Keras and TensorFlow raise many types on shapes that do not fit
                return f"it fails for a batch of {size}: {cause(error)}"
            off = relative_difference(known.values, values)
            if not off <= known.tolerance:
                return f"predictions for batches of {size} are off by {off:.1e} of the largest"
    return ""


def _probes(spec: Any) -> list[np.ndarray]:
    """Make images in the shape and dtype of an input: from 0 to 255, and floats from 0 to 1 too."""
    shape = [n or ANY_SIZE for n in spec.shape[1:3]] + [spec.shape[3] or 3]
    pixels = probe_pixels(shape[0], shape[1], count=COUNT)
    if shape[2] != pixels.shape[3]:  # one channel, or channels first, which a later check reports
        pixels = np.resize(pixels, (COUNT, *shape))
    if spec.dtype.is_integer:
        return [pixels.astype(spec.dtype.as_numpy_dtype)]
    return [(low + pixels / 255.0 * (high - low)).astype(np.float32) for low, high in RANGES]
