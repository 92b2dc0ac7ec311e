"""The search for the best INT8 graph: method, bias correction, and the fewest layers in float that meet a budget.

Every choice is made on held-out images, which gave no scales, and written down. The FP16 graph comes from
`export.int8.fp16_search`.
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
from export.int8.sensitivity import Budget, LayerCost, choose_layers, measure_layers
from export.int8.simulate import HeldOut, words
from export.metrics.distances import Comparison
from export.words import count, listed

logger = logging.getLogger(__name__)

_TIE_DB = 0.5  # SQNRs of two methods as close as this are equal, and agreement decides
# Gives the calibration images, uint8 (N, height, width, 3) RGB in batches, as often as asked; the text says what for.
Batches = Callable[[str], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Calibrated:
    """A float model with what calibration images show of the activations that will be quantized.

    Args:
        model: float32; the weights that will be rounded.
        histograms: Tensor name -> its histogram.
        images: How many were seen.
        equalized: How many activations were given other ranges.
    """

    model: onnx.ModelProto
    histograms: Mapping[str, Histogram]
    images: int
    equalized: int

    def scales(self, method: str) -> Scales:
        """Return the scales that a method of `METHODS` gives."""
        return Scales.from_histograms(self.histograms, method, images=self.images)

    def bias_errors(self, scales: Scales, batches: Iterable[np.ndarray]) -> list[BiasError]:
        """Return what rounding by some scales adds to each channel on average."""
        return bias_errors(self.model, collect_mean_maps(self.model, batches, scales))

    def corrected(self, errors: Sequence[BiasError], kept: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with these errors, but for those of kept nodes, taken out of its biases."""
        return correct_biases(self.model, errors, kept)[0] if errors else self.model


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Args:
        fp16: The FP16 graph.
        model: The float model whose rounding gives the INT8 graph: equalized, biases corrected.
        scales: Of its activations.
        kept: Node name -> why it stays in float.
        int8: The INT8 graph on an FP16 base.
        placements: What each of its nodes computes in.
        costs: What each layer costs alone, the dearest first; empty where none was measured.
        result: How close the INT8 graph comes on held-out images.
        report: For calibration.json.
    """

    fp16: Fp16Result
    model: onnx.ModelProto
    scales: Scales
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
        model: float32, as `export.from_keras.convert.export_keras` makes it.
        batches: Gives the calibration images, once for each pass.
        held_out: Other images, which judge.
        options: What is asked.
        track: Shows the progress.

    Raises:
        ProjectError: Weights, activations or images that no scale can come of.
    """
    images, statistics = collect_statistics(model, batches("ranges"), measured_tensors(model))
    unfit = unfit_for_fp16(model, {name: found.limit for name, found in statistics.items()})
    if unfit:
        named = listed((f"{node}: {why}" for node, why in unfit.items()), separator="; ")
        logger.warning("  %s FP32: %s", count(len(unfit), "layer stays", "layers stay"), named)
    fp16 = search_fp16(model, statistics, unfit, held_out, options, track)
    base = calibrate(model, statistics, batches("histograms"), images, equalized=options.equalize)
    run = _Int8Search(base, held_out, options, {name: Kept("fp32", why) for name, why in unfit.items()}, track)
    methods = run.choose_method()
    if dead := run.scales.smallest:
        said = count(len(dead), "tensor is (nearly) dead and gets", "tensors are (nearly) dead and get")
        logger.warning("  %s the smallest scale: %s", said, listed(dead))
    correction = run.correct(batches("biases")) if options.bias_correction else None
    throughout = run.result
    met = options.int8.met_by(throughout)
    costs: list[LayerCost] = []
    if options.sensitivity == "always" or (options.sensitivity == "auto" and not met):
        costs = run.measure()
        if not met:
            met = run.keep_layers(costs)
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
        methods={name: Distances.of(found) for name, found in methods.items()},
        all_int8=Distances.of(throughout),
        kept=tuple(run.kept) if run.mixed else (),
        budget_met=met,
        bias_correction=correction,
        mixed=Distances.of(run.result) if run.mixed else None,
    )
    return SearchResult(fp16, rounded, run.scales, run.kept, int8, placements, costs, run.result, report)


def calibrate(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    batches: Iterable[np.ndarray],
    images: int,
    *,
    equalized: bool,
) -> Calibrated:
    """Return the model, equalized or as it is, with the histograms that its scales come of.

    Args:
        model: float32.
        statistics: From `export.calibration.collect_statistics`.
        batches: Calibration images, uint8 (N, height, width, 3) RGB.
        images: How many there are.
        equalized: Whether the channels of an activation are given alike ranges.
    """
    base = equalize(model, statistics) if equalized else Equalized(model, dict(statistics), 0)
    limits = {name: base.statistics[name].limit for name in quantizable_tensors(model)}
    return Calibrated(base.model, collect_histograms(base.model, batches, limits), images, base.tensors)


def best_method(results: Mapping[str, Comparison], budget: Budget) -> str:
    """Return the method that meets the budget with the best SQNR; where none meets it, of all.

    Among those within half a decibel of it the best agreement decides.
    """
    met = {name: found for name, found in results.items() if budget.met_by(found)} or results
    best = max(found.sqnr_db for found in met.values())
    close = [name for name, found in met.items() if found.sqnr_db >= best - _TIE_DB or found.sqnr_db == best]
    return max(close, key=lambda name: (results[name].top1_agreement, results[name].sqnr_db))


class _Int8Search:
    """One model on its way to INT8; each step keeps what comes closest on held-out images."""

    def __init__(
        self, base: Calibrated, held_out: HeldOut, options: SearchOptions, kept: dict[str, Kept], track: Track
    ) -> None:
        self._base, self._held_out, self._options, self._track = base, held_out, options, track
        self._errors: list[BiasError] = []
        self.kept = kept
        self.mixed = False  # whether layers were looked for that stay in float
        self.scales: Scales
        self.result: Comparison

    def model(self, kept: Mapping[str, Kept]) -> onnx.ModelProto:
        """Return the float model whose rounding gives the INT8 model, biases corrected for what is quantized."""
        return self._base.corrected(self._errors, kept)

    def _judge(self, kept: Mapping[str, Kept]) -> Comparison:
        return self._held_out.judge(quantize(self.model(kept), self.scales, base="fp32", kept=kept)[0])

    def choose_method(self) -> dict[str, Comparison]:
        """Take the scales of the best method; returns what each came to."""
        method = self._options.method
        candidates = {name: self._base.scales(name) for name in (METHODS if method == "auto" else (method,))}
        quantized, _ = quantize(self.model(self.kept), next(iter(candidates.values())), base="fp32", kept=self.kept)
        variants = (scale_values(scales, quantized) for scales in candidates.values())
        judged = self._held_out.judge_variants(quantized, variants)
        results = dict(zip(self._track(list(candidates), "methods", "method"), judged))
        chosen = best_method(results, self._options.int8)
        self.scales, self.result = candidates[chosen], results[chosen]
        return results

    def correct(self, batches: Iterable[np.ndarray]) -> BiasCorrection:
        """Correct the biases, and goes back if that does not bring the logits closer."""
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
        """Return what each layer costs alone, the dearest first."""
        part = self._held_out.first(self._options.sensitivity_images)
        track = self._track
        return measure_layers(self._base.model, self.scales, part, lambda names: track(names, "sensitivity", "layer"))

    def keep_layers(self, costs: Sequence[LayerCost]) -> bool:
        """Keep the fewest layers in FP16 that meet the budget; returns whether that is met."""
        most = int(self._options.max_kept * sum(cost.op == "Conv" for cost in costs))
        before = words(self.result)
        free = [cost for cost in costs if cost.node not in self.kept]  # what FP16 can't hold stays FP32
        selection = choose_layers(free, lambda kept: self._judge({**self.kept, **kept}), self._options.int8, most)
        if selection.met or selection.comparison.sqnr_db > self.result.sqnr_db:
            self.kept, self.result = {**self.kept, **selection.kept}, selection.comparison
        self.mixed = True
        logger.info("  INT8 throughout: %s; kept in float, %d: %s", before, len(self.kept), words(self.result))
        return selection.met
