"""The FP16 graph of the quantize stage: how its weights are rounded, and which layers stay FP32."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx

from export.calibration import ChannelStatistics
from export.half_emulation import emulate_half
from export.half_sensitivity import half_units, measure_units
from export.metrics import Comparison
from export.placement import Kept
from export.precision import MINIMUM_OPSET, to_half
from export.rounding import round_first_conv, round_weights
from export.sensitivity import Budget, choose_layers
from export.simulation import HeldOut, summary, words
from pipeline.progress import progress_bar
from pipeline.recipe import Quantize, Thresholds
from pipeline.words import count

log = logging.getLogger(__name__)

# Held-out and test images are not the same: what barely meets the threshold on these misses it on those, the fewer
# they are the more (with 8 held-out images 3 to 9 dB in 4 of 30 networks, with 10 and more images held out in none).
_MARGIN_DB, _MARGIN_OF_FEW = 1.0, 8.0
_WORTH = 1e-6  # of the noise of all units: in FP16 it spreads over many, and a 30 dB gap takes the small ones too


@dataclass(frozen=True)
class Halved:
    """The FP16 graph, and what calibration.json says of it.

    Attributes:
        model: the graph.
        report: for calibration.json.
        at_opset: makes the same graph, with the same weights and the same layers in FP32, at another opset.
    """

    model: onnx.ModelProto
    report: dict[str, Any]
    at_opset: Callable[[int], onnx.ModelProto]


def halve(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    unfit: Mapping[str, str],
    held_out: HeldOut,
    settings: Quantize,
    limits: Thresholds,
) -> Halved:
    """The FP16 model whose weights, rounded one way or the other, come closest on held-out images.

    Where that misses what is asked of FP16, by a margin, the fewest units that meet it stay FP32, the dearest first.

    Args:
        model: float32.
        statistics: of the inputs of what has weights.
        unfit: node -> why FP16 can't hold it.
        held_out: images that judge.
        settings: whether layers may be measured, on how many images, and how many may be kept.
        limits: the recipe's thresholds for FP16.
    """
    roundings: dict[str, Callable[[Collection[str]], onnx.ModelProto]] = {
        "nearest": lambda kept: round_first_conv(model, kept),
        "mean": lambda kept: round_weights(model, statistics, kept),
    }

    def half(name: str, kept: Collection[str], opset: int = MINIMUM_OPSET) -> onnx.ModelProto:
        return to_half(roundings[name](kept), keep=kept, minimum_opset=opset)

    halves = {name: half(name, unfit.keys()) for name in roundings}
    found = {name: held_out.judge(emulate_half(half)) for name, half in halves.items()}
    best = max(found, key=lambda name: found[name].sqnr_db)
    budget = _budget(limits, len(held_out))
    report: dict[str, Any] = {
        "rounding": {"chosen": best} | {name: summary(comparison) for name, comparison in found.items()},
        "kept_fp32": dict(unfit),
        "budget": str(budget),
        "budget_met": budget.met_by(found[best]),
    }
    throughout = Halved(halves[best], report, partial(half, best, unfit.keys()))
    if report["budget_met"] or settings.sensitivity == "never":
        return throughout
    make, units = partial(half, best), half_units(model, unfit)
    with progress_bar(desc="  sensitivity of FP16", unit="layer") as bar:

        def advance(done: int, layers: int) -> None:
            bar.total = layers
            bar.update(done - bar.n)

        costs = measure_units(model, make, units, held_out.first(settings.sensitivity_images), advance)

    def keep(kept: Mapping[str, Kept]) -> dict[str, str]:
        return dict(unfit) | {node: kept[unit].why for unit in kept for node in units[unit]}

    def judge(kept: Mapping[str, Kept]) -> Comparison:
        return held_out.judge(emulate_half(make(keep(kept).keys())))

    most = int(settings.max_kept_fp32 * sum(cost.op == "Conv" for cost in costs))
    chosen = choose_layers(costs, judge, budget, most, "fp32", "FP16", _WORTH)
    report |= {"budget_met": chosen.met}
    if not chosen.met:
        log.warning("%s", missed("fp16", str(budget), "quantize.max_kept_fp32", settings.max_kept_fp32))
        if chosen.comparison.sqnr_db <= found[best].sqnr_db:
            return throughout
    kept = keep(chosen.kept)
    log.info(
        "  FP16 throughout: %s; kept in FP32, %s: %s",
        *(words(found[best]), count(len(chosen.kept), "layer"), words(chosen.comparison)),
    )
    report |= {"kept_fp32": kept, "kept": list(chosen.kept), "mixed": summary(chosen.comparison)}
    return Halved(make(kept.keys()), report, partial(half, best, kept.keys()))


def _budget(limits: Thresholds, images: int) -> Budget:
    margin = _MARGIN_DB + _MARGIN_OF_FEW / math.sqrt(max(1, images))
    sqnr = None if limits.sqnr_db is None else limits.sqnr_db + margin
    error = limits.relative_error if isinstance(limits.relative_error, float) else None  # auto is about float32
    return Budget(limits.top1_agreement, limits.accuracy_drop, sqnr, error, certain=True)


def missed(precision: str, budget: str, key: str, kept: float) -> str:
    """What to do where a graph misses its budget on held-out images.

    Args:
        precision: "int8" or "fp16".
        budget: in words.
        key: of the share of convolutions that may stay in more bits.
        kept: its value; at 1 there is nothing to raise.
    """
    more = {"int8": "FP16", "fp16": "FP32"}[precision]
    way = (
        f"To keep more convolutions in {more} raise {key} (now {kept:g})"
        if kept < 1
        else f"All convolutions may stay in {more} already ({key}): bring more calibration images, or ask for less"
    )
    asked = f"verify.thresholds.{precision}"
    return f"{precision.upper()} misses what {asked} asks for on held-out images ({budget}). {way}."
