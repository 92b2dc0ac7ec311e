"""The verify stage: Keras' answers on the test images, and how close each exported file comes to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.inputs import Consulted, Inputs, Required, Split
from pipeline.layout import CARD, KERAS, REFERENCE
from pipeline.recipe import Recipe
from pipeline.runtime_environment import runtime_environment
from pipeline.stage import Stage
from pipeline.stages.declared import ENGINES, ONNX_FILES


def run(inputs: Inputs, settings: Recipe, out: Path) -> dict[str, Any]:
    """Write ``reference.npz`` and ``parity.json``; see `pipeline.verify.verify_model`."""
    from pipeline.verify import verify_model

    return verify_model(inputs, settings, out)


STAGE = Stage(
    "verify",
    inputs=(
        *(Required(KERAS), Required(CARD), *ONNX_FILES, *ENGINES),
        Split("test", minimum="verify.min_images"),
        *(Consulted(REFERENCE), Consulted("verify/manifest.json")),  # Keras need not answer the same twice
    ),
    keys=("verify", "runtime", "model.allow", "data.max_bad_images"),
    run=run,
    environment=runtime_environment,
)
