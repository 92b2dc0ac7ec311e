"""The quantize stage: the FP16 graph, and the INT8 graphs with scales from the calibration images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.card import read_card
from pipeline.inputs import Inputs, Required, Split
from pipeline.layout import CARD, ONNX
from pipeline.recipe import Recipe
from pipeline.stage import Stage


def run(inputs: Inputs, settings: Recipe, out: Path) -> dict[str, Any]:
    """Write the models, and how they came about; see `pipeline.quantizing.quantize_model`."""
    from pipeline.quantizing import CalibrationImages, quantize_model

    card, thresholds = read_card(inputs.path(CARD)), settings.verify.thresholds
    images = CalibrationImages(inputs.images, card, settings.quantize, settings.data.max_bad_images)
    result = quantize_model(
        inputs.path(ONNX["fp32"]), images, settings.quantize, fp16=thresholds.fp16, int8=thresholds.int8, out=out
    )
    return {name: value for name, value in asdict(result).items() if value != {}}


def bytes_per_weight(recipe: Recipe) -> int:
    """What one weight of the model takes in all files together, at least."""
    usual, older = 2 + 2, 2 + 4  # FP16, and INT8 on FP16; for TensorRT 8.6 FP16, and INT8 on FP32
    return usual + older if recipe.quantize.tensorrt8 else usual


STAGE = Stage(
    "quantize",
    inputs=(Required(CARD), Required(ONNX["fp32"]), Split("calibration", minimum="quantize.min_images")),
    keys=("quantize", "verify.thresholds.fp16", "verify.thresholds.int8", "data.max_bad_images"),
    run=run,
    bytes_per_weight=bytes_per_weight,
)
