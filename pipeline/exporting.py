"""The export stage: hands the trained model to ``export.keras_to_onnx``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pipeline.files import write_json
from pipeline.stage import Context

log = logging.getLogger(__name__)


def export_model(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` (uint8 NHWC in; logits, probabilities, `top_k` best classes out) and ``summary.json``."""
    from export.keras_to_onnx import export_keras
    from pipeline.loading import load_classifier

    trained = context.folder("train")
    card = context.card()
    model = load_classifier(trained / "model.keras", context.recipe.model.allow)
    log.info("  converting %s parameters (a ResNet-50 takes about half a minute)", f"{model.count_params():,}")
    summary = export_keras(
        model,
        folder / "model.onnx",
        preprocessing=card.preprocessing,
        classes=card.classes,
        opset=context.recipe.export.opset,
        metadata={"recipe": context.recipe.name, "decode": json.dumps(card.decode.to_json())},
        output=card.output,
        top_k=context.recipe.export.top_k,
    )
    facts = summary.to_dict()
    del facts["path"]  # a temporary one
    write_json(folder / "summary.json", facts)
    return {"opset": context.recipe.export.opset, "parameters": summary.parameters, "operators": summary.ops_after}
