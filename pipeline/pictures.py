"""Labelled images of the artifacts, as a page shows them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from export.errors import ProjectError
from pipeline.card import ModelCard
from pipeline.errors import DataError
from pipeline.layout import CARD
from pipeline.npz_files import read_arrays
from pipeline.words import count


def read_labelled(path: Path, card: ModelCard, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of an .npz file and their labels.

    Args:
        path: holds "pixels" and "labels".
        card: of the model that they belong to.
        remedy: the last sentence of messages.

    Returns:
        uint8 (N, height, width, 3) as the model sees them before preprocessing; integers (N,), indices of its classes.

    Raises:
        ProjectError: the file is missing, damaged, or of another model.
    """
    try:
        held = read_arrays(path, ("pixels", "labels"))
    except (OSError, DataError) as error:
        raise ProjectError(f"Expected 'pixels' and 'labels' in {path}. Received: {error}. {remedy}") from error
    pixels, labels = held["pixels"], held["labels"]
    fits = pixels.dtype == np.uint8 and pixels.shape[1:] == (*card.size, 3) and labels.shape == pixels.shape[:1]
    received = ""
    if not fits or not np.issubdtype(labels.dtype, np.integer):
        received = f"pixels {pixels.dtype} {pixels.shape} and labels {labels.dtype} {labels.shape}"
    elif len(labels) and not 0 <= labels.min() <= labels.max() < len(card.classes):
        received = f"labels from {labels.min()} to {labels.max()} for {count(len(card.classes), 'class', 'classes')}"
    if received:
        raise ProjectError(
            f"Expected 'pixels' and 'labels' of the model of {CARD} in {path}. Received: {received}. {remedy}"
        )
    return pixels, labels


def data_uri(pixels: np.ndarray) -> str:
    """An image as a PNG of at most 160 by 160 pixels, for the ``src`` of an element.

    Args:
        pixels: uint8 (height, width, 3).
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((160, 160))
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
