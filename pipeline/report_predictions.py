"""The report's section on predictions: some images with the class they got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePath

import numpy as np

from pipeline.artifacts import Artifacts
from pipeline.card import ModelCard
from pipeline.errors import ImageError
from pipeline.html import Section, section
from pipeline.layout import PARITY, PREDICTIONS, REFERENCE
from pipeline.manifest import read_result, read_stage
from pipeline.parity_report import PASS, ParityReport, run_name
from pipeline.pictures import data_uri, read_labelled
from pipeline.predictions import Prediction, image_file, read_predictions
from pipeline.report_standing import digest_now, other_inputs
from pipeline.stage_records import Inferred


@dataclass(frozen=True)
class Figure:
    """An image of the page with what was answered.

    Attributes:
        file: its name.
        name: of the class that it got.
        probability: of that class.
        picture: as a data URI; "": it is not shown.
        missing: why.
        label: its right class; None: not known.
    """

    file: str
    name: str
    probability: float
    picture: str = ""
    missing: str = ""
    label: str | None = None


def predictions_section(artifacts: Artifacts, card: ModelCard, parity: ParityReport) -> Section:
    """The section.

    Raises:
        ProjectError: ``predictions.csv`` or ``reference.npz`` is damaged.
    """
    manifest = read_stage(artifacts, "infer")
    judged = manifest is not None and manifest.inputs.get(PARITY) == digest_now(artifacts, PARITY)
    if manifest is None or not judged or not artifacts.has(PREDICTIONS):
        return section("Predictions", "no_predictions.html.j2")
    answered = read_result(manifest, Inferred)
    served = run_name(answered.model, answered.backend)
    hops = [hop for hop in parity.hops if hop.run_name == served]
    predictions = read_predictions(artifacts.path(PREDICTIONS), card.classes)
    truth = labels_by_pixels(artifacts, card)
    return section(
        "Predictions",
        "predictions.html.j2",
        served=served,
        verdict=next((hop.verdict for hop in hops if hop.verdict != PASS), PASS),
        others=other_inputs(artifacts, manifest.inputs, parity),
        figures=[_figure(one, image_file(artifacts, one.path), card, truth) for one in predictions],
    )


def labels_by_pixels(artifacts: Artifacts, card: ModelCard) -> dict[bytes, str | None]:
    """The right class of each test image, by what its pixels hash to; None where equal pixels have two classes.

    Raises:
        ProjectError: ``reference.npz`` is damaged, or of another model.
    """
    pixels, labels = read_labelled(artifacts.path(REFERENCE), card, "Run the verify stage again.")
    found: dict[bytes, str | None] = {}
    for image, label in zip(pixels, labels):
        name = card.classes[int(label)]
        key = _fingerprint(image)
        found[key] = name if found.get(key, name) == name else None
    return found


def _fingerprint(pixels: np.ndarray) -> bytes:
    return sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def _figure(one: Prediction, path: Path | None, card: ModelCard, truth: Mapping[bytes, str | None]) -> Figure:
    figure = Figure(PurePath(one.path).name, one.name, one.probability)
    if one.error or not one.name:
        return replace(figure, missing=one.error or "not classified")
    if path is None or not path.is_file():
        return replace(figure, missing="there is no such file here")
    try:
        pixels = card.decode.pixels(path)
    except ImageError as error:
        return replace(figure, missing=str(error))
    key = _fingerprint(pixels)
    if key not in truth:  # whatever it is, it is not what was classified: it is not shown
        return replace(figure, missing="the file is no longer a test image that was verified")
    return replace(figure, picture=data_uri(pixels), label=truth[key])
