"""The search for the FP16 graph: how its weights are rounded, and which layers stay FP32."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from export.calibration import ChannelStatistics
from export.graph import convert_opset, opset
from export.half_emulation import emulate_half
from export.half_sensitivity import half_units, measure_units
from export.int8.options import SearchOptions, Track
from export.int8.report import Distances, Fp16Report, Fp16Rounding, Rounding
from export.metrics import Comparison
from export.placement import Kept
from export.precision import MINIMUM_OPSET, to_half
from export.rounding import rounded_first_conv, rounded_weights, with_weights
from export.sensitivity import Budget, choose_layers
from export.simulation import HeldOut, words
from export.words import count

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
    """Returns the FP16 model whose weights, rounded one way or the other, come closest on held-out images.

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
