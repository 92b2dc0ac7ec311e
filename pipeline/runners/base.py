"""The protocol of all backends, and the results of an inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from export.errors import RunnerError
from export.tensorrt.sidecar import OUTPUTS, TOP_OUTPUTS


class Outputs(NamedTuple):
    """Outputs of a classifier for N images and C classes."""

    logits: np.ndarray  # (N, C) float32
    probabilities: np.ndarray  # (N, C) float32, rows sum to 1


class Top(NamedTuple):
    """The best k classes of each of N images, best first; of equal probabilities the lower class first.

    Where the graph itself selects them (`export.top_k`), the backend orders equal probabilities.
    """

    probabilities: np.ndarray  # (N, k) float32, descending
    classes: np.ndarray  # (N, k) int32


class Runner(Protocol):
    """A context manager that classifies batches: ``with runner: runner.infer(pixels)``.

    ``infer`` takes uint8 NHWC RGB pixels of the model's size, at least one image (a larger input than ``max_batch`` is
    split), and returns exactly one row for each image.
    """

    @property
    def backend(self) -> str:
        """``keras``, ``onnxruntime`` or ``tensorrt``."""

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``int8``."""

    @property
    def max_batch(self) -> int:
        """The largest batch that runs at once; a larger input is split."""

    @property
    def graph_top_k(self) -> int:
        """Of an open runner: number of best classes that its graph selects (`export.top_k`); 0: the host does it."""

    @property
    def classes(self) -> int:
        """Of an open runner: number of classes."""

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """Of an open runner: metadata of its file (classes, preprocessing, decode); None for the Keras model itself."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exc: object) -> None: ...

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC pixels."""

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """Return the best k classes of each image, or all of them where there are fewer than k."""


class GraphRunner(ABC):
    """Base of runners of a graph with the outputs `OUTPUTS` and, optionally, `TOP_OUTPUTS`."""

    graph_top_k: int

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC RGB pixels, at least one image.

        Args:
            pixels: uint8, (N, height, width, 3), of the size that the model was exported for.

        Returns:
            Outputs: logits and probabilities, float32, (N, classes).

        Raises:
            RunnerError: wrong pixels, a closed runner, or a failure of the backend.
        """
        return Outputs(*self._fetch(pixels, OUTPUTS))

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """Return the best k classes of each image; nothing else is fetched where the graph itself selects as many.

        Raises:
            RunnerError: as `infer`, or k is below 1.
        """
        if 1 <= k <= self.graph_top_k:
            probabilities, classes = self._fetch(pixels, TOP_OUTPUTS)
            return Top(probabilities[:, :k], classes[:, :k])
        return top_k_of(self.infer(pixels).probabilities, k)

    @abstractmethod
    def _fetch(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run the graph and return these outputs, with one row for each image."""


def split_batches(pixels: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Split images into batches of at most ``most``."""
    return (pixels[start : start + most] for start in range(0, len(pixels), most))


def top_k_of(probabilities: np.ndarray, k: int) -> Top:
    """Select the best k classes of each row, best first; of equal ones the lower class first.

    Args:
        probabilities: float32, (N, C).
        k: at least 1; values above C count as C.

    Raises:
        RunnerError: k is below 1.
    """
    if k < 1:
        raise RunnerError(f"Expected k >= 1 best classes. Received: {k}.")
    # k times the maximum: for the best 5 of 1,000 classes it takes a fiftieth of a stable sort's time.
    remaining, rows = probabilities.copy(), np.arange(len(probabilities))
    classes = np.empty((len(probabilities), min(k, probabilities.shape[1])), np.int32)
    for rank in range(classes.shape[1]):
        classes[:, rank] = remaining.argmax(axis=1)
        remaining[rows, classes[:, rank]] = -np.inf
    return Top(np.take_along_axis(probabilities, classes, axis=1), classes)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax over the last axis in float64, and return it as float32."""
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True), np.float32)


def check_pixels(pixels: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Refuse anything but a non-empty uint8 NHWC RGB batch.

    Args:
        pixels: the batch.
        size: height and width in pixels that it must have. Defaults to None: any.

    Raises:
        RunnerError: another dtype, shape or size.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) == 0:
        raise RunnerError(
            f"Expected uint8 pixels of shape (N, height, width, 3), N >= 1. Received: {pixels.dtype} {pixels.shape}."
        )
    if size is not None and pixels.shape[1:3] != size:
        raise RunnerError(
            f"Expected images of {size[0]}x{size[1]} pixels, as the model was exported. "
            f"Received: {pixels.shape[1]}x{pixels.shape[2]}. Decode with pipeline.data.decode."
        )
