"""The parts of the quantize stage: calibration images for the search, and the files that hold its result."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from export.files import write_atomic
from export.fp16.convert import TENSORRT8_OPSET
from export.int8.bias_correction import added_to_biases
from export.int8.options import SearchOptions
from export.int8.placement import Kept
from export.int8.qdq import quantize
from export.int8.report import CalibrationReport, PlacementReport
from export.int8.search import SearchResult, search
from export.int8.sensitivity import Budget, LayerCost
from export.int8.simulate import HeldOut, Judged
from export.onnx_passes.file import load_model, save_model
from export.records import to_json
from export.words import count, listed, percent
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.paths import ONNX, ROUNDING, TENSORRT8, TENSORS
from pipeline.artifacts.results import Quantized
from pipeline.artifacts.tensor_changes import write_changes
from pipeline.data.dataset import ImageSet, Pixels, check_classes, check_readable
from pipeline.data.splits import check_split_sizes
from pipeline.models.model_card import ModelCard
from pipeline.quantization.advice import missed_budget, turned_off
from pipeline.recipe.schema import Quantize, Thresholds
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)

_CACHE_BYTES = 512 * 2**20  # decoded images up to this size stay in memory; more are decoded in every pass


def quantize_model(
    path: Path,
    images: CalibrationImages,
    settings: Quantize,
    *,
    fp16: Thresholds,
    int8: Thresholds,
    out: Path,
) -> Quantized:
    """Write the FP16 and the INT8 model, and the record of the search.

    The files are ``model.fp16.onnx``, ``model.int8.onnx``, ``scales.json``, ``rounding.json``, ``placement.json``,
    ``calibration.json`` and ``images.json``; ``tensors.npz`` with what tensors hold in place of Keras' values;
    ``sensitivity.csv`` if layers were measured;
    with ``quantize.tensorrt8`` also both models at opset 17: ``model.fp16-trt8.onnx``, ``model.int8-trt8.onnx``.

    Args:
        path: the FP32 model.
        images: the calibration images.
        settings: the recipe's section.
        fp16: thresholds of FP16.
        int8: thresholds of INT8.
        out: the stage's folder, empty.

    Returns:
        Quantized: what the manifest records.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or unreadable ones above its limit.
        ProjectError: weights, activations or images that give no valid scale.
    """
    model = load_model(path)
    readable = sum(len(batch) for batch in images.batches("decoding"))
    pixels, labels = images.held_out()
    check_readable(readable + len(labels), settings.min_images, "calibration", images.pixels)
    result = search(
        model,
        images.batches,
        HeldOut.of(model, pixels, labels, settings.batch_size),
        search_options(settings, fp16, int8),
        lambda names, description, unit: progress_bar(names, desc=f"  {description}", unit=unit),
    )
    _write(result, images, path, settings, out)
    _log_result(result, settings)
    return Quantized(readable + len(labels), result.scales.method, images.pixels.skipped)


def search_options(settings: Quantize, fp16: Thresholds, int8: Thresholds) -> SearchOptions:
    """Return what the search is asked for by a recipe's section and its thresholds of FP16 and INT8."""
    error = fp16.relative_error if isinstance(fp16.relative_error, float) else None  # "auto" is for FP32 only
    return SearchOptions(
        method=settings.method,
        shift=settings.shift,
        rounding=settings.rounding,
        rounding_images=settings.rounding_images,
        trunk=settings.trunk,
        effort=settings.effort,
        equalize=settings.equalize,
        bias_correction=settings.bias_correction,
        sensitivity=settings.sensitivity,
        sensitivity_images=settings.sensitivity_images,
        max_kept=settings.max_kept,
        max_kept_fp32=settings.max_kept_fp32,
        int8=Budget(int8.top1_agreement, int8.accuracy_drop, int8.sqnr_db),
        fp16=Budget(fp16.top1_agreement, fp16.accuracy_drop, fp16.sqnr_db, error),
    )


def _write(result: SearchResult, images: CalibrationImages, path: Path, settings: Quantize, out: Path) -> None:
    save_model(result.fp16.model, out / Path(ONNX["fp16"]).name)
    save_model(result.int8, out / Path(ONNX["int8"]).name)
    if settings.tensorrt8:
        older = quantize(result.model, result.scales, weights=result.weights, base="fp32", kept=result.kept).model
        save_model(result.fp16.at_opset(TENSORRT8_OPSET), out / Path(TENSORRT8["fp16"]).name)
        save_model(older, out / Path(TENSORRT8["int8"]).name)
    write_atomic(out / "scales.json", replace(result.scales, key=images.key(path)).to_json())
    write_json(out / "placement.json", PlacementReport(tuple(result.placements)))
    write_json(out / "calibration.json", result.report)
    write_json(out / Path(ROUNDING).name, result.rounding)
    write_json(out / "images.json", images.table())
    corrections = added_to_biases(load_model(path), result.model, result.factors)
    write_changes(out / Path(TENSORS).name, result.factors, result.offsets, corrections)
    if result.costs:
        write_atomic(out / "sensitivity.csv", _sensitivity_csv(result.costs, result.kept))


def _log_result(result: SearchResult, settings: Quantize) -> None:
    report = result.report
    if settings.sensitivity != "never":
        if not report.fp16.budget_met:
            log.warning(
                "%s", missed_budget("fp16", report.fp16.budget, "quantize.max_kept_fp32", settings.max_kept_fp32)
            )
        if not report.budget_met:
            log.warning(
                "%s sensitivity.csv has the cost of each.",
                missed_budget("int8", report.budget, "quantize.max_kept", settings.max_kept, off=turned_off(settings)),
            )
    if not report.convolutions:
        log.warning("this model has no convolution: few of its layers can be INT8, the rest is FP16 (placement.json)")
    if settings.tensorrt8:
        log.info(
            "  wrote %s; for TensorRT 8.6 %s",
            *(listed(Path(files[precision]).name for precision in ("fp16", "int8")) for files in (ONNX, TENSORRT8)),
        )
    log.info("  INT8: %s", _how(report))
    log.info("  INT8 on %s: %s", count(report.held_out_images, "held-out image"), _how_close(result.result))


def _how(report: CalibrationReport) -> str:
    """Say how the INT8 graph was made."""
    shift, second = report.shift, report.rounding
    parts = (
        f"scales by {report.method}",
        f"{len(shift.shifted) if shift.used else 'none'} of {count(shift.quantized, 'tensor')} shifted",
        f"weights rounded {'by second order' if second is not None and second.used else 'to nearest'}",
        f"{report.int8_convolutions} of {count(report.convolutions, 'convolution')}",
    )
    return ", ".join(parts)


def _how_close(judged: Judged) -> str:
    """Say how close the INT8 graph is to FP32."""
    images = f"median image {judged.median_db:.1f} dB, worst {judged.worst_db:.1f} dB"
    return f"SQNR {judged.sqnr_db:.1f} dB ({images}), agreement {percent(judged.top1_agreement)}"


class CalibrationImages:
    """The calibration images: those that give scales, iterated in every pass, and those held out, which judge them.

    Args:
        images: the image set.
        card: how they are decoded, and the names of the classes.
        settings: how many are used, and the share of these that is held out.
        max_bad_images: how many may be unreadable.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or data of other classes than the model's.
    """

    def __init__(self, images: ImageSet, card: ModelCard, settings: Quantize, max_bad_images: int) -> None:
        check_split_sizes(images, {"calibration": settings.min_images})
        check_classes(images, card.classes)
        samples = images.splits["calibration"][: settings.max_images]
        number = max(1, round(len(samples) * settings.held_out))
        self._scaling, self._held_out = samples[:-number], samples[-number:]
        self._images, self._card, self._settings = images, card, settings
        self._decoded: list[np.ndarray] | None = None
        self.pixels = Pixels(card.decode, max_bad_images)

    def batches(self, description: str) -> Iterable[np.ndarray]:
        """Iterate over the images that give scales, uint8 NHWC; unreadable ones are not tried again."""
        if self._decoded is None:
            return self._decode(description)
        return progress_bar(self._decoded, desc=f"  calibration: {description}", unit="batch")

    def _decode(self, description: str) -> Iterator[np.ndarray]:
        height, width = self.pixels.decode.size
        fit = len(self._scaling) * height * width * 3 <= _CACHE_BYTES
        readable = [sample for sample in self._scaling if sample.name not in self.pixels.skipped]
        decoded = []
        for batch, _ in self.pixels.batches(readable, self._settings.batch_size, f"  calibration: {description}"):
            if fit:
                decoded.append(batch)
            yield batch
        if fit:
            self._decoded = decoded

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the held-out images: pixels uint8 (N, height, width, 3), labels int64 (N,)."""
        return self.pixels.all(self._held_out, "  held-out images")

    def key(self, model: Path) -> dict[str, object]:
        """Return what scales are valid for: the model, the images, the preprocessing and the recipe's section."""
        return {
            "model_sha256": sha256_file(model),
            "images_sha256": self._images.fingerprint("calibration"),
            "preprocessing": self._card.preprocessing.to_dict(values=False),
            "decode": to_json(self._card.decode),
            "quantize": asdict(self._settings),
        }

    def table(self) -> dict[str, object]:
        """Return the table of the images for ``images.json``, those that give scales and those held out."""
        rows = self._images.table("calibration")[: self._settings.max_images]
        return {"calibration": rows[: len(self._scaling)], "held_out": rows[len(self._scaling) :]}


def _sensitivity_csv(costs: Sequence[LayerCost], kept: Mapping[str, Kept]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("keras_layer", "node", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept"))
    writer.writerows(
        (
            *(cost.keras_layer, cost.node, cost.op, f"{cost.sqnr_db:.2f}", f"{cost.noise:.3e}"),
            *(f"{cost.top1_agreement:.4f}", f"{cost.accuracy_drop:.4f}"),
            kept[cost.node].precision if cost.node in kept else "int8",
        )
        for cost in costs
    )
    return buffer.getvalue()
