"""The search for the FP16 graph: how its weights are rounded, and which layers stay FP32, by emulation on the CPU."""

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
from export.int8.sensitivity import LayerCost, select_layers
from export.int8.simulate import HeldOut, Judged, describe_comparison
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
from export.onnx_passes.repairs import convert_graph_to_float32
from export.words import count

# Operators whose outputs are FP16 values if their inputs are.
_EXACT = ("Relu", "MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Pad", "Max", "Min", "Concat", "Identity")


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 model with the logits of an FP16 model: its weights, and each FP16 activation rounded.

    ONNX Runtime's CPU computes FP16 nodes in float32 and removes the casts between two of them, even with all
    optimizations off, so an FP16 model shows the rounding of its weights and of the casts at the ends alone. Sums
    within a node are float32 here as well; a GPU may round them, or fuse nodes and round less.

    Args:
        model: From `export.fp16.convert.to_half`.
    """
    inferred = infer_shapes(model)
    half = {info.name for info in inferred.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    result = copy_model(model)
    graph = result.graph
    rounded = {
        name
        for node in graph.node
        for name in node.output
        if (node.op_type not in (*_EXACT, "Cast") and name in half)
        or (node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT16)
    }
    convert_graph_to_float32(graph)
    del graph.value_info[:]
    for node in [n for n in graph.node if rounded & set(n.output)]:
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}/exact"
                graph.node.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16))
                graph.node.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    return topological_sort(result)


_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")


def fp16_units(model: onnx.ModelProto, kept: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the units that are FP16 or FP32 as a whole: name of the first node -> its nodes, in graph order.

    A unit is a Keras layer with the nodes that read only its output, such as an activation: a cast between a Conv and
    its ReLU would round the values that were kept in FP32.

    Args:
        model: float32, nodes named by `export.onnx_passes.layer_names.name_by_layer`.
        kept: Names of nodes that stay FP32 in any case. Defaults to none.
    """
    producer = producers(model.graph)
    skipped = {node.name for node in preprocessing_nodes(model)} | set(kept)
    unit_of: dict[str, str] = {}
    units: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.name not in skipped and node.op_type not in FP32_OPS:
            sources = {producer[name].name for name in node.input if name in producer}
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
    """Return the cost of each unit alone in FP16, with all others in FP32, the highest first.

    Args:
        model: float32.
        make: Returns the FP16 model with some nodes, by name, in FP32 and with their own weights.
        units: From `half_units`.
        held_out: Images that gave no statistics.
        track: Shows the progress through the units. Defaults to not showing it.
    """
    operators = {node.name: node.op_type for node in model.graph.node}

    def judge(unit: str) -> Judged:
        return held_out.judge(emulate_half(make([name for name in operators if name not in units[unit]])))

    return sorted(
        (LayerCost.of(unit, operators[unit], judge(unit)) for unit in track(list(units))), key=lambda cost: -cost.noise
    )


logger = logging.getLogger(__name__)

# Held-out and test images differ: a graph that just meets the threshold on held-out images may miss it on test images,
# by more the fewer held-out images there are (by 3 to 9 dB in 4 of 30 networks with 8 images, in none with 10 or more).
_MARGIN_DB, _MARGIN_OF_FEW = 1.0, 8.0
_MIN_SHARE = (
    1e-6  # of the noise of all units: FP16 noise spreads over many units, and a gap of 30 dB needs small ones too
)


@dataclass(frozen=True)
class Fp16Result:
    """The FP16 graph, and the report of the search.

    Args:
        model: The graph, at `MINIMUM_OPSET` or later.
        at_opset: Returns the same graph, with the same weights and layers in FP32, at another opset.
        report: The part of calibration.json about FP16.
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
    """Return the FP16 model with the rounding of weights that comes closest to FP32 on held-out images.

    If it does not meet the FP16 budget with a margin, the fewest units that meet it stay FP32, the costliest first.

    Args:
        model: float32.
        statistics: Those of the inputs of nodes with weights.
        unfit: Node -> why FP16 cannot hold it.
        held_out: Images that gave no statistics, on which graphs are compared.
        options: The FP16 budget, whether layers may be measured, and how many may stay FP32.
        track: Shows the progress.
    """
    first = rounded_first_conv(model)
    rest = {node: weight for node, weight in rounded_weights(model, statistics).items() if node not in first}
    weights: dict[Rounding, Mapping[str, np.ndarray]] = {"nearest": {}, "mean": rest}
    newest = convert_opset(model, max(opset(model), MINIMUM_OPSET))  # once for all candidates

    def nearest(kept: Collection[str], at_opset: int) -> onnx.ModelProto:
        base = newest if at_opset == MINIMUM_OPSET else model
        return to_half(with_weights(base, first, kept), keep=kept, minimum_opset=at_opset)

    def half(rounding: Rounding, kept: Collection[str], at_opset: int = MINIMUM_OPSET) -> onnx.ModelProto:
        return with_weights(nearest(kept, at_opset), weights[rounding], kept)

    throughout = nearest(unfit, MINIMUM_OPSET)
    halves = {rounding: with_weights(throughout, weights[rounding], unfit) for rounding in weights}
    comparisons = {rounding: held_out.judge(emulate_half(half)) for rounding, half in halves.items()}
    best = max(comparisons, key=lambda rounding: comparisons[rounding].sqnr_db)
    make = partial(half, best)
    margin = _MARGIN_DB + _MARGIN_OF_FEW / math.sqrt(max(1, len(held_out)))
    sqnr_db = None if options.fp16.sqnr_db is None else options.fp16.sqnr_db + margin
    budget = replace(options.fp16, sqnr_db=sqnr_db, certain=True)
    report = Fp16Report(
        Fp16Rounding(best, Distances.of(comparisons["nearest"]), Distances.of(comparisons["mean"])),
        dict(unfit),
        str(budget),
        budget.met_by(comparisons[best]),
    )
    result = Fp16Result(halves[best], partial(make, unfit), report)
    if report.budget_met or options.sensitivity == "never":
        return result
    units = fp16_units(model, unfit)
    costs = measure_units(
        model,
        make,
        units,
        held_out.first(options.sensitivity_images),
        lambda names: track(names, "sensitivity of FP16", "layer"),
    )

    def keep(kept: Mapping[str, Kept]) -> dict[str, str]:
        return dict(unfit) | {node: kept[unit].why for unit in kept for node in units[unit]}

    def judge(kept: Mapping[str, Kept]) -> Judged:
        return held_out.judge(emulate_half(make(keep(kept))))

    most = int(options.max_kept_fp32 * sum(cost.op == "Conv" for cost in costs))
    chosen = select_layers(costs, judge, budget, most, "fp32", "FP16", _MIN_SHARE)
    if not chosen.met and chosen.comparison.sqnr_db <= comparisons[best].sqnr_db:
        return result
    kept = keep(chosen.kept)
    logger.info(
        "  FP16 throughout: %s; kept in FP32, %s: %s",
        *(
            describe_comparison(comparisons[best]),
            count(len(chosen.kept), "layer"),
            describe_comparison(chosen.comparison),
        ),
    )
    mixed = Distances.of(chosen.comparison)
    report = replace(report, budget_met=chosen.met, kept_fp32=kept, kept=tuple(chosen.kept), mixed=mixed)
    return Fp16Result(make(kept), partial(make, kept), report)
