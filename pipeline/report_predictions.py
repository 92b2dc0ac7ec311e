"""The report's section on predictions: some images with the class they got."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from pipeline.card import ModelCard
from pipeline.csv_rows import read_rows
from pipeline.errors import DataError, ImageError, PipelineError
from pipeline.files import sha256_file
from pipeline.html import Section, text
from pipeline.layout import CARD, PARITY, PREDICTIONS, REFERENCE
from pipeline.manifest import read_manifest
from pipeline.npz_files import read_arrays
from pipeline.parity_report import PASS, ParityReport, run_name
from pipeline.report_standing import other_inputs
from pipeline.words import count

THUMBNAILS = 24
LONGEST_NAME = 60
COLUMNS = ("path", "status", "class", "probability", "error")
REMEDY = "Run the infer stage again."


@dataclass(frozen=True)
class Prediction:
    """A row of ``predictions.csv``.

    Attributes:
        path: of the image; relative to the stage's folder where infer wrote it.
        name: of its class; "" where it could not be read.
        probability: of that class.
        error: why it could not be read.
    """

    path: str
    name: str
    probability: float
    error: str


def read_predictions(path: Path, classes: tuple[str, ...]) -> list[Prediction]:
    """The rows that a page shows.

    Raises:
        PipelineError: damaged, or of other classes; with file, row and column.
    """
    found = []
    for row in read_rows(path, COLUMNS, REMEDY, THUMBNAILS):
        if row.choice("status", ("ok", "error"), "ok or error") == "error":
            found.append(Prediction(row.cells["path"], "", 0.0, row.cells["error"]))
            continue
        name = row.choice("class", classes, f"a class of {CARD}")
        found.append(Prediction(row.cells["path"], name, row.number("probability", low=0.0, high=1.0), ""))
    return found


def shown_images(root: Path) -> list[Path]:
    """The images that a page would read; none where ``predictions.csv`` cannot be read."""
    try:
        rows = read_rows(root / PREDICTIONS, COLUMNS, REMEDY, THUMBNAILS)
    except PipelineError:
        return []
    return [root / "infer" / row.cells["path"] for row in rows if row.cells["status"] == "ok"]


def predictions_section(root: Path, card: ModelCard, parity: ParityReport) -> Section:
    """The section.

    Raises:
        PipelineError: ``predictions.csv`` or ``reference.npz`` is damaged.
    """
    path = root / PREDICTIONS
    manifest = read_manifest(root / "infer")
    if manifest is None or not path.is_file() or manifest.inputs.get(PARITY) != sha256_file(root / PARITY):
        return Section("Predictions", "None: a file that verification failed, or does not know, does not serve.")
    served = str(manifest.result.get("model", "a file that its record does not name"))
    backend = manifest.result.get("backend")  # an earlier version did not say
    hops = [hop for hop in parity.hops if hop.candidate == served and backend in (None, hop.backend)]
    verdict = next((hop.verdict for hop in hops if hop.verdict != PASS), PASS)
    doubt = "" if verdict == PASS else f" (verdict: {verdict})"
    if others := other_inputs(root, manifest.inputs, parity):
        doubt += f" before {text(', '.join(others))} changed"
    predictions = read_predictions(path, card.classes)
    truth = labels_by_pixels(root, card)
    figures = [_figure(one, root / "infer" / one.path, card, truth) for one in predictions]
    sample = "A test image" if len(figures) == 1 else "A sample of test images"
    named = text(run_name(served, str(backend)))
    words = f"{sample}, classified by <code>{named}</code>{doubt}; a red frame and ✗ are a wrong answer."
    return Section("Predictions", words, f'<div class="grid">{"".join(figures)}</div>')


def labels_by_pixels(root: Path, card: ModelCard) -> dict[bytes, str | None]:
    """The right class of each test image, by what its pixels hash to; None where equal pixels have two classes.

    Raises:
        PipelineError: ``reference.npz`` is damaged, or of another model.
    """
    pixels, labels = _read_reference(root / REFERENCE)
    fits = pixels.dtype == np.uint8 and pixels.shape[1:] == (*card.size, 3) and labels.shape == pixels.shape[:1]
    if not fits or not np.issubdtype(labels.dtype, np.integer):
        raise _damaged(root, f"pixels {pixels.dtype} {pixels.shape} and labels {labels.dtype} {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(card.classes):
        raise _damaged(
            root, f"labels from {labels.min()} to {labels.max()} for {count(len(card.classes), 'class', 'classes')}"
        )
    found: dict[bytes, str | None] = {}
    for image, label in zip(pixels, labels):
        name = card.classes[int(label)]
        key = _fingerprint(image)
        found[key] = name if found.get(key, name) == name else None
    return found


def _read_reference(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        held = read_arrays(path, ("pixels", "labels"))
    except (OSError, DataError) as error:
        raise PipelineError(
            f"Expected 'pixels' and 'labels' in {path}. Received: {error}. Run the verify stage again."
        ) from error
    return held["pixels"], held["labels"]


def _damaged(root: Path, received: str) -> PipelineError:
    return PipelineError(
        f"Expected 'pixels' and 'labels' of the model of {CARD} in {root / REFERENCE}. Received: {received}. "
        "Run the verify stage again."
    )


def _fingerprint(pixels: np.ndarray) -> bytes:
    return sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def _figure(one: Prediction, path: Path, card: ModelCard, truth: Mapping[bytes, str | None]) -> str:
    name = text(PurePath(one.path).name, LONGEST_NAME)
    if one.error or not one.name:
        return _without_picture(f"{name}: {text(one.error or 'not classified')}")
    answer = f'<b dir="auto">{text(one.name, LONGEST_NAME)}</b> {one.probability:.0%}'
    if not path.is_file():
        return _without_picture(f"{name}: {answer}; there is no such file here")
    try:
        pixels = card.decode.pixels(path)
    except ImageError as error:
        return _without_picture(f"{name}: {answer}; {text(error)}")
    key = _fingerprint(pixels)
    if key not in truth:  # whatever it is, it is not what was classified: it is not shown
        return _without_picture(f"{name}: {answer}; the file is no longer a test image that was verified")
    label = truth[key]
    wrong = label is not None and label != one.name
    kind = "" if label is None else "wrong" if wrong else "right"
    caption = f'✗ {answer}<br>is <span dir="auto">{text(label, LONGEST_NAME)}</span>' if wrong else answer
    seen = f"{name}, taken for {text(one.name, LONGEST_NAME)}"
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{_png(pixels)}" alt="{seen}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _without_picture(caption: str) -> str:
    return f'<figure class="missing"><figcaption>{caption}</figcaption></figure>'


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((160, 160))
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
