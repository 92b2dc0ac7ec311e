"""What exceeds FP16 in a file, or comes near, as a verdict says it. Python 3.10 syntax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from export.words import count

LARGEST: Final = 65504.0  # of FP16
ROUNDED_DOWN: Final = 65520.0  # what is below is rounded to the largest, the rest to infinity


@dataclass(frozen=True)
class Extreme:
    """The FP16 tensor of a file with the largest values, or the first one with values beyond FP16.

    Attributes:
        layer: Keras layer that writes it.
        node: name of the node that writes it.
        largest: its largest absolute value.
        images: number of images that were run.
        changed: number of these whose answers change where values beyond FP16 are infinite; 0 where there are none.
    """

    layer: str
    node: str
    largest: float
    images: int
    changed: int

    @property
    def text(self) -> str:
        """What is said of it in a verdict."""
        reach = f"values of layer {self.layer!r} reach {self.largest:,.0f} on {count(self.images, 'image')}"
        if self.changed:
            answers = f"{self.changed:,} of {count(self.images, 'answer')}"
            return (
                f"FP16 overflow: {reach}, FP16 ends at {LARGEST:,.0f}: {answers} change where FP16 is computed as "
                "such, which a CPU does not"
            )
        if self.largest >= ROUNDED_DOWN:
            return f"{reach}, FP16 ends at {LARGEST:,.0f}; that they become infinite changes no answer"
        return f"{reach}, more than half of FP16's largest, {LARGEST:,.0f}: other images may exceed it"
