"""The reference runner: the Keras model itself, with preprocessing in numpy."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.errors import RunnerError
from export.metrics.distances import FloatNoise, measure_noise
from export.preprocessing import PreprocessingSpec
from pipeline.runners.base import Outputs, Top, check_pixels, softmax, split_batches, top_k_of
from pipeline.terminal.console import start_tensorflow

if TYPE_CHECKING:
    import keras

    from pipeline.models.model_card import ModelCard


class KerasRunner:
    """Runs a Keras classifier on uint8 pixels.

    Args:
        path: the model file.
        preprocessing: applied in numpy, independently of the exported graph.
        output: the kind of output of the model: "auto", "logits" or "softmax". Defaults to "auto".
        allow: names of parts of the model that may run code. Defaults to none.
        max_batch: a larger input is split. Defaults to 64.
    """

    backend = "keras"
    precision = "fp32"
    graph_top_k = 0
    classes = 0
    metadata = None

    def __init__(
        self,
        path: Path,
        preprocessing: PreprocessingSpec,
        *,
        output: str = "auto",
        allow: Sequence[str] = (),
        max_batch: int = 64,
    ) -> None:
        self.path = path
        self.preprocessing = preprocessing
        self.max_batch = max_batch
        self._output = output
        self._allow = allow
        self._model: keras.Model | None = None

    def __enter__(self) -> KerasRunner:
        self._model = load_logits_model(self.path, self._output, self._allow)
        self.classes = int(self._model.outputs[0].shape[-1])
        return self

    def __exit__(self, *exc: object) -> None:
        self._model = None
        gc.collect()

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC pixels, by ``predict_on_batch`` on batches of at most ``max_batch``."""
        _, height, width, _ = self._opened().inputs[0].shape
        check_pixels(pixels, (height, width))
        inputs = map(self.preprocessing.apply, split_batches(pixels, self.max_batch))
        logits = self._predict(inputs).astype(np.float32, copy=False)
        return Outputs(logits, softmax(logits))

    def noise(self, pixels: np.ndarray, largest: float) -> FloatNoise:
        """Measure how far the logits move when each preprocessed pixel moves by a unit in the last place.

        Args:
            pixels: uint8 NHWC.
            largest: absolute value of a logit, over all images that will be compared.
        """
        return measure_noise(
            lambda inputs: self._predict(split_batches(inputs, self.max_batch)),
            self.preprocessing.apply(pixels),
            largest,
        )

    def _predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Compute the logits of preprocessed images."""
        return np.concatenate([self._opened().predict_on_batch(batch) for batch in batches])

    def _opened(self) -> keras.Model:
        if self._model is None:
            raise RunnerError("Expected an open runner: use it in a with block.")
        return self._model

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """Return the best k classes of each image."""
        return top_k_of(self.infer(pixels).probabilities, k)


def load_logits_model(path: Path, output: str = "auto", allow: Sequence[str] = ()) -> keras.Model:
    """Load a Keras classifier with logits as its only output.

    Args:
        path: the model file.
        output: the kind of output of the model: "auto", "logits" or "softmax". Defaults to "auto".
        allow: names of parts of the model that may run code. Defaults to none.
    """
    start_tensorflow()
    from export.from_keras.logits import logits_model
    from pipeline.keras_files.load import load_classifier

    return logits_model(load_classifier(path, allow), output)


def open_keras(path: Path, card: ModelCard | None, allow: Sequence[str], max_batch: int) -> KerasRunner:
    """Make the runner of a Keras model; the model is loaded when its with block begins.

    Args:
        path: the model file.
        card: the model's card.
        allow: names of parts of the model that may run code.
        max_batch: a larger input is split.

    Raises:
        RunnerError: ``card`` is None.
    """
    if card is None:
        raise RunnerError("Expected the card of the Keras model (train/model.json). Received: none.")
    return KerasRunner(path, card.preprocessing, output=card.output, allow=allow, max_batch=max_batch)
