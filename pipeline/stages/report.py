"""The report stage: one self-contained HTML page of what the other stages wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.gpu_evidence import FOLDER as EVIDENCE
from pipeline.artifacts.inputs import CommandLine, Derived, Inputs, Optional, Required
from pipeline.artifacts.manifest import MANIFEST
from pipeline.artifacts.paths import (
    BENCHMARK,
    CARD,
    DIAGNOSIS,
    IMAGE_RESULTS,
    KERAS,
    LAYERS,
    ONNX,
    PARITY,
    PREDICTIONS,
    REFERENCE,
    Artifacts,
)
from pipeline.artifacts.stage_files import shown_images
from pipeline.recipe.load import SECTIONS
from pipeline.recipe.schema import Recipe
from pipeline.reporting.validity import SHOWN_STAGES
from pipeline.stages.declared import ENGINES
from pipeline.workflow.stage import Stage


@dataclass(frozen=True)
class Reported:
    """What the manifest records: the verdict that the page shows."""

    verdict_shown: str


def run(inputs: Inputs, settings: Recipe, out: Path) -> Reported:
    """Write ``report.html``; see `pipeline.reporting.page.write_report`."""
    from pipeline.reporting.page import write_report

    return Reported(write_report(inputs, settings, inputs.invocation, out))


def _shown_images(artifacts: Artifacts, recorded: Mapping[str, str]) -> dict[str, str]:
    """Digest the images that the page shows; for one that is not on this machine the recorded digest counts."""
    digests = {}
    for number, path in enumerate(shown_images(artifacts)):
        name = f"infer/image {number}"
        if path is not None and path.is_file():
            digests[name] = sha256_file(path)
        elif name in recorded:
            digests[name] = recorded[name]
    return digests


STAGE = Stage(
    "report",
    inputs=(
        *(Required(CARD), Required("train/history.json"), Optional(KERAS), Optional("train/samples.npz")),
        *(Optional(ONNX["fp32"]), Optional("quantize/*.onnx"), Optional("quantize/sensitivity.csv")),
        *(Required("quantize/placement.json"), Required("quantize/calibration.json")),
        *(*ENGINES, Required(PARITY), Required(REFERENCE), Optional(BENCHMARK), Optional(f"{EVIDENCE}/*.json")),
        *(Optional(IMAGE_RESULTS), Optional(DIAGNOSIS), Optional(LAYERS)),
        *(Optional(PREDICTIONS), Derived((PREDICTIONS, "infer/images/*"), _shown_images)),
        *(Optional(f"{stage}/{MANIFEST}") for stage in SHOWN_STAGES),
        CommandLine(),
    ),
    keys=("name", "description", *SECTIONS),  # the page shows all that differs from the defaults
    run=run,
    result=Reported,
)
