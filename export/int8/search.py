"""The search for the best INT8 graph: method, bias correction, and the fewest layers in float that meet a budget.

Every choice is made on held-out images, which gave no scales, and reported. `export.int8.fp16_search` finds the FP16
graph.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.calibration import ChannelStatistics, Histogram, collect_histograms, collect_statistics
from export.fp16.convert import unfit_for_fp16
from export.int8.bias_correction import BiasError, bias_errors, collect_mean_maps, correct_biases
from export.int8.equalization import Equalized, equalize
from export.int8.fp16_search import Fp16Result, search_fp16
from export.int8.options import SearchOptions, Track
from export.int8.placement import Kept, int8_convs, measured_tensors, placement_table, quantizable_tensors
from export.int8.qdq import quantize, scale_values
from export.int8.report import BiasCorrection, CalibrationReport, Distances, Placement
from export.int8.scales import METHODS, Scales
from export.int8.sensitivity import Budget, LayerCost, measure_layers, select_layers
from export.int8.simulate import HeldOut, describe_comparison
from export.metrics.distances import Comparison
from export.words import count, listed

logger = logging.getLogger(__name__)

_TIE_DB = 0.5  # SQNRs of two methods that differ by less are equal, and agreement decides
# Returns the calibration images in batches, uint8 (N, height, width, 3) RGB; the text describes the pass.
Batches = Callable[[str], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Calibrated:
    """A float model with histograms of the activations that will be quantized.

    Args:
        model: float32; its weights will be rounded.
        histograms: Tensor name -> its histogram.
        images: Number of calibration images.
        equalized: Number of activations whose ranges equalization changed.
        factors: From `export.int8.equalization.Equalized`.
    """

    model: onnx.ModelProto
    histograms: Mapping[str, Histogram]
    images: int
    equalized: int
    factors: Mapping[str, np.ndarray]

    def scales(self, method: str) -> Scales:
        """Return the scales of a method of `METHODS`."""
        return Scales.from_histograms(self.histograms, method, images=self.images)

    def bias_errors(self, scales: Scales, batches: Iterable[np.ndarray]) -> list[BiasError]:
        """Return the mean error of each quantized node with some scales."""
        return bias_errors(self.model, collect_mean_maps(self.model, batches, scales))

    def corrected(self, errors: Sequence[BiasError], kept: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with its biases corrected for these errors, except those of kept nodes."""
        return correct_biases(self.model, errors, kept)[0] if errors else self.model


@dataclass(frozen=True)
class SearchResult:
    """The result of the search.

    Args:
        fp16: The FP16 graph.
        model: The float model of the INT8 graph: equalized, biases corrected.
        scales: The scales of its activations.
        factors: Tensor name -> (C,), what its channels are multiplied by to have the values of the FP32 model.
        kept: Node name -> why it stays in float.
        int8: The INT8 graph on an FP16 base.
        placements: The precision of each of its nodes.
        costs: The cost of each layer alone, the highest first; empty if none was measured.
        result: The INT8 graph compared with FP32 on held-out images.
        report: The content of calibration.json.
    """

    fp16: Fp16Result
    model: onnx.ModelProto
    scales: Scales
    factors: Mapping[str, np.ndarray]
    kept: Mapping[str, Kept]
    int8: onnx.ModelProto
    placements: list[Placement]
    costs: Sequence[LayerCost]
    result: Comparison
    report: CalibrationReport


def search(
    model: onnx.ModelProto, batches: Batches, held_out: HeldOut, options: SearchOptions, track: Track
) -> SearchResult:
    """Return the best FP16 and INT8 graphs of a model.

    Args:
        model: float32, from `export.from_keras.convert.export_keras`.
        batches: Returns the calibration images, once for each pass.
        held_out: Other images, on which graphs are compared.
        options: Budgets and limits.
        track: Shows the progress.

    Raises:
        ProjectError: If weights, activations or images do not allow any scales.
    """
    images, statistics = collect_statistics(model, batches("ranges"), measured_tensors(model))
    unfit = unfit_for_fp16(model, {name: channels.limit for name, channels in statistics.items()})
    if unfit:
        named = listed((f"{node}: {why}" for node, why in unfit.items()), separator="; ")
        logger.warning("  %s FP32: %s", count(len(unfit), "layer stays", "layers stay"), named)
    fp16 = search_fp16(model, statistics, unfit, held_out, options, track)
    base = calibrate(model, statistics, batches("histograms"), images, equalized=options.equalize)
    run = _Int8Search(base, held_out, options, {name: Kept("fp32", why) for name, why in unfit.items()}, track)
    methods = run.choose_method()
    if dead := run.scales.smallest:
        subject = count(len(dead), "tensor is (nearly) dead and gets", "tensors are (nearly) dead and get")
        logger.warning("  %s the smallest scale: %s", subject, listed(dead))
    correction = run.correct(batches("biases")) if options.bias_correction else None
    throughout = run.result
    met = options.int8.met_by(throughout)
    costs: list[LayerCost] = []
    if options.sensitivity == "always" or (options.sensitivity == "auto" and not met):
        costs = run.measure()
        met = met or run.keep_layers(costs)
    rounded = run.model(run.kept)
    int8, placements = quantize(rounded, run.scales, kept=run.kept)
    logger.debug("placement of INT8:\n%s", placement_table(placements))
    report = CalibrationReport(
        fp16.report,
        base.equalized,
        len(held_out),
        images,
        *int8_convs(placements),
        budget=str(options.int8),
        method=run.scales.method,
        methods={name: Distances.of(comparison) for name, comparison in methods.items()},
        all_int8=Distances.of(throughout),
        kept=tuple(run.kept) if run.mixed else (),
        budget_met=met,
        bias_correction=correction,
        mixed=Distances.of(run.result) if run.mixed else None,
    )
    return SearchResult(fp16, rounded, run.scales, base.factors, run.kept, int8, placements, costs, run.result, report)


def calibrate(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    batches: Iterable[np.ndarray],
    images: int,
    *,
    equalized: bool,
) -> Calibrated:
    """Return the model, equalized or not, with the histograms for its scales.

    Args:
        model: float32.
        statistics: From `export.calibration.collect_statistics`.
        batches: Calibration images, uint8 (N, height, width, 3) RGB.
        images: Number of images.
        equalized: Whether the channels of an activation are scaled to similar ranges.
    """
    base = equalize(model, statistics) if equalized else Equalized(model, dict(statistics), 0, {})
    limits = {name: base.statistics[name].limit for name in quantizable_tensors(model)}
    return Calibrated(base.model, collect_histograms(base.model, batches, limits), images, base.tensors, base.factors)


def best_method(results: Mapping[str, Comparison], budget: Budget) -> str:
    """Return the method with the best SQNR among those that meet the budget, or among all if none meets it.

    Of methods within half a decibel of the best, the one with the best agreement is returned.
    """
    met = {name: result for name, result in results.items() if budget.met_by(result)} or results
    best = max(result.sqnr_db for result in met.values())
    close = [name for name, result in met.items() if result.sqnr_db >= best - _TIE_DB or result.sqnr_db == best]
    return max(close, key=lambda name: (results[name].top1_agreement, results[name].sqnr_db))


class _Int8Search:
    """The state of the search for one model; each step keeps the candidate that is closest on held-out images."""

    def __init__(
        self, base: Calibrated, held_out: HeldOut, options: SearchOptions, kept: dict[str, Kept], track: Track
    ) -> None:
        self._base, self._held_out, self._options, self._track = base, held_out, options, track
        self._errors: list[BiasError] = []
        self.kept = kept
        self.mixed = False  # whether a selection of layers that stay in float was made
        self.scales: Scales
        self.result: Comparison

    def model(self, kept: Mapping[str, Kept]) -> onnx.ModelProto:
        """Return the float model of the INT8 model, with biases corrected for the nodes that are quantized."""
        return self._base.corrected(self._errors, kept)

    def _judge(self, kept: Mapping[str, Kept]) -> Comparison:
        return self._held_out.judge(quantize(self.model(kept), self.scales, base="fp32", kept=kept)[0])

    def choose_method(self) -> dict[str, Comparison]:
        """Set the scales of the best method; return the comparison of each method."""
        candidates = {
            name: self._base.scales(name)
            for name in (METHODS if self._options.method == "auto" else (self._options.method,))
        }
        quantized, _ = quantize(self.model(self.kept), next(iter(candidates.values())), base="fp32", kept=self.kept)
        comparisons = self._held_out.judge_variants(
            quantized, (scale_values(scales, quantized) for scales in candidates.values())
        )
        results = dict(zip(self._track(list(candidates), "methods", "method"), comparisons))
        chosen = best_method(results, self._options.int8)
        self.scales, self.result = candidates[chosen], results[chosen]
        return results

    def correct(self, batches: Iterable[np.ndarray]) -> BiasCorrection:
        """Correct the biases, and undo it if the logits do not come closer."""
        before = self.result
        self._errors = self._base.bias_errors(self.scales, batches)
        after = self._judge(self.kept)
        used = after.sqnr_db > before.sqnr_db
        if used:
            self.result = after
        else:
            self._errors = []
        return BiasCorrection(used, Distances.of(before), Distances.of(after))

    def measure(self) -> list[LayerCost]:
        """Return the cost of each layer alone, the highest first."""
        return measure_layers(
            self._base.model,
            self.scales,
            self._held_out.first(self._options.sensitivity_images),
            lambda names: self._track(names, "sensitivity", "layer"),
        )

    def keep_layers(self, costs: Sequence[LayerCost]) -> bool:
        """Keep the fewest layers in FP16 that meet the budget; return whether it is met."""
        most = int(self._options.max_kept * sum(cost.op == "Conv" for cost in costs))
        before = describe_comparison(self.result)
        free = [cost for cost in costs if cost.node not in self.kept]  # layers that FP16 cannot hold stay FP32
        selection = select_layers(free, lambda kept: self._judge({**self.kept, **kept}), self._options.int8, most)
        if selection.met or selection.comparison.sqnr_db > self.result.sqnr_db:
            self.kept, self.result = {**self.kept, **selection.kept}, selection.comparison
        self.mixed = True
        logger.info(
            "  INT8 throughout: %s; kept in float, %d: %s", before, len(self.kept), describe_comparison(self.result)
        )
        return selection.met
