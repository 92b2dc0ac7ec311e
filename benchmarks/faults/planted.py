"""What a planted fault is: what was changed, and what a verdict has to say about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx

from benchmarks.faults.specimen import Specimen
from export.errors import ProjectError
from export.onnx_passes.file import save_model
from export.onnx_passes.graph import topological_sort
from pipeline.artifacts.diagnosis import Cause
from pipeline.artifacts.paths import ONNX
from pipeline.data.decode import DecodeSpec
from pipeline.runners.base import Runner

T = TypeVar("T")
INHERITED = "inherited"  # the FP32 file is at fault, and the FP16 and INT8 files are made again from it


class NoSuchPartError(ProjectError):
    """The model has no part that the fault could be planted into."""


@dataclass(frozen=True)
class Change:
    """A change to one graph.

    Attributes:
        what: was changed, as a phrase.
        causes: names of it that count as right, the best first.
        layers: Keras layers that count as right; empty where it is in no layer.
    """

    what: str
    causes: tuple[Cause, ...]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planted:
    """A fault in a folder of artifacts.

    Attributes:
        change: what was changed, and how it may be named.
        run: the run at fault, see `pipeline.artifacts.parity_report.run_name`; "" where the decoding is.
        runners: by run, what runs in place of the real runner, which is handed to it.
        decode: the decoding of a product with this fault; None where that is right.
    """

    change: Change
    run: str
    runners: Mapping[str, Callable[[], Runner]] = field(default_factory=dict)
    decode: DecodeSpec | None = None


# Changes a graph in place.
Edit = Callable[[onnx.ModelProto, Specimen, np.random.Generator], Change]
Plant = Callable[[Specimen, np.random.Generator], Planted]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        title: in words.
        forms: ways to plant it, by name; the first is the plainest.
    """

    title: str
    forms: Mapping[str, Plant]


def forms(edits: Mapping[str, Edit], places: Sequence[str]) -> dict[str, Plant]:
    """Return a plant for every edit and every place, named such as ``"bias too, int8"``.

    Args:
        edits: by name.
        places: "fp32", "fp16" or "int8": that file alone; `INHERITED`.
    """
    return {f"{name}, {place}": _in_file(edit, place) for place in places for name, edit in edits.items()}


def _in_file(edit: Edit, place: str) -> Plant:
    name = ONNX["fp32" if place == INHERITED else place]

    def plant(specimen: Specimen, random: np.random.Generator) -> Planted:
        model = specimen.load(name)
        change = edit(model, specimen, random)
        save_model(topological_sort(model), specimen.path(name))
        if place == INHERITED:
            specimen.remake()
        return Planted(change, name)

    return plant


def draw(random: np.random.Generator, choices: Sequence[T], part: str) -> T:
    """Return one of several choices.

    Raises:
        NoSuchPartError: there are none.
    """
    if not choices:
        raise NoSuchPartError(f"Expected a model with {part}. Received: one without. Plant it into the small model.")
    return choices[int(random.integers(len(choices)))]


class Replaced:
    """A runner whose logits and probabilities are changed on their way out.

    Args:
        runner: the real one.
        change: of an array of one row an image, uint8 pixels beside it.
        backend: that it stands for. Defaults to the runner's own.
    """

    def __init__(self, runner: Any, change: Callable[[np.ndarray], np.ndarray], backend: str = "") -> None:
        self._runner, self._change = runner, change
        self.backend = backend or runner.backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def __enter__(self) -> Replaced:
        self._runner.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.__exit__(*exc)

    def infer(self, pixels: np.ndarray) -> Any:
        """Return the changed outputs."""
        outputs = self._runner.infer(pixels)
        return type(outputs)(*map(self._change, outputs))
