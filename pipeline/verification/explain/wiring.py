"""Layers that read the outputs of other layers than in Keras."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np

from export.onnx_passes.graph import copy_model
from export.words import listed
from pipeline.verification.explain.fit import Explanation
from pipeline.verification.explain.part import Part
from pipeline.verification.explain.remedies import AGAIN
from pipeline.verification.layers.keras_layers import INPUT

_ORDERED = ("Concat", "Sub", "Div")  # operators whose result depends on the order of their inputs
_EXPORT = f"{AGAIN}; if the graph is edited after that, look at what connects these layers."


def explain_wiring(part: Part) -> Explanation | None:
    """Explain a layer by what it reads."""
    by_tensor = {layer.tensor: layer for layer in part.mapping.layers}
    read = {name: by_tensor[name].name if name in by_tensor else INPUT for name in part.inputs}
    missing = [name for name in part.layer.inputs if name not in read.values()]
    extra = [tensor for tensor, name in read.items() if name not in part.layer.inputs and tensor in by_tensor]
    for tensor in extra:
        for wanted in missing:
            layer = by_tensor[tensor]
            if part.values[wanted].size != part.inputs[tensor].size:
                continue
            fit = part.repaired(part.model, {**part.inputs, tensor: part.in_file(wanted, tensor)})
            if part.agrees(fit):
                return Explanation(
                    "wiring",
                    f"Layer {part.layer.name!r} reads the output of {layer.name!r}, where in Keras it reads that of "
                    f"{wanted!r}.",
                    f"In the file it reads {listed(read.values())}, in Keras {listed(part.layer.inputs)}. "
                    + part.repair_in_words(f"fed with that of {wanted!r}", fit),
                    _EXPORT,
                    part.layer.name,
                )
    return _left_out(part, read) or _order(part)


def _left_out(part: Part, read: Mapping[str, str]) -> Explanation | None:
    """Find a layer that the file does not have, such as an activation: it passes on what that layer should change."""
    for tensor, name in read.items():
        if part.inputs[tensor].dtype == np.uint8:
            continue
        for absent in part.mapping.without_tensor:
            if part.values[absent].size != part.inputs[tensor].size:
                continue
            value = part.in_file(absent, tensor)
            if part.agrees(fit := part.repaired(part.model, {**part.inputs, tensor: value})):
                return Explanation(
                    "wiring",
                    f"Layer {absent!r} is missing in the file: {part.layer.name!r} reads the output of {name!r} "
                    "without it.",
                    part.repair_in_words(f"fed with that of {absent!r}", fit),
                    _EXPORT,
                    absent,
                )
    return None


def _order(part: Part) -> Explanation | None:
    """Find an operator that reads its inputs in another order."""
    for index, node in enumerate(part.nodes):
        if node.op_type not in _ORDERED or not 2 <= len(node.input) <= 4:
            continue
        for order in list(permutations(range(len(node.input))))[1:]:
            changed = copy_model(part.model)
            changed.graph.node[index].input[:] = [node.input[place] for place in order]
            if part.agrees(fit := part.repaired(changed)):
                return Explanation(
                    "wiring",
                    f"Layer {part.layer.name!r} reads its inputs in another order than in Keras.",
                    f"{node.op_type} {node.name!r}: {part.repair_in_words('in another order', fit)}",
                    _EXPORT,
                    part.layer.name,
                )
    return None
