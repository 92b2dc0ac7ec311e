"""The quantize stage: the FP16 graph, and the INT8 graphs with scales from the calibration images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.card import read_card
from pipeline.inputs import Inputs, Required, Split
from pipeline.layout import CARD, ONNX
from pipeline.recipe import Recipe
from pipeline.stage import Stage


@dataclass(frozen=True)
class Quantized:
    """What the manifest records.

    Attributes:
        calibration_images: that were read, those held out among them.
        method: of the scales.
        skipped_images: unreadable ones, by name, and why.
    """

    calibration_images: int
    method: str
    skipped_images: Mapping[str, str] = field(default_factory=dict)


def run(inputs: Inputs, settings: Recipe, out: Path) -> Quantized:
    """Write the models, and how they came about; see `pipeline.quantizing.quantize_model`."""
    from pipeline.quantizing import CalibrationImages, quantize_model

    card, thresholds = read_card(inputs.path(CARD)), settings.verify.thresholds
    images = CalibrationImages(inputs.images, card, settings.quantize, settings.data.max_bad_images)
    return quantize_model(
        inputs.path(ONNX["fp32"]), images, settings.quantize, fp16=thresholds.fp16, int8=thresholds.int8, out=out
    )


def bytes_per_weight(recipe: Recipe) -> int:
    """What one weight of the model takes in all files together, at least."""
    usual, older = 2 + 2, 2 + 4  # FP16, and INT8 on FP16; for TensorRT 8.6 FP16, and INT8 on FP32
    return usual + older if recipe.quantize.tensorrt8 else usual


STAGE = Stage(
    "quantize",
    inputs=(Required(CARD), Required(ONNX["fp32"]), Split("calibration", minimum="quantize.min_images")),
    keys=("quantize", "verify.thresholds.fp16", "verify.thresholds.int8", "data.max_bad_images"),
    run=run,
    result=Quantized,
    bytes_per_weight=bytes_per_weight,
)
