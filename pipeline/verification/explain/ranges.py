"""Activations of the FP32 file on a few images against the scales of an INT8 file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.onnx_passes.cut import with_outputs
from export.onnx_passes.graph import copy_model, tensor_shapes
from export.onnx_passes.layer_names import keras_layer
from export.ort_session import open_session
from pipeline.artifacts.tensor_changes import UNCHANGED, TensorChange
from pipeline.verification.checks.rounded import Misfit
from pipeline.verification.explain.twin import QuantizedTensor

IMAGES = 16
# Honest scales use 0.7 to 2 times their range and cut off at most 0.2 % of the values, by any method of calibration.
LEAST_USED, CUT_OFF = 1 / 8, 0.05
USED_NOTED, CUT_OFF_NOTED = 1 / 4, 0.005


@dataclass(frozen=True)
class Range:
    """An activation of the FP32 file on a few images, against the scale of the file.

    Attributes:
        layer: Keras layer.
        used: Largest absolute value over the largest that the scale holds.
        cut: Share of the values beyond.
        images: Number of images.
    """

    layer: str
    used: float
    cut: float
    images: int


def measure_ranges(
    source: ModelProto, pairs: Mapping[str, QuantizedTensor], changes: Mapping[str, TensorChange], pixels: np.ndarray
) -> dict[str, Range]:
    """Run the FP32 file once; the graph itself reduces each activation to two numbers, so that none is kept."""
    model, shapes, few = copy_model(source), tensor_shapes(source), pixels[:IMAGES]
    names = []
    for number, (tensor, pair) in enumerate(pairs.items()):
        rank, values = len(shapes[tensor]), changes.get(tensor, UNCHANGED).factors
        unit = (1.0 / (values * pair.largest)).astype(np.float32).reshape([1, -1] + [1] * (rank - 2))
        stem = f"range{number}"
        end = np.asarray(1 + 0.5 / 127, np.float32)  # what is cut off by less than half a step is rounded
        model.graph.initializer.extend(
            [numpy_helper.from_array(unit, f"{stem}/unit"), numpy_helper.from_array(end, f"{stem}/end")]
        )
        chain: Iterable[tuple[str, list[str], str, dict[str, Any]]] = (
            ("Mul", [tensor, f"{stem}/unit"], "scaled", {}),
            ("Abs", [f"{stem}/scaled"], "size", {}),
            ("ReduceMax", [f"{stem}/size"], "used", {"keepdims": 0}),
            ("Greater", [f"{stem}/size", f"{stem}/end"], "beyond", {}),
            ("Cast", [f"{stem}/beyond"], "ones", {"to": TensorProto.FLOAT}),
            ("ReduceMean", [f"{stem}/ones"], "cut", {"keepdims": 0}),
        )
        for kind, inputs, output, extra in chain:
            model.graph.node.append(helper.make_node(kind, inputs, [f"{stem}/{output}"], f"{stem}/{output}", **extra))
        names += [f"{stem}/used", f"{stem}/cut"]
    session = open_session(with_outputs(model, names), spinning=False, log_severity=4)
    taken = session.get_inputs()[0]
    size = taken.shape[0] if isinstance(taken.shape[0], int) else len(few)
    few = few[: len(few) - len(few) % size]
    numbers = np.array([session.run(names, {taken.name: few[i : i + size]}) for i in range(0, len(few), size)])
    used, cut = numbers[:, ::2].max(axis=0), numbers[:, 1::2].mean(axis=0)
    return {
        tensor: Range(keras_layer(pair.node), float(used[i]), float(cut[i]), len(few))
        for i, (tensor, pair) in enumerate(pairs.items())
    }


def misfit_of(found: Range) -> Misfit | None:
    """Return what is wrong about a scale; None if nothing is."""
    if found.cut > CUT_OFF:
        return Misfit("saturation", found.layer, _in_words(found))
    return Misfit("layer scale", found.layer, _in_words(found)) if found.used < LEAST_USED else None


def noted_of(found: Range) -> str | None:
    """Return what is unusual about a scale that is not wrong; None if nothing is."""
    return _in_words(found) if found.cut > CUT_OFF_NOTED or found.used < USED_NOTED else None


def _in_words(found: Range) -> str:
    if found.cut > CUT_OFF_NOTED:
        return f"layer {found.layer!r}: its scale cuts off {found.cut:.1%} of its values"
    return f"layer {found.layer!r}: its values use {found.used:.1%} of the range of its scale"
