"""The search for the best INT8 graph: one step after the other, each kept only if it helps on held-out images.

The steps are equalization, the method of the scales together with the shift behind a ReLU, second-order rounding of the
weights, bias correction on the rounded weights, and, if the budget is missed, the fewest layers in float that meet it.
Held-out images gave no scales, and every choice is reported. `export.int8.fp16_search` finds the FP16 graph.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from export.calibration import collect_statistics
from export.fp16.convert import unfit_for_fp16
from export.int8.bias_correction import BiasError
from export.int8.calibrated import Calibrated, calibrate
from export.int8.choice import best_scales, helps
from export.int8.equalization import STRENGTHS
from export.int8.fp16_search import Fp16Result, search_fp16
from export.int8.options import SearchOptions, Track
from export.int8.placement import Kept, int8_convs, measured_tensors, placement_table
from export.int8.qdq import quantize, rounded_activations
from export.int8.regions import allowed, find_regions
from export.int8.report import (
    BiasCorrection,
    CalibrationReport,
    Distances,
    Equalization,
    Placement,
    RoundingReport,
    SecondOrder,
    ShiftReport,
)
from export.int8.rounding_record import record_rounding
from export.int8.scales import METHODS, Scales
from export.int8.second_order import SecondOrderWeights, round_second_order
from export.int8.sensitivity import LayerCost, measure_layers, select_layers
from export.int8.simulate import HeldOut, Judged, describe_comparison
from export.int8.weights import RoundedWeight
from export.words import count, listed

logger = logging.getLogger(__name__)

QUICK = ("entropy", "mse", "lp_2.4", "lp_3")  # the methods that ``effort: fast`` tries
_FIRST = "lp_2.4"  # the method with which equalization is tried
# Returns the calibration images in batches, uint8 (N, height, width, 3) RGB; the text describes the pass.
Batches = Callable[[str], Iterable[np.ndarray]]


@dataclass(frozen=True)
class SearchResult:
    """The result of the search.

    Args:
        fp16: The FP16 graph.
        model: The float model of the INT8 graph: equalized, biases corrected.
        scales: The scales of its activations, those that only kept nodes read included; shifted are those of the INT8
            graph.
        weights: Name of the weight of a quantized Conv -> what it is rounded to.
        factors: Tensor name -> (C,), what its channels are multiplied by to have the values of the FP32 model.
        offsets: Tensor name -> (1,), what is added to its values before that, see `export.int8.shift`.
        kept: Node name -> why it stays in float.
        int8: The INT8 graph on an FP16 base.
        placements: The precision of each of its nodes.
        costs: The cost of each layer alone, the highest first; empty if none was measured.
        result: The INT8 graph compared with FP32 on held-out images.
        report: The content of calibration.json.
        rounding: The content of rounding.json.
    """

    fp16: Fp16Result
    model: onnx.ModelProto
    scales: Scales
    weights: Mapping[str, RoundedWeight]
    factors: Mapping[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]
    kept: Mapping[str, Kept]
    int8: onnx.ModelProto
    placements: list[Placement]
    costs: Sequence[LayerCost]
    result: Judged
    report: CalibrationReport
    rounding: RoundingReport


def search(
    model: onnx.ModelProto,
    batches: Batches,
    held_out: HeldOut,
    options: SearchOptions,
    track: Track,
    fp16: Fp16Result | None = None,
) -> SearchResult:
    """Return the best FP16 and INT8 graphs of a model.

    Args:
        model: float32, from `export.from_keras.convert.export_keras`.
        batches: Returns the calibration images, once for each pass.
        held_out: Other images, on which graphs are compared.
        options: Budgets and limits.
        track: Shows the progress.
        fp16: The FP16 graph of an earlier search, which is not searched again. Defaults to None.

    Raises:
        ProjectError: If weights, activations or images do not allow any scales.
    """
    images, statistics = collect_statistics(model, batches("ranges"), measured_tensors(model))
    unfit = unfit_for_fp16(model, {name: channels.limit for name, channels in statistics.items()})
    if unfit:
        named = listed((f"{node}: {why}" for node, why in unfit.items()), separator="; ")
        logger.warning("  %s FP32: %s", count(len(unfit), "layer stays", "layers stay"), named)
    fp16 = fp16 or search_fp16(model, statistics, unfit, held_out, options, track)
    candidates = calibrate(model, statistics, batches("histograms"), images, _strengths(options))
    run = _Int8Search(held_out, options, {name: Kept("fp32", why) for name, why in unfit.items()}, track)
    equalization = run.choose_base(candidates)
    del candidates  # the models that are not used take the memory of their weights
    methods, shift = run.choose_scales(weights=not options.second_order)
    if dead := run.scales.smallest:
        subject = count(len(dead), "tensor is (nearly) dead and gets", "tensors are (nearly) dead and get")
        logger.warning("  %s the smallest scale: %s", subject, listed(dead))
    rounding = run.round_weights(batches) if options.second_order else None
    if rounding and not rounding.used:
        methods, shift = run.choose_scales(weights=True)
    correction = run.correct(batches("biases")) if options.bias_correction else None
    throughout = run.result
    met = options.int8.met_by(throughout)
    costs: list[LayerCost] = []
    if options.sensitivity == "always" or (options.sensitivity == "auto" and not met):
        costs = run.measure()
        met = met or (options.max_kept > 0 and run.keep_layers(costs))
    corrected = run.model(run.kept)
    int8 = quantize(corrected, run.scales, weights=run.weights, trunk=options.trunk, kept=run.kept)
    logger.debug("placement of INT8:\n%s", placement_table(int8.placements))
    report = CalibrationReport(
        fp16.report,
        run.base.equalized,
        len(held_out),
        images,
        *int8_convs(int8.placements),
        budget=str(options.int8),
        method=run.scales.method,
        methods={name: Distances.of(judged) for name, judged in methods.items()},
        all_int8=Distances.of(throughout),
        kept=tuple(run.kept) if run.mixed else (),
        budget_met=met,
        shift=shift,
        equalization=equalization,
        rounding=rounding,
        bias_correction=correction,
        mixed=Distances.of(run.result) if run.mixed else None,
        trunk=options.trunk,
    )
    scales = replace(run.scales, shifted=int8.shifted)
    return SearchResult(
        *(fp16, corrected, scales, run.weights, run.base.factors, int8.offsets, run.kept, int8.model),
        *(int8.placements, costs, run.result, report, run.record()),
    )


def _strengths(options: SearchOptions) -> Sequence[float | None]:
    """Return the strengths of equalization to try, the model as it is last."""
    if not options.equalize:
        return (None,)
    return (*STRENGTHS, None) if options.effort == "full" else STRENGTHS[:1]


class _Int8Search:
    """The state of the search for one model; each step keeps the candidate that is closest on held-out images."""

    def __init__(self, held_out: HeldOut, options: SearchOptions, kept: dict[str, Kept], track: Track) -> None:
        self._held_out, self._options, self._track = held_out, options, track
        self._errors: list[BiasError] = []
        self._second: SecondOrderWeights | None = None
        self._judged: dict[tuple[float | None, str, tuple[str, ...], bool], Judged] = {}
        self.kept = kept
        self.mixed = False  # whether a selection of layers that stay in float was made
        self.base: Calibrated
        self.scales: Scales
        self.weights: Mapping[str, RoundedWeight]
        self.result: Judged

    def model(self, kept: Mapping[str, Kept]) -> onnx.ModelProto:
        """Return the float model of the INT8 model, with biases corrected for the nodes that are quantized."""
        return self.base.corrected(self._errors, kept)

    def _judge(self, kept: Mapping[str, Kept]) -> Judged:
        graph = quantize(self.model(kept), self.scales, weights=self.weights, base="fp32", kept=kept)
        return self._held_out.judge(graph.model)

    def _use(self, base: Calibrated) -> None:
        self.base, self.weights = base, base.nearest(self._options.trunk)

    def _judge_scales(self, method: str, shifted: Sequence[str], *, weights: bool) -> Judged:
        """Use scales, and compare them with weights rounded to nearest or float; the same are not compared again."""
        self.scales = self.base.scales(method, shifted, self._options.trunk)
        tried = self.base.strength, method, tuple(shifted), weights
        if tried not in self._judged:
            self._judged[tried] = (
                self._judge(self.kept)
                if weights
                else self._held_out.judge(rounded_activations(self.base.model, self.scales, self.kept))
            )
        return self._judged[tried]

    def choose_base(self, candidates: Sequence[Calibrated]) -> Equalization | None:
        """Set the base: equalized by the best strength, if that helps; report on it if there is a choice.

        Args:
            candidates: The strengths in the order in which they are tried, then the model as it is; or only one.
        """
        best, *others = candidates
        self._use(best)
        if not others or not best.histograms:
            return None
        tried: dict[float | None, Judged] = {}
        for base in candidates:
            self._use(base)
            shifted = allowed(find_regions(base.model), self._options.shift)
            tried[base.strength] = self._judge_scales(_FIRST, shifted, weights=True)  # what the weights lose counts
            if base.strength is not None and helps(tried[best.strength], tried[base.strength], self._options.int8):
                best = base
        before, plain = tried.pop(None), candidates[-1]
        used = helps(before, tried[best.strength], self._options.int8)
        self._use(best if used else plain)
        strengths = {str(strength): Distances.of(judged) for strength, judged in tried.items()}
        return Equalization(used, Distances.of(before), strengths, str(best.strength))

    def choose_scales(self, *, weights: bool) -> tuple[dict[str, Judged], ShiftReport]:
        """Set the scales of the best method, shifted if that helps; return the comparison of each method.

        Args:
            weights: Whether weights are rounded to nearest. Where second-order rounding comes next, scales are compared
                with float weights: it takes most of the noise off the weights, and beside that of weights rounded to
                nearest good scales look like better ones.
        """
        mode = self._options.shift
        regions = find_regions(self.base.model)
        shifted = allowed(regions, mode)
        methods: Sequence[str] = (self._options.method,)
        if self._options.method == "auto":
            methods = QUICK if self._options.effort == "fast" else METHODS
        chosen, results = self._choose_method(methods, shifted, "methods", weights)
        plain: Judged | None = None
        after = results[chosen] if shifted else None
        if shifted and mode != "always":
            plain = self._judge_scales(chosen, (), weights=weights)
            if not helps(plain, results[chosen], self._options.int8):
                shifted = ()
                chosen, results = self._choose_method(methods, (), "methods without shift", weights)
        self.result = self._judge_scales(chosen, shifted, weights=True)
        report = ShiftReport(
            bool(shifted),
            tuple(self.scales.shifted),
            dict(regions.refused) if mode != "never" else {},
            len(self.base.histograms),
            None if plain is None else Distances.of(plain),
            None if after is None else Distances.of(after),
        )
        return results, report

    def _choose_method(
        self, methods: Sequence[str], shifted: Sequence[str], description: str, weights: bool
    ) -> tuple[str, dict[str, Judged]]:
        """Return the best method and the comparison of each."""
        results = {
            method: self._judge_scales(method, shifted, weights=weights)
            for method in self._track(methods, description, "method")
        }
        return best_scales(results, self._options.int8), results

    def round_weights(self, batches: Batches) -> SecondOrder:
        """Round the weights by second order, and undo it if the logits do not come closer."""
        before, nearest = self.result, self.weights
        second = round_second_order(
            self.base.model,
            self.scales,
            batches,
            images=min(self._options.rounding_images, self.base.images),  # memory is for as many as there are
            kind=self._options.trunk,
            kept=self.kept,
            track=lambda names: self._track(names, "second-order rounding", "layer"),
        )
        self.weights = {**nearest, **second.weights}
        after = self._judge(self.kept)
        used = helps(before, after, self._options.int8)
        if used:
            self.result, self._second = after, second
        else:
            self.weights = nearest
        return SecondOrder(used, second.images, Distances.of(before), Distances.of(after), second.skipped)

    def correct(self, batches: Iterable[np.ndarray]) -> BiasCorrection:
        """Correct the biases, and undo it if the logits do not come closer."""
        before = self.result
        self._errors = self.base.bias_errors(self.scales, self.weights, batches)
        after = self._judge(self.kept)
        used = helps(before, after, self._options.int8)
        if used:
            self.result = after
        else:
            self._errors = []
        return BiasCorrection(used, Distances.of(before), Distances.of(after))

    def measure(self) -> list[LayerCost]:
        """Return the cost of each layer alone, the highest first."""
        return measure_layers(
            self.base.model,
            self.scales,
            self._held_out.first(self._options.sensitivity_images),
            lambda names: self._track(names, "sensitivity", "layer"),
            self.weights,
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

    def record(self) -> RoundingReport:
        """Return how the weight of each convolution in INT8 was rounded."""
        second = self._second
        gains = {} if second is None else {name: second.gains_db.get(name) for name in second.weights}
        return record_rounding(self.base.model, self.weights, self.kept, gains)
