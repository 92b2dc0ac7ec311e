"""The quantize stage: the FP16 graph, and the INT8 graphs with scales from the calibration images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.card import read_card
from pipeline.inputs import Inputs, Required, Split
from pipeline.layout import CARD, ONNX
from pipeline.recipe import Recipe
from pipeline.stage import Stage


def run(inputs: Inputs, settings: Recipe, out: Path) -> dict[str, Any]:
    """Write the models, and how they came about; see `pipeline.quantizing.quantize_model`."""
    from pipeline.quantizing import quantize_model

    card = partial(read_card, inputs.path(CARD))
    context: Any = SimpleNamespace(recipe=settings, root=inputs.root, images=inputs.images, card=card)
    return quantize_model(context, out)


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
