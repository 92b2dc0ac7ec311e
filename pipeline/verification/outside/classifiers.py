"""The classifiers that `assert_parity` compares: ONNX files, Keras models and functions. NumPy alone is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from export.errors import DataError
from export.words import count
from pipeline.runners.base import split_batches
from pipeline.runners.foreign import (
    ForeignRunner,
    OnnxFile,
    are_probabilities,
    log_probabilities,
    log_softmax,
    read_onnx_file,
)
from pipeline.verification.checks.overflow import Extreme
from pipeline.verification.explain.exceeding import IMAGES as FEW
from pipeline.verification.explain.exceeding import find_extreme

if TYPE_CHECKING:
    import keras

Rows = Callable[[np.ndarray], Any]
Classifier = Union[str, Path, Rows, "keras.Model"]
Loaded = Union[OnnxFile, Rows, "keras.Model"]


class OpenClassifier:
    """A classifier that is ready to run.

    Args:
        predict: from images as the model takes them to rows of scores.
        dtype: of these images; None: any.
        log_floor: of a model that is known to give probabilities, see `ForeignRunner`. Defaults to None.
        extreme: finds what exceeds FP16 in an ONNX file for a few of these images. Defaults to None: it is none.
    """

    def __init__(
        self,
        predict: Rows,
        dtype: np.dtype[Any] | None,
        log_floor: float | None = None,
        extreme: Callable[[np.ndarray], Extreme | None] | None = None,
    ) -> None:
        self._predict = predict
        self.dtype = dtype
        self.log_floor = log_floor
        self.extreme = extreme

    def inputs(self, images: np.ndarray, preprocess: Rows | None, name: str) -> np.ndarray:
        """Return images as the model takes them."""
        if self.dtype is not None and images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise DataError(
                f"Expected uint8 pixels or preprocessed floats for {name}. Received: {images.dtype}. Convert them: "
                "images.astype(np.uint8)."
            )
        if self.dtype is None or (self.dtype == np.uint8) == (images.dtype == np.uint8):
            return images
        if self.dtype == np.uint8:
            raise DataError(f"Expected uint8 images for {name}, which takes pixels. Received: {images.dtype}.")
        if preprocess is None:
            raise DataError(
                f"Expected preprocessing, because {name} takes {self.dtype}. Received: uint8 images alone. Name a "
                'mode, such as preprocessing="caffe", or hand in preprocessed images.'
            )
        return np.asarray(preprocess(images), np.float32)

    def rows(self, inputs: np.ndarray, batch_size: int) -> np.ndarray:
        """Return float32 rows (N, classes)."""
        rows = np.concatenate([self._piece(piece) for piece in split_batches(inputs, batch_size)])
        if self.log_floor is None and are_probabilities(rows):
            self.log_floor = float(np.log(np.finfo(rows.dtype).tiny))
        return rows.astype(np.float32, copy=False)

    def _piece(self, inputs: np.ndarray) -> np.ndarray:
        given = self._predict(inputs)
        rows = _as_array(given)
        if rows.ndim != 2 or len(rows) != len(inputs) or rows.shape[1] < 2 or rows.dtype.kind not in "fiu":
            form = f"{rows.dtype} of shape {rows.shape}" if rows.dtype.kind != "O" else f"a {type(given).__name__}"
            raise DataError(
                f"Expected a row of scores for each of {count(len(inputs), 'image')}, one for each of two classes or "
                f"more. Received: {form}. Compare classifiers that give logits or probabilities of shape (N, classes)."
            )
        return rows

    def logarithms(self, rows: np.ndarray, floor: float) -> np.ndarray:
        """Return the logarithms of the probabilities that rows are or give."""
        return log_softmax(rows, floor) if self.log_floor is None else log_probabilities(rows, floor)


@contextmanager
def open_classifier(classifier: Loaded, images: np.ndarray, classes: int | None) -> Iterator[OpenClassifier]:
    """Make a classifier ready to run on images; ``classes`` is the number of them where that is known."""
    if isinstance(classifier, OnnxFile):
        path = classifier.path
        height, width = images.shape[1:3]
        with ForeignRunner(path, (height, width), classes=classes, precision=classifier.precision) as runner:
            yield OpenClassifier(
                runner.scores,
                runner.dtype,
                runner.log_floor,
                lambda inputs: find_extreme(path, runner.feed(inputs[:FEW])),
            )
        return
    if hasattr(classifier, "predict_on_batch"):
        yield OpenClassifier(classifier.predict_on_batch, np.dtype(np.float32))
    else:
        yield OpenClassifier(cast(Rows, classifier), None)


def load_classifier(classifier: Classifier) -> Loaded:
    """Return what an ONNX file says of itself, a Keras model in place of its file, anything else as it is."""
    if not isinstance(classifier, (str, Path)):
        if not callable(classifier):
            raise DataError(
                "Expected an ONNX file, a Keras model or its file, or a function. Received: "
                f"{type(classifier).__name__}. Name what is to be compared."
            )
        return classifier
    if Path(classifier).suffix.lower() == ".onnx":
        return read_onnx_file(Path(classifier))
    from pipeline.keras_files.load import load_model

    return load_model(Path(classifier))


def name_classifier(classifier: Classifier, otherwise: str) -> str:
    """Return how messages name a classifier."""
    if isinstance(classifier, (str, Path)):
        return str(classifier)
    return str(getattr(classifier, "name", None) or getattr(classifier, "__name__", otherwise))


def image_size(classifier: Loaded) -> tuple[int, int] | None:
    """Return height and width of the images that a model's file or object says it takes; None where it says none."""
    if isinstance(classifier, OnnxFile):
        return classifier.size
    shape = getattr(classifier, "input_shape", None)
    sides = tuple(shape[1:3]) if isinstance(shape, tuple) and len(shape) == 4 else ()
    return (sides[0], sides[1]) if sides and None not in sides else None


def _as_array(given: Any) -> np.ndarray:
    """Return lists of numbers as an array; anything else as an object."""
    try:
        return np.asarray(given)
    except ValueError:  # of rows of different lengths
        return np.asarray(None)
