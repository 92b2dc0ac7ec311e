"""The search for the FP16 graph: how its weights are rounded, and which layers stay FP32.

FP16 arithmetic on a CPU: what a node of type FP16 writes is rounded, as a GPU does.

What FP16 costs in each layer alone, so that the few that cost most can stay FP32.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.calibration import ChannelStatistics
from export.fp16.convert import FP32_OPS, MINIMUM_OPSET, preprocessing_nodes, to_half
from export.fp16.weight_rounding import rounded_first_conv, rounded_weights, with_weights
from export.int8.options import SearchOptions, Track
from export.int8.placement import Kept
from export.int8.report import Distances, Fp16Report, Fp16Rounding, Rounding
from export.int8.sensitivity import Budget, LayerCost, choose_layers
from export.int8.simulate import HeldOut, words
from export.metrics.distances import Comparison
from export.onnx_passes.graph import (
    attribute,
    convert_opset,
    copy_model,
    infer_shapes,
    opset,
    producers,
    topological_sort,
)
from export.onnx_passes.layer_names import keras_layer
from export.onnx_passes.repairs import raise_half
from export.words import count

# What they write of values that FP16 holds is such a value.
_EXACT = ("Relu", "MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Pad", "Max", "Min", "Concat", "Identity")


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 model with the answers of an FP16 one: its weights, and each FP16 activation rounded.

    ONNX Runtime's CPU computes FP16 nodes in float32 and takes the casts between two of them out, even with all
    optimizations off, so that an FP16 model shows its weights and the casts at the ends alone. Sums within a node are
    float32 here as well; a GPU may round them, or fuse nodes and round less.

    Args:
        model: From `export.fp16.convert.to_half`.
    """
    inferred = infer_shapes(model)
    half = {info.name for info in inferred.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    result = copy_model(model)
    graph = result.graph
    halving = [n for n in graph.node if n.op_type == "Cast" and attribute(n, "to") == TensorProto.FLOAT16]
    raise_half(graph)
    del graph.value_info[:]
    rounded = {name for node in graph.node for name in node.output if node.op_type not in (*_EXACT, "Cast")} & half
    for node in [*halving, *(n for n in graph.node if rounded & set(n.output))]:
        for index, name in enumerate(node.output):
            if node.op_type != "Cast" and name not in rounded:
                continue
            node.output[index] = f"{name}/exact"
            graph.node.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16))
            graph.node.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    return topological_sort(result)


_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")


def half_units(model: onnx.ModelProto, kept: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return what is FP16 or FP32 together: the name of a node -> its nodes, in the order of the graph.

    A unit is a Keras layer, with what follows it and reads nothing else, such as an activation: a cast between a Conv
    and its ReLU would round what is about to be kept.

    Args:
        model: float32, nodes named by `export.onnx_passes.layer_names.name_by_layer`.
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
    """Return the cost of each unit alone in FP16, all else FP32, the dearest first.

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


logger = logging.getLogger(__name__)

# Held-out and test images are not the same: what barely meets the threshold on these misses it on those, the fewer
# they are the more (with 8 held-out images 3 to 9 dB in 4 of 30 networks, with 10 and more images held out in none).
_MARGIN_DB, _MARGIN_OF_FEW = 1.0, 8.0
_WORTH = 1e-6  # of the noise of all units: in FP16 it spreads over many, and a 30 dB gap takes the small ones too


@dataclass(frozen=True)
class Fp16Result:
    """The FP16 graph, and how it came about.

    Args:
        model: The graph, at `MINIMUM_OPSET` or later.
        at_opset: Makes the same graph, with the same weights and the same layers in FP32, at another opset.
        report: For calibration.json.
    """

    model: onnx.ModelProto
    at_opset: Callable[[int], onnx.ModelProto]
    report: Fp16Report


def search_fp16(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    unfit: Mapping[str, str],
    held_out: HeldOut,
    options: SearchOptions,
    track: Track,
) -> Fp16Result:
    """Return the FP16 model whose weights, rounded one way or the other, come closest on held-out images.

    Where that misses what is asked of FP16, by a margin, the fewest units that meet it stay FP32, the dearest first.

    Args:
        model: float32.
        statistics: Of the inputs of what has weights.
        unfit: Node -> why FP16 can't hold it.
        held_out: Images that judge.
        options: What is asked of FP16, whether layers may be measured, and how many may be kept.
        track: Shows the progress.
    """
    first = rounded_first_conv(model)
    rest = {node: weight for node, weight in rounded_weights(model, statistics).items() if node not in first}
    weights: dict[Rounding, Mapping[str, np.ndarray]] = {"nearest": {}, "mean": rest}
    newest = convert_opset(model, max(opset(model), MINIMUM_OPSET))  # once, not for every graph that is tried

    def nearest(kept: Collection[str], at_opset: int) -> onnx.ModelProto:
        base = newest if at_opset == MINIMUM_OPSET else model
        return to_half(with_weights(base, first, kept), keep=kept, minimum_opset=at_opset)

    def half(rounding: Rounding, kept: Collection[str], at_opset: int = MINIMUM_OPSET) -> onnx.ModelProto:
        return with_weights(nearest(kept, at_opset), weights[rounding], kept)

    throughout = nearest(unfit, MINIMUM_OPSET)
    halves = {rounding: with_weights(throughout, weights[rounding], unfit) for rounding in weights}
    found = {rounding: held_out.judge(emulate_half(half)) for rounding, half in halves.items()}
    best = max(found, key=lambda rounding: found[rounding].sqnr_db)
    make = partial(half, best)
    budget = _with_margin(options.fp16, len(held_out))
    distances = {name: Distances.of(comparison) for name, comparison in found.items()}
    report = Fp16Report(
        Fp16Rounding(best, distances["nearest"], distances["mean"]),
        dict(unfit),
        str(budget),
        budget.met_by(found[best]),
    )
    result = Fp16Result(halves[best], partial(make, unfit), report)
    if report.budget_met or options.sensitivity == "never":
        return result
    units = half_units(model, unfit)
    costs = measure_units(
        model,
        make,
        units,
        held_out.first(options.sensitivity_images),
        lambda names: track(names, "sensitivity of FP16", "layer"),
    )

    def keep(kept: Mapping[str, Kept]) -> dict[str, str]:
        return dict(unfit) | {node: kept[unit].why for unit in kept for node in units[unit]}

    def judge(kept: Mapping[str, Kept]) -> Comparison:
        return held_out.judge(emulate_half(make(keep(kept))))

    most = int(options.max_kept_fp32 * sum(cost.op == "Conv" for cost in costs))
    chosen = choose_layers(costs, judge, budget, most, "fp32", "FP16", _WORTH)
    if not chosen.met and chosen.comparison.sqnr_db <= found[best].sqnr_db:
        return result
    kept = keep(chosen.kept)
    logger.info(
        "  FP16 throughout: %s; kept in FP32, %s: %s",
        *(words(found[best]), count(len(chosen.kept), "layer"), words(chosen.comparison)),
    )
    mixed = Distances.of(chosen.comparison)
    report = replace(report, budget_met=chosen.met, kept_fp32=kept, kept=tuple(chosen.kept), mixed=mixed)
    return Fp16Result(make(kept), partial(make, kept), report)


def _with_margin(budget: Budget, images: int) -> Budget:
    margin = _MARGIN_DB + _MARGIN_OF_FEW / math.sqrt(max(1, images))
    return replace(budget, sqnr_db=None if budget.sqnr_db is None else budget.sqnr_db + margin, certain=True)
