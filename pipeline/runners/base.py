"""The protocol that every backend follows, and what one inference returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from export.errors import RunnerError
from export.tensorrt.sidecar import OUTPUTS, TOP_OUTPUTS


class Outputs(NamedTuple):
    """What a classifier says about a batch of N images with C classes."""

    logits: np.ndarray  # (N, C) float32
    probabilities: np.ndarray  # (N, C) float32, rows sum to 1


class Top(NamedTuple):
    """The best k classes of each of N images, best first; of equal probabilities the lower class first.

    Where the graph itself picked them (`export.top_k`), the backend decides between equal probabilities.
    """

    probabilities: np.ndarray  # (N, k) float32, falling
    classes: np.ndarray  # (N, k) int32


class Runner(Protocol):
    """A context manager that classifies batches: ``with runner: runner.infer(pixels)``.

    ``infer`` takes uint8 NHWC RGB pixels at the model's size, any number of images from 1 on (a runner splits what is
    larger than it can take at once), and returns exactly one row an image.
    """

    @property
    def backend(self) -> str:
        """``keras``, ``onnxruntime`` or ``tensorrt``."""

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``int8``."""

    @property
    def max_batch(self) -> int:
        """The largest batch that runs at once; larger input is split."""

    @property
    def graph_top_k(self) -> int:
        """Of an open runner: how many best classes its graph itself picks (`export.top_k`); 0: none, the host does."""

    @property
    def classes(self) -> int:
        """Of an open runner: how many classes it tells apart."""

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """Of an open runner: what its file says of itself (classes, preprocessing, decode); None: it is the model."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exc: object) -> None: ...

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC pixels."""

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """The best k classes of each image, or all of them where there are fewer than k."""


class GraphRunner(ABC):
    """What runners of a graph with the outputs `OUTPUTS`, and perhaps `TOP_OUTPUTS`, have in common."""

    graph_top_k: int

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC RGB pixels, any number from 1 on.

        Args:
            pixels: uint8, (N, height, width, 3), of the size that the model was exported for.

        Returns:
            Outputs: logits and probabilities, float32, (N, classes).

        Raises:
            RunnerError: wrong pixels, a closed runner, or a failure of the backend.
        """
        return Outputs(*self._fetch(pixels, OUTPUTS))

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """Give the best k classes of each image; only they are fetched where the graph itself picks as many.

        Raises:
            RunnerError: as `infer`, or k is below 1.
        """
        if 1 <= k <= self.graph_top_k:
            probabilities, classes = self._fetch(pixels, TOP_OUTPUTS)
            return Top(probabilities[:, :k], classes[:, :k])
        return top_of(self.infer(pixels).probabilities, k)

    @abstractmethod
    def _fetch(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run the graph and give these outputs, a row an image."""


def pieces(pixels: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cut images into runs of at most ``most``."""
    return (pixels[start : start + most] for start in range(0, len(pixels), most))


def top_of(probabilities: np.ndarray, k: int) -> Top:
    """The best k of each row, best first; of equal ones the lower class first.

    Args:
        probabilities: float32, (N, C).
        k: at least 1; above C it is C.

    Raises:
        RunnerError: k is below 1.
    """
    if k < 1:
        raise RunnerError(f"Expected k >= 1 best classes. Received: {k}.")
    # The maximum k times over: of 1,000 classes the best 5 in a fiftieth of a stable sort's time.
    left, rows = probabilities.copy(), np.arange(len(probabilities))
    classes = np.empty((len(probabilities), min(k, probabilities.shape[1])), np.int32)
    for rank in range(classes.shape[1]):
        classes[:, rank] = left.argmax(axis=1)
        left[rows, classes[:, rank]] = -np.inf
    return Top(np.take_along_axis(probabilities, classes, axis=1), classes)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, computed in float64, returned as float32."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exp = np.exp(shifted)
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True), np.float32)


def check_pixels(pixels: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Refuse anything but a non-empty uint8 NHWC RGB batch, before a backend sees it.

    Raises:
        RunnerError: with what was expected and received.
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
