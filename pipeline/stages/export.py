"""The export stage: the trained model as ONNX, by ``export.from_keras.convert``."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.records import to_json
from pipeline.artifacts.files import write_json
from pipeline.artifacts.inputs import Inputs, Required
from pipeline.artifacts.paths import CARD, KERAS
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Recipe
from pipeline.workflow.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What the manifest records.

    Attributes:
        opset: opset of the ONNX file.
        parameters: number of floating-point values in it.
        operators: number of nodes by operator.
    """

    opset: int
    parameters: int
    operators: Mapping[str, int]


def run(inputs: Inputs, settings: Recipe, out: Path) -> Exported:
    """Write ``model.onnx`` (uint8 NHWC in; logits, probabilities, `top_k` best classes out) and ``summary.json``."""
    from pipeline.keras_files.load import load_classifier

    card = read_card(inputs.path(CARD))
    model = load_classifier(inputs.path(KERAS), settings.model.allow)
    log.info("  converting %s parameters (a ResNet-50 takes about half a minute)", f"{model.count_params():,}")
    from export.from_keras.convert import export_keras  # imports TensorFlow, which loading started without its messages

    summary = export_keras(
        model,
        out / "model.onnx",
        preprocessing=card.preprocessing,
        classes=card.classes,
        opset=settings.export.opset,
        metadata={"recipe": settings.name, "decode": json.dumps(to_json(card.decode))},
        output=card.output,
        top_k=settings.export.top_k,
    )
    write_json(out / "summary.json", summary)
    return Exported(settings.export.opset, summary.parameters, summary.ops_after)


STAGE = Stage(
    "export",
    inputs=(Required(KERAS), Required(CARD)),
    keys=("name", "export", "model.allow"),
    run=run,
    result=Exported,
    bytes_per_weight=lambda _: 4,  # FP32
)
