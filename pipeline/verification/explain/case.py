"""What a diagnosis may look at. NumPy and the standard library only, Python 3.10 syntax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts.parity_report import Hop
from pipeline.models.model_card import ModelCard
from pipeline.verification.parity import Answer, Candidate, Reference

if TYPE_CHECKING:
    import keras

IMAGES = 16  # that hypotheses are tried on


@dataclass(frozen=True, eq=False)
class Case:
    """A verdict with all that was compared for it.

    Attributes:
        candidates: What was compared, as `pipeline.verification.parity.judge` takes it.
        answers: What each candidate gave, by run_name.
        reference: Keras' logits and the test images.
        card: The model's card.
        paths: Files on the disk by name: of the candidates, and of what they were made from.
        load: Loads Keras' model with logits as its output; None where Keras is not to be used. It may raise
            `ModuleNotFoundError`.
        factors: Factors by channel of the INT8 file's tensors, by tensor: the file's value is Keras' value over the
            factor. Defaults to none.
        own: Whether this project made the files. Defaults to True.
    """

    candidates: Sequence[Candidate]
    answers: Mapping[str, Answer]
    reference: Reference
    card: ModelCard
    paths: Mapping[str, Path]
    load: Callable[[], keras.Model] | None = None
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: bool = True

    @cached_property
    def model(self) -> Any | None:
        """Return Keras' model with logits as its output; None where Keras is not here."""
        if self.load is None:
            return None
        try:
            return self.load()
        except ModuleNotFoundError:
            return None

    @cached_property
    def pixels(self) -> np.ndarray:
        """Return the first test images, uint8 (n, height, width, 3), at most `IMAGES`."""
        return self.reference.pixels[:IMAGES]

    def candidate(self, run: str) -> Candidate | None:
        """Return the candidate of a run; None if there is none."""
        return next((candidate for candidate in self.candidates if candidate.run_name == run), None)

    def candidate_of(self, hop: Hop) -> Candidate:
        """Return the candidate that a hop judges."""
        return next(candidate for candidate in self.candidates if candidate.run_name == hop.run_name)
