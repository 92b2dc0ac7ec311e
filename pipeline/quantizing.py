"""The quantize stage: the FP16 graph, and the INT8 graphs with scales from the calibration images."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.calibration import collect_histograms, collect_statistics
from export.correction import MeanMaps, collect_mean_maps, correct_biases
from export.equalization import Equalized, equalize
from export.files import write_atomic
from export.metrics import Comparison
from export.onnx_file import load_model, save_model
from export.placement import Kept, int8_convs, measured_tensors, placement_table, quantizable_tensors
from export.precision import TENSORRT8_OPSET, unfit_for_fp16
from export.quantize import quantize
from export.scales import METHODS, Scales
from export.sensitivity import Budget, LayerCost, choose_layers, measure_layers
from export.simulation import HeldOut, summary, words
from pipeline import charts
from pipeline.card import ModelCard
from pipeline.data import Pixels, Sample, check_classes, check_readable
from pipeline.files import sha256_file, write_json
from pipeline.halving import halve, missed
from pipeline.layout import ONNX, TENSORRT8
from pipeline.progress import progress_bar
from pipeline.split_sizes import check_split_sizes
from pipeline.stage import Context
from pipeline.stage_records import CALIBRATION_SCHEMA
from pipeline.words import count, listed

log = logging.getLogger(__name__)

_TIE_DB = 0.5  # SQNRs of two methods as close as this are equal, and agreement decides


def quantize_model(context: Context, folder: Path) -> dict[str, Any]:
    """Write the FP16 and the INT8 model, and how they came about.

    ``model.fp16.onnx``, ``model.int8.onnx``, ``scales.json``, ``placement.json``, ``calibration.json``,
    ``images.json``; ``sensitivity.csv`` and ``.png`` where layers were measured; where the recipe says
    ``quantize.tensorrt8``, both models at opset 17 besides: ``model.fp16-trt8.onnx``, ``model.int8-trt8.onnx``.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or unreadable ones above its limit.
        ExportError: weights, activations or images that no scale can come of.
    """
    settings = context.recipe.quantize
    card = context.card()
    model = load_model(context.root / ONNX["fp32"])
    images = CalibrationImages(context, card)
    seen, statistics = collect_statistics(model, images.batches("calibration: ranges"), measured_tensors(model))
    unfit = unfit_for_fp16(model, {name: found.limit for name, found in statistics.items()})
    if unfit:
        named = listed((f"{node}: {why}" for node, why in unfit.items()), separator="; ")
        log.warning("  %s FP32: %s", count(len(unfit), "layer stays", "layers stay"), named)
    held_out = HeldOut.of(model, *images.held_out(), settings.batch_size)
    check_readable(seen + len(held_out), settings.min_images, "calibration", images.pixels)
    half = halve(model, statistics, unfit, held_out, settings, context.recipe.verify.thresholds.fp16)
    save_model(half.model, _inside(folder, ONNX["fp16"]))
    if settings.tensorrt8:
        save_model(half.at_opset(TENSORRT8_OPSET), _inside(folder, TENSORRT8["fp16"]))

    base = Equalized(model, statistics, 0)
    if settings.equalize:
        base = equalize(model, statistics)
    key = calibration_key(context, card)
    limits = {name: base.statistics[name].limit for name in quantizable_tensors(model)}
    histograms = collect_histograms(base.model, images.batches("calibration: histograms"), limits)
    run = _Quantization(context, base, held_out, {name: Kept("fp32", why) for name, why in unfit.items()})
    methods = METHODS if settings.method == "auto" else (settings.method,)
    found = {name: Scales.from_histograms(histograms, name, images=seen, key=key) for name in methods}
    scales = run.choose_method(found)
    if dead := scales.smallest:
        said = count(len(dead), "tensor is (nearly) dead and gets", "tensors are (nearly) dead and get")
        log.warning("  %s the smallest scale: %s", said, listed(dead))
    if settings.bias_correction:
        run.correct(collect_mean_maps(base.model, images.batches("calibration: biases"), scales))
    run.meet_budget(folder)

    write_atomic(folder / "scales.json", scales.to_json())
    rounded = run.model(run.kept)
    quantized, placements = quantize(rounded, scales, kept=run.kept)
    save_model(quantized, _inside(folder, ONNX["int8"]))
    if settings.tensorrt8:
        older, _ = quantize(rounded, scales, base="fp32", kept=run.kept)
        save_model(older, _inside(folder, TENSORRT8["int8"]))
    write_json(folder / "placement.json", [asdict(row) for row in placements])
    log.debug("placement of INT8:\n%s", placement_table(placements))
    counts = int8_convs(placements)
    if not counts[1]:
        log.warning(
            "this model has no convolution: INT8 has a rule for little of it, the rest is FP16 (placement.json)"
        )
    equalized = {"equalized_activations": base.tensors, "held_out_images": len(held_out), "scale_images": seen}
    report = (
        {"schema": CALIBRATION_SCHEMA, "fp16": half.report}
        | equalized
        | {"int8_convolutions": counts[0], "convolutions": counts[1]}
        | run.report
    )
    write_json(folder / "calibration.json", report)
    write_json(folder / "images.json", images.table())
    if settings.tensorrt8:
        newer, for_8 = (
            listed(Path(files[precision]).name for precision in ("fp16", "int8")) for files in (ONNX, TENSORRT8)
        )
        log.info("  wrote %s; for TensorRT 8.6 %s", newer, for_8)
    log.info(
        "  INT8: %s, %d of %s; %s on %s",
        *(scales.method, counts[0], count(counts[1], "convolution"), words(run.result)),
        count(len(held_out), "held-out image"),
    )
    return {"calibration_images": seen + len(held_out), "method": scales.method, **images.pixels.result()}


def _inside(folder: Path, name: str) -> Path:
    """A file of the stage in the folder that is being written."""
    return folder / Path(name).name


def calibration_key(context: Context, card: ModelCard) -> dict[str, Any]:
    """What scales are true of: the model, the images, the preprocessing and the recipe's way to quantise."""
    return {
        "model_sha256": sha256_file(context.root / ONNX["fp32"]),
        "images_sha256": context.images.fingerprint("calibration"),
        "preprocessing": card.preprocessing.to_dict(values=False),
        "decode": card.decode.to_json(),
        "quantize": asdict(context.recipe.quantize),
    }


class CalibrationImages:
    """The calibration images: those that give scales, in a stream, and those held out, which judge them."""

    def __init__(self, context: Context, card: ModelCard) -> None:
        recipe = context.recipe
        settings = recipe.quantize
        check_split_sizes(context.images, {"calibration": settings.min_images})
        check_classes(context.images, card.classes)
        samples = context.images.splits["calibration"][: settings.max_images]
        held = max(1, round(len(samples) * settings.held_out))
        self._scaling, self._held_out = samples[:-held], samples[-held:]
        self._names = context.images.table("calibration")[: settings.max_images]
        self._batch_size = settings.batch_size
        self.pixels = Pixels(card.decode, recipe.data.max_bad_images)

    def batches(self, description: str) -> Iterator[np.ndarray]:
        """The images that give scales; those found unreadable are not tried again."""
        readable: Sequence[Sample] = [s for s in self._scaling if s.name not in self.pixels.skipped]
        return (batch for batch, _ in self.pixels.batches(readable, self._batch_size, f"  {description}"))

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of the images that judge."""
        return self.pixels.all(self._held_out, "  held-out images")

    def table(self) -> dict[str, Any]:
        """What the record says of them."""
        split = len(self._scaling)
        return {"calibration": self._names[:split], "held_out": self._names[split:]}


def best_method(results: Mapping[str, Comparison], budget: Budget) -> str:
    """The name of the method that meets the budget with the best SQNR; where none meets it, of all.

    Among those within half a decibel of it the best agreement decides.
    """
    met = {name: found for name, found in results.items() if budget.met_by(found)} or results
    best = max(found.sqnr_db for found in met.values())
    close = [name for name, found in met.items() if found.sqnr_db >= best - _TIE_DB or found.sqnr_db == best]
    return max(close, key=lambda name: (results[name].top1_agreement, results[name].sqnr_db))


class _Quantization:
    """One model on its way to INT8, each choice made on held-out images and written down."""

    def __init__(self, context: Context, base: Equalized, held_out: HeldOut, kept: dict[str, Kept]) -> None:
        limits = context.recipe.verify.thresholds.int8
        self._settings = context.recipe.quantize
        self._budget = Budget(limits.top1_agreement, limits.accuracy_drop, limits.sqnr_db)
        self._base, self._held_out, self.kept = base, held_out, kept
        self._maps: dict[str, MeanMaps] | None = None
        self._scales: Scales
        self.result: Comparison
        self.report: dict[str, Any] = {"budget": str(self._budget)}

    def model(self, kept: dict[str, Kept]) -> onnx.ModelProto:
        """The float model whose rounding gives the INT8 model: equalized, biases corrected for what is quantised."""
        if self._maps is None:
            return self._base.model
        return correct_biases(self._base.model, self._maps, kept)[0]

    def _judge(self, kept: dict[str, Kept], scales: Scales | None = None) -> Comparison:
        candidate, _ = quantize(self.model(kept), scales or self._scales, base="fp32", kept=kept)
        return self._held_out.judge(candidate)

    def choose_method(self, candidates: dict[str, Scales]) -> Scales:
        """The scales of the best method, see `best_method`."""
        results: dict[str, Comparison] = {}
        for name in progress_bar(candidates, desc="  methods", unit="method"):
            results[name] = self._judge(self.kept, candidates[name])
        chosen = best_method(results, self._budget)
        self._scales, self.result = candidates[chosen], results[chosen]
        self.report |= {"method": chosen, "methods": {name: summary(found) for name, found in results.items()}}
        return self._scales

    def correct(self, maps: dict[str, MeanMaps]) -> None:
        """Correct the biases, and go back if that does not bring the logits closer."""
        before, self._maps = self.result, maps
        after = self._judge(self.kept)
        used = after.sqnr_db > before.sqnr_db
        if used:
            self.result = after
        else:
            self._maps = None
        self.report["bias_correction"] = {"used": used, "before": summary(before), "after": summary(after)}

    def meet_budget(self, folder: Path) -> None:
        """Measure the layers, and keep the fewest of them in FP16 that meet the recipe's thresholds."""
        met = self._budget.met_by(self.result)
        self.report |= {"all_int8": summary(self.result), "kept": [], "budget_met": met}
        settings = self._settings
        if settings.sensitivity == "never" or (met and settings.sensitivity == "auto"):
            return
        part = self._held_out.first(settings.sensitivity_images)
        with progress_bar(desc="  sensitivity", unit="layer") as bar:

            def advance(done: int, layers: int) -> None:
                bar.total = layers
                bar.update(done - bar.n)

            costs = measure_layers(self._base.model, self._scales, part, advance)
        if not met:
            most = int(settings.max_kept * sum(cost.op == "Conv" for cost in costs))
            before = words(self.result)
            free = [cost for cost in costs if cost.node not in self.kept]  # what FP16 can't hold stays FP32
            selection = choose_layers(free, lambda kept: self._judge({**self.kept, **kept}), self._budget, most)
            if selection.met or selection.comparison.sqnr_db > self.result.sqnr_db:
                self.kept, self.result = {**self.kept, **selection.kept}, selection.comparison
            self.report |= {"kept": list(self.kept), "budget_met": selection.met, "mixed": summary(self.result)}
            log.info("  INT8 throughout: %s; kept in float, %d: %s", before, len(self.kept), words(self.result))
            if not selection.met:
                said = missed("int8", str(self._budget), "quantize.max_kept", settings.max_kept)
                log.warning("%s sensitivity.csv says what each costs.", said)
        _write_sensitivity(folder, costs, self.kept)


def _write_sensitivity(folder: Path, costs: Sequence[LayerCost], kept: Mapping[str, Kept]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("keras_layer", "node", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept"))
    for cost in costs:
        row = (cost.keras_layer, cost.node, cost.op, f"{cost.sqnr_db:.2f}", f"{cost.noise:.3e}")
        numbers = (f"{cost.top1_agreement:.4f}", f"{cost.accuracy_drop:.4f}")
        writer.writerow((*row, *numbers, kept[cost.node].precision if cost.node in kept else "int8"))
    write_atomic(folder / "sensitivity.csv", buffer.getvalue())
    rows = [(f"{cost.keras_layer} ({cost.op})", cost.noise, cost.node in kept) for cost in costs]
    charts.sensitivity_figure(rows).savefig(folder / "sensitivity.png", dpi=120)
