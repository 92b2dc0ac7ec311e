"""Pictures that the train stage leaves: the learning curves, and some images with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import charts
from pipeline.stage_records import Epoch

GRID_IMAGES = 6


def save_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and accuracy by epoch as a PNG."""
    charts.training_figure([Epoch(**row) for row in history]).savefig(path, dpi=120, metadata={"Software": None})


def save_samples(pixels: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """A grid of labelled images as a PNG.

    Args:
        pixels: uint8 (N, height, width, 3), the images as the model sees them before preprocessing.
        labels: N class names.
        path: where.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for axis, image, label in zip(figure.subplots(rows, columns, squeeze=False).flat, pixels, labels):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(label, fontsize=9)
    for axis in figure.axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=120, metadata={"Software": None})
