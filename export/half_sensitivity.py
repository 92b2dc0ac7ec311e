"""What FP16 costs in each layer alone, so that the few that cost most can stay FP32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx

from export.graph import producers
from export.half_emulation import emulate_half
from export.naming import keras_layer
from export.precision import FP32_OPS, preprocessing_nodes
from export.sensitivity import LayerCost
from export.simulation import HeldOut

_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")


def half_units(model: onnx.ModelProto, kept: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Returns what is FP16 or FP32 together: the name of a node -> its nodes, in the order of the graph.

    A unit is a Keras layer, with what follows it and reads nothing else, such as an activation: a cast between a Conv
    and its ReLU would round what is about to be kept.

    Args:
        model: float32, nodes named by `export.naming.name_by_layer`.
        kept: Names of nodes that stay FP32 anyway. Defaults to none.
    """
    made = producers(model.graph)
    skipped = {node.name for node in preprocessing_nodes(model)} | set(kept)
    unit_of: dict[str, str] = {}
    units: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.name in skipped or node.op_type in FP32_OPS:
            continue
        sources = {made[name].name for name in node.input if name in made}
        source = next(iter(sources)) if len(sources) == 1 and node.op_type not in _WEIGHTED else ""
        unit_of[node.name] = unit_of.get(source, keras_layer(node.name))
        units.setdefault(unit_of[node.name], []).append(node.name)
    return {nodes[0]: tuple(nodes) for nodes in units.values()}


def measure_units(
    model: onnx.ModelProto,
    make: Callable[[Collection[str]], onnx.ModelProto],
    units: Mapping[str, tuple[str, ...]],
    held_out: HeldOut,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[LayerCost]:
    """Returns the cost of each unit alone in FP16, all else FP32, the dearest first.

    Args:
        model: float32.
        make: The FP16 model with some nodes, by name, in FP32 and with the weights they have.
        units: From `half_units`.
        held_out: Images that gave no statistics.
        track: Shows the progress through the units. Defaults to not showing it.
    """
    operators = {node.name: node.op_type for node in model.graph.node}
    costs = []
    for unit in track(list(units)):
        found = held_out.judge(emulate_half(make([name for name in operators if name not in units[unit]])))
        costs.append(LayerCost.of(unit, operators[unit], found))
    return sorted(costs, key=lambda cost: -cost.noise)
