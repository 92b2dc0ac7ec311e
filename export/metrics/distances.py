"""Distances between the logits of two runs of a model, and the float32 noise of a model itself.

All reductions are in float64. A row of the candidate that is not finite counts as a disagreement, as a wrong answer and
as cosine 0; the distances become infinite and the SQNR minus infinity.

Some weights amplify rounding errors so much that two correct implementations differ by more than 1e-5 of the largest
logit. `measure_noise` measures it by moving every preprocessed pixel to the next float up and down. On the models that
amplify most (1e-6 to 6e-5), Keras and ONNX Runtime differed by 0.7 to 1.2 times that noise, on all others by far less
than 1e-5; `FACTOR` leaves headroom for more images and for the kernels of a GPU. Standard library and NumPy only,
Python 3.10 syntax.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from export.errors import ProjectError
from export.metrics.confidence import McNemar, drop_interval, mcnemar, wilson_interval
from export.metrics.difference import clip_masked_classes


@dataclass(frozen=True)
class Comparison:
    """The distances of a candidate's logits from those of a reference.

    Args:
        images: Number of rows.
        max_abs: Largest absolute difference; inf if the candidate is not finite.
        relative_error: `max_abs` over the largest absolute reference logit.
        sqnr_db: Signal to quantization noise ratio in dB; inf if both are equal, -inf if the candidate is not finite.
            `to_dict` returns None for both, as JSON has no infinity; `finite` distinguishes them.
        cosine: Mean over rows of the cosine similarity.
        top1_agreement: Share of rows with the same top class.
        agreement_interval: Wilson interval (95 %) of that share.
        finite: Whether every candidate logit is finite.
        reference_accuracy: Share of rows whose top class in the reference is the label; None without labels.
        candidate_accuracy: The same for the candidate.
        accuracy_drop: Accuracy of the reference minus that of the candidate, from counts; None without labels.
        accuracy_drop_interval: Tango interval (95 %) of that drop; None without labels.
        mcnemar: The McNemar test of the lost and gained images; None without labels.
        mean_abs: Mean absolute difference; inf if the candidate is not finite.
        relative_l2: Euclidean norm of the difference over that of the reference; inf if the candidate is not finite.
        top5_agreement: Share of rows whose top class in the reference is among the candidate's best five; None with
            fewer than six classes.
        labelled: Number of rows with a label, of which the accuracies are shares.
    """

    images: int
    max_abs: float
    relative_error: float
    sqnr_db: float
    cosine: float
    top1_agreement: float
    agreement_interval: tuple[float, float]
    finite: bool
    reference_accuracy: float | None = None
    candidate_accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_interval: tuple[float, float] | None = None
    mcnemar: McNemar | None = None
    mean_abs: float = 0.0
    relative_l2: float = 0.0
    top5_agreement: float | None = None
    labelled: int = 0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types; a number that is not finite becomes None."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        infinite = {key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
        return values | dict.fromkeys(infinite)


def _pair(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 of one shape, which is not empty; refuse a reference that is not finite."""
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ProjectError(
            f"Expected two arrays of one shape that are not empty. Received: {a.shape} and {b.shape} "
            "(compare the same images, the same output)."
        )
    if not np.all(np.isfinite(a)):
        raise ProjectError("Expected a finite reference. Received: NaN or infinity (check the Keras model itself).")
    return a, b


def _rows(logits: np.ndarray) -> np.ndarray:
    """Return the logits as (N, C)."""
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise ProjectError(f"Expected logits of shape (N, C). Received: {x.shape} (keep the batch dimension).")
    return x


def max_abs(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the largest absolute difference; inf if the candidate is not finite."""
    a, b = _pair(reference, candidate)
    return float(np.max(np.abs(a - b))) if np.all(np.isfinite(b)) else math.inf


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute reference value.

    It is 0 if both are equal, and inf if the reference is all zero and the candidate is not.
    """
    difference = max_abs(reference, candidate)
    largest = float(np.max(np.abs(np.asarray(reference, dtype=np.float64))))
    if difference == 0.0:
        return 0.0
    return difference / largest if largest > 0.0 else math.inf


def mean_abs(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the mean absolute difference; inf if the candidate is not finite."""
    a, b = _pair(reference, candidate)
    return float(np.mean(np.abs(a - b))) if np.all(np.isfinite(b)) else math.inf


def relative_l2(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the Euclidean norm of the difference over that of the reference.

    It is 0 if both are equal, and inf if the candidate is not finite, or the reference is all zero and the candidate is
    not.
    """
    a, b = _pair(reference, candidate)
    if not np.all(np.isfinite(b)):
        return math.inf
    difference, norm = float(np.linalg.norm(a - b)), float(np.linalg.norm(a))
    if difference == 0.0:
        return 0.0
    return difference / norm if norm > 0.0 else math.inf


def sqnr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return 10·log10(Σ reference² / Σ (reference − candidate)²) in dB.

    It is inf if both are equal, and -inf if the candidate is not finite, or the reference is all zero and the candidate
    is not.
    """
    a, b = _pair(reference, candidate)
    if not np.all(np.isfinite(b)):
        return -math.inf
    noise, signal = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the mean over rows of the cosine similarity of two (N, C) arrays.

    A row that is not finite in the candidate counts as 0, two zero rows count as 1, one zero row as 0.
    """
    a, b = _pair(_rows(reference), _rows(candidate))
    finite = np.all(np.isfinite(b), axis=1)
    b = np.where(finite[:, None], b, 0.0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.sum(a * b, axis=1)
    values = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0.0)
    values[np.all(a == b, axis=1)] = 1.0
    return float(np.mean(np.where(finite, np.clip(values, -1.0, 1.0), 0.0)))


def top_classes(logits: np.ndarray) -> np.ndarray:
    """Return the top class of each row of (N, C); -1 if the row is not finite (np.argmax would give its NaN)."""
    return np.where(np.all(np.isfinite(logits), axis=1), np.argmax(logits, axis=1), -1)


def top1_agreement(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the share of rows of two (N, C) arrays with the same top class."""
    a, b = _pair(_rows(reference), _rows(candidate))
    return float(np.mean(top_classes(a) == top_classes(b)))


def top5_agreement(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    """Return the share of rows whose top class in the reference is among the candidate's best five.

    Of equal logits the lower class is better. A row that is not finite in the candidate does not agree.

    Returns:
        float | None: None for fewer than six classes, where it would show little or nothing.
    """
    a, b = _pair(_rows(reference), _rows(candidate))
    if a.shape[1] < 6:
        return None
    top = np.argmax(a, axis=1)[:, None]
    own = np.take_along_axis(b, top, axis=1)
    better = (b > own) | ((b == own) & (np.arange(b.shape[1]) < top))
    return float(np.mean((np.sum(better, axis=1) < 5) & np.all(np.isfinite(b), axis=1)))


def _hits(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each row of (N, C) logits whether its top class is the label, (N,) bool; not if it is not finite."""
    expected = np.asarray(labels)
    if expected.shape != (rows.shape[0],) or not np.issubdtype(expected.dtype, np.integer):
        raise ProjectError(
            f"Expected {rows.shape[0]} integer labels. Received: {expected.dtype} {expected.shape} "
            "(one class index per row, not one-hot)."
        )
    return np.asarray(top_classes(rows) == expected)


def compare(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray | None = None) -> Comparison:
    """Compare a candidate's logits with those of a reference.

    Args:
        reference: (N, C), finite.
        candidate: (N, C).
        labels: (N,) integer class indices; rows without one have -1 and count in no accuracy. Defaults to None: no row
            has one. Without any label there are no accuracies and no test.

    Raises:
        ProjectError: If the shapes do not fit or the reference is not finite.
    """
    a, b = (clip_masked_classes(logits) for logits in _pair(_rows(reference), _rows(candidate)))
    agreement = top1_agreement(a, b)
    distances = Comparison(
        images=a.shape[0],
        max_abs=max_abs(a, b),
        relative_error=relative_error(a, b),
        sqnr_db=sqnr_db(a, b),
        cosine=cosine(a, b),
        top1_agreement=agreement,
        agreement_interval=wilson_interval(round(agreement * a.shape[0]), a.shape[0]),
        finite=bool(np.all(np.isfinite(b))),
        mean_abs=mean_abs(a, b),
        relative_l2=relative_l2(a, b),
        top5_agreement=top5_agreement(a, b),
    )
    if labels is None:
        return distances
    before, after = _hits(a, labels), _hits(b, labels)
    known = np.asarray(labels) >= 0
    if not known.any():
        return distances
    before, after = before[known], after[known]
    losses, gains = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    return replace(
        distances,
        reference_accuracy=float(np.mean(before)),
        candidate_accuracy=float(np.mean(after)),
        accuracy_drop=(losses - gains) / len(before),
        accuracy_drop_interval=drop_interval(losses, gains, len(before)),
        mcnemar=mcnemar(losses, gains),
        labelled=len(before),
    )


AUTO = "auto"
FLOOR = 1e-5  # a difference of two implementations that is always allowed
FACTOR = 4.0
IMAGES = 64  # images for the measurement, which costs two more forward passes
# A larger error is a fault, however much a model amplifies: in half precision a unit in the last place is 1e-3 of a
# value.
CEILING = {"float32": 5e-4, "float16": 5e-3}


@dataclass(frozen=True)
class FloatNoise:
    """The change of Keras' logits when every pixel moves by a unit in the last place.

    Args:
        relative_error: Largest difference of a logit over the largest logit.
        precision: Precision of the unit; float16 if a unit of float32 changes no logit, as the model rounds its input.
    """

    relative_error: float
    precision: Literal["float32", "float16"]

    @property
    def limit(self) -> float:
        """Return the largest relative error that is no fault."""
        return min(max(FLOOR, FACTOR * self.relative_error), CEILING[self.precision])

    def __str__(self) -> str:
        return (
            f"Keras itself moves by {self.relative_error:.1e} when each pixel does by a unit in the last place of "
            f"{self.precision}"
        )


def measure_noise(predict: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, largest: float) -> FloatNoise:
    """Return the change of a model's logits when every value of its input moves by a unit in the last place.

    Args:
        predict: From preprocessed images (N, height, width, channels) float32 to logits (N, classes).
        inputs: Such images.
        largest: Largest absolute logit of all images that will be compared.
    """
    reference = predict(inputs).astype(np.float64)
    precisions: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    for precision in precisions:
        near = inputs.astype(precision)
        moved = (np.nextafter(near, near.dtype.type(to)).astype(np.float32) for to in (np.inf, -np.inf))
        error = max(float(np.abs(predict(values) - reference).max()) for values in moved)
        if error > 0:
            return FloatNoise(error / largest if largest > 0 else 0.0, precision)
    return FloatNoise(0.0, "float32")


def read_noise(meta: Mapping[str, Any]) -> FloatNoise | None:
    """Return the noise in the metadata of ``reference.npz``; None if an earlier version wrote the file.

    Raises:
        ValueError: The noise is damaged.
    """
    if meta.get("noise") is None:
        return None
    try:
        noise = FloatNoise(float(meta["noise"]["relative_error"]), meta["noise"]["precision"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"its noise is {meta['noise']!r}") from error
    if not 0 <= noise.relative_error < np.inf or noise.precision not in CEILING:
        raise ValueError(f"its noise is {meta['noise']!r}")
    return noise
