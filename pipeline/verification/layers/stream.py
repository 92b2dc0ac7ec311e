"""Sums from which a layer's numbers follow: images come one by one, and none is kept."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Distance:
    """Signal and noise of a tensor, float64.

    Args:
        signal: Sum of the squares of the reference.
        noise: Sum of the squares of the differences.
        cosines: Sum of the images' cosine similarities.
        images: Number of images.
        finite: Whether all values are finite.
    """

    signal: float = 0.0
    noise: float = 0.0
    cosines: float = 0.0
    images: int = 0
    finite: bool = True

    def add(self, reference: np.ndarray, values: np.ndarray) -> None:
        """Add images.

        Args:
            reference: Expected values, float32 (N, ...).
            values: Values of the file, of the same shape, any float type.
        """
        for expected, value in zip(reference, values):
            a, b = expected.reshape(-1), value.reshape(-1).astype(np.float32, copy=False)
            self.images += 1
            if not math.isfinite(squares := _product(b, b)):
                self.finite = False
                continue
            signal = _product(a, a)
            length = math.sqrt(signal) * math.sqrt(squares)
            self.cosines += _product(a, b) / length if length else float(signal == squares)
            difference = b - a
            self.signal += signal
            self.noise += _product(difference, difference)

    @property
    def sqnr_db(self) -> float | None:
        """SQNR in dB, at least `LOWEST_DB`; None where both are equal, or not all is finite."""
        if not self.finite or self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise) if self.signal else LOWEST_DB

    @property
    def cosine(self) -> float | None:
        """Mean cosine similarity over the images; None where not all is finite."""
        return min(1.0, self.cosines / self.images) if self.finite and self.images else None

    def below(self, threshold_db: float) -> bool:
        """Whether the noise is too large, or a value not finite."""
        noise_db = self.sqnr_db
        return not self.finite or (noise_db is not None and noise_db < threshold_db)


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """Return the inner product of two float32 vectors; in float64 where float32 does not hold it."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = float(a @ b)
        if _SMALLEST < abs(product) < math.inf:
            return product
        return float(a.astype(np.float64) @ b.astype(np.float64))


_SMALLEST = 1e-30  # below it, squares of float32 are denormal
LOWEST_DB = -200.0  # of an output that should be 0 throughout


@dataclass(frozen=True)
class Range:
    """What a tensor can hold: the range of the INT8 scale that reads it, or FP16.

    Args:
        low: Smallest value.
        high: Largest value.
    """

    low: float
    high: float

    @property
    def reach(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high)


@dataclass
class Usage:
    """How the reference uses the range of a tensor.

    Args:
        range: The range; None without one.
        largest: Largest absolute value.
        reached: That of the tensor over the largest that the range holds.
        beyond: Number of values outside the range.
        values: Number of values.
    """

    range: Range | None
    largest: float = 0.0
    reached: float = 0.0
    beyond: int = 0
    values: int = 0

    def add(self, reference: np.ndarray, scaled: np.ndarray) -> None:
        """Add images.

        Args:
            reference: Keras' values, float32 (N, ...).
            scaled: The same in the units of the range, which differ where the file was equalized.
        """
        self.largest = max(self.largest, _largest(reference))
        self.values += reference.size
        if self.range is not None:
            low, high = np.float32(self.range.low), np.float32(self.range.high)
            self.reached = max(self.reached, _largest(scaled) / self.range.reach if self.range.reach else 0.0)
            self.beyond += int(np.count_nonzero(scaled < low) + np.count_nonzero(scaled > high))

    @property
    def saturated(self) -> float | None:
        """Share of the values outside the range; None without one."""
        return self.beyond / self.values if self.range is not None and self.values else None

    @property
    def range_used(self) -> float | None:
        """Largest absolute value over the largest that the range holds; None without a range."""
        return self.reached if self.range is not None else None


def _largest(values: np.ndarray) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
