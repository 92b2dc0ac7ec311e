"""INT8 files whose scales come from images that were preprocessed wrongly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from benchmarks.faults.graph_edits import add_constant, add_node, moved
from benchmarks.faults.planted import Change, Edit, NoSuchPartError, Plant, Planted
from benchmarks.faults.specimen import Specimen
from benchmarks.faults.whole_model import drop_mean, swap_channels
from export.onnx_passes.graph import topological_sort
from export.onnx_passes.layer_names import keras_layer
from export.preprocessing import PreprocessingSpec
from pipeline.artifacts.paths import ONNX


def _in_mode(mode: str) -> Edit:
    def edit(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
        own, other = specimen.card.preprocessing, PreprocessingSpec.from_mode(mode)
        if np.allclose(own.scale, other.scale, rtol=0.2):
            raise NoSuchPartError(f"Expected a model of another scale than {mode}. Received: {own.mode}. Take one.")
        names = [node.output[0] for node in model.graph.node if keras_layer(node.name) == "preprocessing"]
        last = names[-1]
        moved(model, last)
        mean = add_constant(model, "calibrated/mean", np.asarray(other.mean, np.float32))
        scale = add_constant(model, "calibrated/scale", np.asarray(other.scale, np.float32))
        centred = add_node(model, "Sub", [names[0] if len(names) > 1 else f"{last}/before", mean], "calibrated/centred")
        add_node(model, "Mul", [centred, scale], last)
        return Change(f"the preprocessing of {mode} instead of {own.mode}", ())

    return edit


def _calibrated(edit: Edit) -> Plant:
    def plant(specimen: Specimen, random: np.random.Generator) -> Planted:
        model = specimen.load(ONNX["fp32"])
        change = edit(model, specimen, random)
        specimen.remake(("int8",), topological_sort(model))
        return Planted(Change(f"calibrated with {change.what}", ("calibration",)), ONNX["int8"])

    return plant


# The last two are mild where pixels keep their range: INT8 may pass its thresholds all the same.
FORMS: Mapping[str, Plant] = {
    **{mode: _calibrated(_in_mode(mode)) for mode in ("unit", "tf", "torch", "none", "caffe")},
    "no mean": _calibrated(drop_mean),
    "channels": _calibrated(swap_channels),
}
