"""What an FP16 or INT8 file holds that does not follow from the FP32 file it was made from, as a verdict says it.

Logits hide it: a file whose thresholds leave room for one wrong layer passes with one. Python 3.10 syntax.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.words import count
from pipeline.artifacts.parity_report import FAIL, PASS
from pipeline.verification.checks.thresholds import Finding

MOST_NAMED = 3  # misfits in a verdict


@dataclass(frozen=True)
class Origin:
    """What a file was made from.

    Attributes:
        name: of the FP32 file, relative to the artifacts folder.
        path: of it.
        scales: the scales that quantize recorded; None where there are none.
        changes: what its tensors hold in place of Keras' values; None where none are changed.
        rounding: how its weights were rounded; None where that is unknown.
    """

    name: str
    path: Path
    scales: Path | None = None
    changes: Path | None = None
    rounding: Path | None = None


@dataclass(frozen=True)
class Misfit:
    """A weight or a scale that is wrong.

    Attributes:
        cause: as in `pipeline.artifacts.diagnosis.Cause`.
        layer: Keras layer.
        text: what is wrong, as part of a sentence, with numbers.
    """

    cause: Literal["weights", "layer scale", "saturation", "attribute", "padding"]
    layer: str
    text: str


@dataclass(frozen=True)
class Rounded:
    """A file held against the one that it was made from.

    Attributes:
        source: that one, relative to the artifacts folder.
        weights: number of weights that were compared.
        scales: number of scales of activations that were compared.
        misfits: what is wrong, in the order of the file.
        notes: what is unusual and no fault.
    """

    source: str
    weights: int
    scales: int
    misfits: tuple[Misfit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """Return what is said of it in a verdict."""
        if not self.misfits:
            scales = f", {count(self.scales, 'scale')} of activations that fit" if self.scales else ""
            return [Finding(PASS, f"{count(self.weights, 'weight')} within rounding of {self.source}'s{scales}")]
        texts = [misfit.text for misfit in self.misfits[:MOST_NAMED]]
        if more := len(self.misfits) - len(texts):
            texts.append(f"and {count(more, 'more value')}")
        return [Finding(FAIL, f"it does not follow from {self.source}: {'; '.join(texts)}")]
