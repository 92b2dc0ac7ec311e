"""What a diagnosis may look at. NumPy and the standard library only, Python 3.10 syntax."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import ProjectError
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.parity_report import Hop
from pipeline.artifacts.tensor_changes import TensorChange
from pipeline.models.model_card import ModelCard
from pipeline.verification.parity import Answer, Candidate, Reference

if TYPE_CHECKING:
    import keras
    import onnx

log = logging.getLogger(__name__)

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
        changes: What the INT8 file's tensors hold in place of Keras' values, by tensor. Defaults to none.
        read: Reads an ONNX file of another tool as one that takes pixels and gives logits. Defaults to None: the files
            are so.
        own: Whether this project made the files. Defaults to True.
    """

    candidates: Sequence[Candidate]
    answers: Mapping[str, Answer]
    reference: Reference
    card: ModelCard
    paths: Mapping[str, Path]
    load: Callable[[], keras.Model] | None = None
    changes: Mapping[str, TensorChange] = field(default_factory=dict)
    read: Callable[[Path], onnx.ModelProto] | None = None
    _graphs: dict[Path, onnx.ModelProto] = field(default_factory=dict, init=False, repr=False)
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

    def graph(self, path: Path, precision: Precision) -> onnx.ModelProto:
        """Return an ONNX file's graph: its input are pixels, its first output logits, its nodes named after layers."""
        if path not in self._graphs:
            self._graphs[path] = self._named(path, precision)
        return self._graphs[path]

    def _named(self, path: Path, precision: Precision) -> onnx.ModelProto:
        import onnx

        model = onnx.load(str(path)) if self.read is None else self.read(path)
        if self.model is None:
            return model
        from pipeline.verification.layers.keras_layers import KerasLayers
        from pipeline.verification.layers.node_names import name_by_values

        try:
            return name_by_values(model, precision, KerasLayers(self.model, self.card.preprocessing), self.pixels)
        except ProjectError as error:
            log.debug("%s: no node is named after a layer: %s", path, error)
            return model
