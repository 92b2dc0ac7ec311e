"""The quantize stage: the FP16 graph, and the INT8 graphs with scales from the calibration images."""

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
from export.int8.options import SearchOptions
from export.int8.placement import Kept
from export.int8.qdq import quantize
from export.int8.search import SearchResult, search
from export.int8.sensitivity import Budget, LayerCost
from export.int8.simulate import HeldOut, words
from export.onnx_passes.file import load_model, save_model
from export.records import to_json
from export.words import count, listed
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.paths import ONNX, TENSORRT8
from pipeline.artifacts.results import Quantized
from pipeline.data.dataset import ImageSet, Pixels, check_classes, check_readable
from pipeline.data.splits import check_split_sizes
from pipeline.models.model_card import ModelCard
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
    """Write the FP16 and the INT8 model, and how they came about.

    ``model.fp16.onnx``, ``model.int8.onnx``, ``scales.json``, ``placement.json``, ``calibration.json``,
    ``images.json``; ``sensitivity.csv`` where layers were measured; where the recipe says ``quantize.tensorrt8``, both
    models at opset 17 besides: ``model.fp16-trt8.onnx``, ``model.int8-trt8.onnx``.

    Args:
        path: the FP32 model.
        images: the calibration images.
        settings: the recipe's section.
        fp16: what is asked of FP16.
        int8: what is asked of INT8.
        out: the stage's folder, empty.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or unreadable ones above its limit.
        ProjectError: weights, activations or images that no scale can come of.
    """
    model = load_model(path)
    readable = sum(len(batch) for batch in images.batches("decoding"))
    pixels, labels = images.held_out()
    check_readable(readable + len(labels), settings.min_images, "calibration", images.pixels)
    result = search(
        model,
        images.batches,
        HeldOut.of(model, pixels, labels, settings.batch_size),
        _options(settings, fp16, int8),
        lambda names, what, unit: progress_bar(names, desc=f"  {what}", unit=unit),
    )
    _write(result, images, path, settings, out)
    _tell(result, settings)
    return Quantized(readable + len(labels), result.scales.method, images.pixels.skipped)


def _options(settings: Quantize, fp16: Thresholds, int8: Thresholds) -> SearchOptions:
    error = fp16.relative_error if isinstance(fp16.relative_error, float) else None  # auto is about float32
    return SearchOptions(
        method=settings.method,
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
        older, _ = quantize(result.model, result.scales, base="fp32", kept=result.kept)
        save_model(result.fp16.at_opset(TENSORRT8_OPSET), out / Path(TENSORRT8["fp16"]).name)
        save_model(older, out / Path(TENSORRT8["int8"]).name)
    write_atomic(out / "scales.json", replace(result.scales, key=images.key(path)).to_json())
    write_json(out / "placement.json", [asdict(row) for row in result.placements])
    write_json(out / "calibration.json", to_json(result.report))
    write_json(out / "images.json", images.table())
    if result.costs:
        write_atomic(out / "sensitivity.csv", _sensitivity_csv(result.costs, result.kept))


def _tell(result: SearchResult, settings: Quantize) -> None:
    report = result.report
    if settings.sensitivity != "never":
        if not report.fp16.budget_met:
            log.warning("%s", missed("fp16", report.fp16.budget, "quantize.max_kept_fp32", settings.max_kept_fp32))
        if not report.budget_met:
            said = missed("int8", report.budget, "quantize.max_kept", settings.max_kept)
            log.warning("%s sensitivity.csv says what each costs.", said)
    if not report.convolutions:
        log.warning(
            "this model has no convolution: INT8 has a rule for little of it, the rest is FP16 (placement.json)"
        )
    if settings.tensorrt8:
        newer, for_8 = (
            listed(Path(files[precision]).name for precision in ("fp16", "int8")) for files in (ONNX, TENSORRT8)
        )
        log.info("  wrote %s; for TensorRT 8.6 %s", newer, for_8)
    log.info(
        "  INT8: %s, %d of %s; %s on %s",
        *(report.method, report.int8_convolutions, count(report.convolutions, "convolution"), words(result.result)),
        count(report.held_out_images, "held-out image"),
    )


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


class CalibrationImages:
    """The calibration images: those that give scales, once for each pass, and those held out, which judge them.

    Args:
        images: the image set.
        card: says how they are decoded, and what the classes are.
        settings: how many are taken, and how many of these are held out.
        max_bad_images: so many may be unreadable.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or data of other classes than the model's.
    """

    def __init__(self, images: ImageSet, card: ModelCard, settings: Quantize, max_bad_images: int) -> None:
        check_split_sizes(images, {"calibration": settings.min_images})
        check_classes(images, card.classes)
        samples = images.splits["calibration"][: settings.max_images]
        held = max(1, round(len(samples) * settings.held_out))
        self._scaling, self._held_out = samples[:-held], samples[-held:]
        self._images, self._card, self._settings = images, card, settings
        self._decoded: list[np.ndarray] | None = None
        self.pixels = Pixels(card.decode, max_bad_images)

    def batches(self, description: str) -> Iterable[np.ndarray]:
        """The images that give scales, uint8 NHWC; those found unreadable are not tried again."""
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
        """Pixels and labels of the images that judge."""
        return self.pixels.all(self._held_out, "  held-out images")

    def key(self, model: Path) -> dict[str, object]:
        """What scales are true of: the model, the images, the preprocessing and the recipe's way to quantise."""
        return {
            "model_sha256": sha256_file(model),
            "images_sha256": self._images.fingerprint("calibration"),
            "preprocessing": self._card.preprocessing.to_dict(values=False),
            "decode": to_json(self._card.decode),
            "quantize": asdict(self._settings),
        }

    def table(self) -> dict[str, object]:
        """What the record says of them."""
        names = self._images.table("calibration")[: self._settings.max_images]
        split = len(self._scaling)
        return {"calibration": names[:split], "held_out": names[split:]}


def _sensitivity_csv(costs: Sequence[LayerCost], kept: Mapping[str, Kept]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("keras_layer", "node", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept"))
    for cost in costs:
        row = (cost.keras_layer, cost.node, cost.op, f"{cost.sqnr_db:.2f}", f"{cost.noise:.3e}")
        numbers = (f"{cost.top1_agreement:.4f}", f"{cost.accuracy_drop:.4f}")
        writer.writerow((*row, *numbers, kept[cost.node].precision if cost.node in kept else "int8"))
    return buffer.getvalue()
