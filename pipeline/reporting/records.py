"""Records that explain a verdict; the page does without one that is missing, damaged, or of something else."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from export.errors import ProjectError
from pipeline.artifacts.diagnosis import Diagnosis, read_diagnosis
from pipeline.artifacts.image_results import ImageResults, read_image_results
from pipeline.artifacts.layer_report import LayerReport, read_layers
from pipeline.artifacts.manifest import matches_manifest
from pipeline.artifacts.paths import DIAGNOSIS, IMAGE_RESULTS, KERAS, LAYERS, PARITY, Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.reporting.validity import digest_now

VERIFY_AGAIN = "Run the verify stage again."
T = TypeVar("T")


@dataclass(frozen=True)
class Explanations:
    """What explains the verdict that a page shows.

    Attributes:
        diagnosis: hints and decoding of this verdict; None: there is none.
        results: answers image by image of this verdict; None: there are none.
        layers: layers of the files that are here now; None: there is no record of them.
        why_not: why a record that is here is not shown, as a sentence, by its name.
    """

    diagnosis: Diagnosis | None
    results: ImageResults | None
    layers: LayerReport | None
    why_not: dict[str, str]


def read_explanations(artifacts: Artifacts, card: ModelCard) -> Explanations:
    """Read what explains the verdict.

    Args:
        artifacts: of a recipe.
        card: of the model, whose classes the answers have to be.
    """
    why_not: dict[str, str] = {}

    def read(name: str, reader: Callable[[Path], T], objection: Callable[[T], str]) -> T | None:
        if not artifacts.has(name):
            return None
        try:
            record = reader(artifacts.path(name))
            why_not[name] = objection(record)
        except ProjectError as error:
            why_not[name] = f"{name} is left out: {error}"
        return None if why_not[name] else record

    return Explanations(
        diagnosis=read(DIAGNOSIS, read_diagnosis, lambda record: _other_verdict(artifacts, record)),
        results=read(IMAGE_RESULTS, read_image_results, lambda record: _other_images(artifacts, card, record)),
        layers=read(LAYERS, read_layers, lambda record: _other_files(artifacts, record)),
        why_not=why_not,
    )


def _other_verdict(artifacts: Artifacts, record: Diagnosis) -> str:
    if record.parity_sha256 == digest_now(artifacts, PARITY):
        return ""
    return f"{DIAGNOSIS} is left out: it explains another verdict than {PARITY}. {VERIFY_AGAIN}"


def _other_images(artifacts: Artifacts, card: ModelCard, record: ImageResults) -> str:
    """Why results do not belong to the verdict and the model; "" if they do."""
    if not matches_manifest(artifacts, IMAGE_RESULTS):
        return f"{IMAGE_RESULTS} is left out: it is not the one that the verify stage wrote. {VERIFY_AGAIN}"
    classes = max(record.classes.max(initial=-1), record.labels.max(initial=-1)) + 1
    if (
        classes > len(card.classes)
        or not record.runs
        or min(record.labels.min(initial=0), record.classes.min(initial=0)) < -1
    ):
        return f"{IMAGE_RESULTS} is left out: it is of a model with other classes. {VERIFY_AGAIN}"
    return ""


def _other_files(artifacts: Artifacts, record: LayerReport) -> str:
    others = [name for name, digest in record.subjects.items() if digest_now(artifacts, name) != digest]
    if not others and KERAS in record.subjects:
        return ""
    return f"{LAYERS} is left out: it is of another {others[0] if others else KERAS} than the one here now."
