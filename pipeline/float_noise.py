"""What float32 arithmetic itself leaves undecided in a model's answers: the yardstick for "the same up to rounding".

Some weights amplify the last bit of a sum so that two right implementations differ by more than 1e-5 of the largest
logit. How much, the model shows itself: every preprocessed pixel is moved to the next float up, and to the next down.
Keras and ONNX Runtime were 0.7 to 1.2 times that apart on the models that amplify most (1e-6 to 6e-5), and below 1e-5
by far on all others (`FACTOR` leaves room for more images and for the kernels of a GPU).

Standard library and numpy, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

AUTO = "auto"
FLOOR = 1e-5  # two implementations may always be as far apart
FACTOR = 4.0
IMAGES = 64  # that are measured; a move costs as much as their answers
# However much a model amplifies, an error as large as this is a fault: in half precision a unit in the last place
# is 1e-3 of a value.
CEILING = {"float32": 5e-4, "float16": 5e-3}


@dataclass(frozen=True)
class FloatNoise:
    """How far Keras is from itself with every pixel moved by a unit in the last place.

    Attributes:
        relative_error: largest difference of a logit over the largest logit.
        precision: of the unit; float16 where a unit of float32 changes no answer, as the model rounds its input.
    """

    relative_error: float
    precision: Literal["float32", "float16"]

    @property
    def limit(self) -> float:
        """The largest relative error that is no fault."""
        return min(max(FLOOR, FACTOR * self.relative_error), CEILING[self.precision])

    def __str__(self) -> str:
        return (
            f"Keras itself moves by {self.relative_error:.1e} when each pixel does by a unit in the last place of "
            f"{self.precision}"
        )


def measure_noise(predict: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, largest: float) -> FloatNoise:
    """Move every value of a model's input, and see what that does to its logits.

    Args:
        predict: preprocessed images (N, height, width, channels) float32 to logits (N, classes).
        inputs: such images.
        largest: absolute value of a logit, over all images that will be compared.
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


def noise_of(meta: Mapping[str, Any]) -> FloatNoise | None:
    """The noise in what ``reference.npz`` says of itself; None where an earlier version wrote it.

    Raises:
        ValueError: it is damaged.
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
