"""Runs a SavedModel's signature, and holds the model that is made of its graph against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import ModelError, cause
from export.from_keras.check import probe_pixels
from export.metrics.distances import relative_difference

if TYPE_CHECKING:
    import keras

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # relative to the largest answer
COUNT = 3  # pictures, so batches of 1, 2 and 3
ANY_SIZE = 224  # pixels, for a signature that takes any
RANGES = ((0.0, 255.0), (0.0, 1.0))


@dataclass(frozen=True)
class Answers:
    """What a signature says to pictures, each for itself."""

    pictures: np.ndarray
    answers: np.ndarray
    tolerance: float


def signature_answers(signature: Any, name: str, spec: Any, where: str, half: bool) -> list[Answers]:
    """A signature's answers to probe pictures, after they were found to depend on nothing but the picture.

    Args:
        signature: of one input and one output, as ``tf.saved_model.load`` gives it.
        name: of its input.
        spec: of its input.
        where: file and signature, for messages.
        half: it computes in half precision.

    Raises:
        ModelError: it does not run, or an answer depends on chance or on the other pictures of the batch.
    """
    import tensorflow as tf

    tolerance = HALF_TOLERANCE if half else TOLERANCE
    fixed = spec.shape[0]

    def run(pictures: np.ndarray) -> np.ndarray:
        try:
            result = signature(**{name: tf.constant(pictures, spec.dtype)})
        except tf.errors.OpError as error:
            raise ModelError(
                f"Expected a SavedModel that runs on pictures. Received: {where}, which fails on {pictures.shape}: "
                f"{cause(error)}"
            ) from error
        return np.asarray(next(iter(result.values())), np.float32)

    found = []
    for pictures in _pictures(spec):
        batches = [pictures] if fixed is None else [np.repeat(one[None], fixed, axis=0) for one in pictures]
        answers = [run(batch) for batch in batches]
        if any(relative_difference(answer, run(batch)) > tolerance for answer, batch in zip(answers, batches)):
            raise ModelError(
                f"Expected one answer for a picture. Received: {where}, which answers the same pictures otherwise each "
                "time: its graph has a dropout or noise of training in it. Export the model with training=False."
            )
        if fixed is None:
            alone = np.concatenate([run(picture[None]) for picture in pictures])
            together = answers[0]
        elif fixed > 1:
            together = run(np.resize(pictures, (fixed, *pictures.shape[1:])))
            alone = np.concatenate([answer[:1] for answer in answers])
            together, alone = together[:COUNT], alone[: len(together)]
        else:
            together = alone = np.concatenate([answer[:1] for answer in answers])
        if relative_difference(alone, together) > tolerance:
            raise ModelError(
                f"Expected an answer that depends on its picture alone. Received: {where}, where it depends on the "
                "other pictures of the batch, as with a BatchNormalization in training mode. Export the model with "
                "training=False."
            )
        found.append(Answers(pictures, alone, tolerance))
    return found


def difference(model: keras.Model, expected: list[Answers]) -> str:
    """How a model's answers differ from a signature's, at several batch sizes; empty where they do not."""
    for known in expected:
        for size in (1, 2, COUNT):
            parts = [known.pictures[k : k + size] for k in range(0, len(known.answers), size)]
            try:
                answers = np.concatenate([np.asarray(model(part, training=False)) for part in parts])
            except Exception as error:  # Keras and TensorFlow raise many types on shapes that do not fit
                return f"it fails for a batch of {size}: {cause(error)}"
            off = relative_difference(known.answers, answers)
            if not off <= known.tolerance:
                return f"answers for batches of {size} are off by {off:.1e} of the largest"
    return ""


def _pictures(spec: Any) -> list[np.ndarray]:
    """Pictures in the shape and type of an input: as they are and from 0 to 1, of integers only as they are."""
    shape = [n or ANY_SIZE for n in spec.shape[1:3]] + [spec.shape[3] or 3]
    pixels = probe_pixels(shape[0], shape[1], count=COUNT)
    if shape[2] != pixels.shape[3]:  # of one channel, or channels first: what is said of that comes later
        pixels = np.resize(pixels, (COUNT, *shape))
    if spec.dtype.is_integer:
        return [pixels.astype(spec.dtype.as_numpy_dtype)]
    return [(low + pixels / 255.0 * (high - low)).astype(np.float32) for low, high in RANGES]
