"""The quantize stage: the FP16 graph, and the INT8 graph with scales from the calibration images."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.card import ModelCard
from pipeline.data import Pixels, check_readable, check_split_sizes
from pipeline.files import sha256_file, write_atomic, write_json
from pipeline.stage import Context

log = logging.getLogger(__name__)


def quantize_model(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``model.fp16.onnx``, ``model.int8.onnx``, ``scales.json`` and ``placement.json``.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or unreadable ones above its limit.
    """
    from export.calibration import collect_scales
    from export.onnx_file import load_model, save_model
    from export.placement import placement_table, quantizable_tensors
    from export.precision import to_fp16
    from export.quantize import quantize

    settings = context.recipe.quantize
    source = context.folder("export") / "model.onnx"
    card = ModelCard.read(context.folder("train") / "model.json")
    model = load_model(source)
    save_model(to_fp16(model), folder / "model.fp16.onnx")

    check_split_sizes(context.images, {"calibration": settings.min_images})
    samples = context.images.splits["calibration"][: settings.max_images]
    pixels = Pixels(card.size, context.recipe.data.resize, context.recipe.data.max_bad_images)
    batches = (batch for batch, _ in pixels.batches(samples, settings.batch_size, "calibration"))
    scales = collect_scales(
        model,
        batches,
        quantizable_tensors(model),
        model_sha256=sha256_file(source),
        images_sha256=context.images.fingerprint("calibration"),
        preprocessing=card.preprocessing,
    )
    check_readable(scales.images, settings.min_images, "calibration", pixels)
    write_atomic(folder / "scales.json", scales.to_json())
    quantized, placements = quantize(model, scales)
    save_model(quantized, folder / "model.int8.onnx")
    write_json(folder / "placement.json", [asdict(row) for row in placements])
    write_json(folder / "images.json", {"calibration": context.images.table("calibration")[: settings.max_images]})
    log.debug("placement of INT8:\n%s", placement_table(placements))
    return {"calibration_images": len(samples) - len(pixels.skipped), **pixels.result()}
