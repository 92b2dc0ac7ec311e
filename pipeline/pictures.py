"""Pictures that the train stage leaves: the learning curves, and some images with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import charts
from pipeline.fonts import drawable
from pipeline.stage_records import Epoch

GRID_IMAGES = 6


def save_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and accuracy by epoch as a PNG."""
    charts.training_figure([Epoch(**row) for row in history]).savefig(path, dpi=120, metadata={"Software": None})


def save_samples(pixels: np.ndarray, labels: Sequence[int], classes: Sequence[str], path: Path) -> None:
    """A grid of labelled images as a PNG; a name that no font here can draw is "class 3", the number of its output.

    Args:
        pixels: uint8 (N, height, width, 3), the images as the model sees them before preprocessing.
        labels: N indices of ``classes``.
        classes: their names.
        path: where.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for axis, image, label in zip(figure.subplots(rows, columns, squeeze=False).flat, pixels, labels):
        axis.imshow(image, interpolation="nearest")
        name, families = drawable(classes[label], f"class {label}")
        axis.set_title(name, fontsize=9, fontfamily=families, parse_math=False)
    for axis in figure.axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=120, metadata={"Software": None})
