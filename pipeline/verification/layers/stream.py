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
            a, b = expected.reshape(-1).astype(np.float64), value.reshape(-1).astype(np.float64)
            self.images += 1
            if not np.isfinite(b).all():
                self.finite = False
                continue
            squares = float(a @ a)
            self.signal += squares
            length = math.sqrt(squares * float(b @ b))
            self.cosines += float(a @ b) / length if length else float(not a.any() and not b.any())
            b -= a
            self.noise += float(b @ b)

    @property
    def sqnr_db(self) -> float | None:
        """SQNR in dB, at least `LOWEST_DB`; None where both are equal, or not all is finite."""
        if not self.finite or self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise) if self.signal else LOWEST_DB

    @property
    def cosine(self) -> float | None:
        """Mean cosine similarity over the images; None where not all is finite."""
        return self.cosines / self.images if self.finite and self.images else None

    def below(self, threshold_db: float) -> bool:
        """Whether the noise is too large, or a value not finite."""
        noise_db = self.sqnr_db
        return not self.finite or (noise_db is not None and noise_db < threshold_db)


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
            scaled: The same as the tensor holds them, which differs where the file was equalized.
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
    return float(np.abs(values).max(initial=0.0))
