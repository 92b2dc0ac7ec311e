"""The layers stage: every Keras layer's output against its tensor in each file; run by ``verify --layers``."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.words import count
from pipeline.artifacts.files import write_json
from pipeline.artifacts.inputs import Inputs, Optional, Required
from pipeline.artifacts.paths import CARD, KERAS, LAYERS, PARITY, REFERENCE, TENSORS
from pipeline.recipe.schema import Recipe
from pipeline.stages.declared import ENGINES, ONNX_FILES
from pipeline.workflow.environment import runtime_environment
from pipeline.workflow.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """The manifest's record.

    Attributes:
        images: Number of images.
        first_below: First layer of each run whose own error is too large.
        reduced: Folder of the smallest part that fails, of each run that was shrunk.
    """

    images: int
    first_below: Mapping[str, str]
    reduced: Mapping[str, str] = field(default_factory=dict)


def run(inputs: Inputs, settings: Recipe, out: Path) -> Compared:
    """Write ``layers.json``.

    Raises:
        ProjectError: Keras is not here.
    """
    from pipeline.verification.layers.compare_files import compare_files, layer_table

    report = compare_files(inputs, settings, out)
    write_json(out / Path(LAYERS).name, report)
    log.info("layers on %s:\n%s", count(report.images, "test image"), layer_table(report))
    return Compared(
        report.images,
        {run.run: run.first_below for run in report.runs if run.first_below},
        {part.run: Path(part.files[0]).parent.as_posix() for part in report.reduced},
    )


STAGE = Stage(
    "layers",
    inputs=(
        *(Required(KERAS), Required(CARD), *ONNX_FILES, *ENGINES),
        *(Optional(TENSORS), Required(REFERENCE), Optional(PARITY)),
    ),
    keys=("verify.layer_images", "verify.reduce", "verify.thresholds", "runtime", "model.allow"),
    run=run,
    result=Compared,
    environment=runtime_environment,
)
