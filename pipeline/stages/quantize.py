"""The quantize stage: the FP16 graph, and the INT8 graphs with scales from the calibration images."""

from pathlib import Path

from pipeline.artifacts.inputs import Inputs, Required, Split
from pipeline.artifacts.paths import CARD, ONNX
from pipeline.artifacts.results import Quantized
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Recipe
from pipeline.workflow.stage import Stage


def run(inputs: Inputs, settings: Recipe, out: Path) -> Quantized:
    """Write the models and the record of the search; see `pipeline.quantization.quantize.quantize_model`."""
    from pipeline.quantization.quantize import CalibrationImages, quantize_model

    card, thresholds = read_card(inputs.path(CARD)), settings.verify.thresholds
    images = CalibrationImages(inputs.images, card, settings.quantize, settings.data.max_bad_images)
    return quantize_model(
        inputs.path(ONNX["fp32"]), images, settings.quantize, fp16=thresholds.fp16, int8=thresholds.int8, out=out
    )


def bytes_per_weight(recipe: Recipe) -> int:
    """Return how many bytes one weight of the model takes in all files together, at least."""
    usual, older = 2 + 1, 2 + 4  # FP16, and INT8 codes; for TensorRT 8.6 FP16, and INT8 as FP32 values
    return usual + older if recipe.quantize.tensorrt8 else usual


# What a ResNet-20 takes beside its weights, the smallest backbone: scales, biases and nodes of two graphs, and records.
FIXED_BYTES = 120_000

STAGE = Stage(
    "quantize",
    inputs=(Required(CARD), Required(ONNX["fp32"]), Split("calibration", minimum="quantize.min_images")),
    keys=("quantize", "verify.thresholds.fp16", "verify.thresholds.int8", "data.max_bad_images"),
    run=run,
    result=Quantized,
    bytes_per_weight=bytes_per_weight,
    fixed_bytes=FIXED_BYTES,
)
