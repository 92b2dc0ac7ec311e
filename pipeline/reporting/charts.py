"""Learning curves as SVG, labels of images, and images as data URIs, for the report."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from export.errors import DataError, ProjectError
from export.words import count
from pipeline.artifacts.archives import read_arrays
from pipeline.artifacts.array_rows import array_forms
from pipeline.artifacts.paths import CARD
from pipeline.models.model_card import ModelCard
from pipeline.reporting.html import limited

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.training.checkpoint import Epoch


MOST_TICKS = 8
SIZE, LETTERS = (3.9, 2.7), 10.5  # inches, points
INK, MUTED, GRID = "#1d2733", "#5a6672", "#dfe5ec"
COLORS = {"fp32": "#4c7fb8", "int8": "#c26a14"}
# On a page the colours come from its style sheet, which has a light and a dark theme.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", **{color: name for name, color in COLORS.items()}}
CURVES = ("accuracy", "loss")


def training_curves(history: Sequence[Epoch]) -> tuple[str, ...]:
    """Draw accuracy and loss by epoch, each as an SVG of its own, so that a page can arrange them.

    The text is as large as the page's where an SVG is about 330 pixels wide.
    """
    return tuple(_svg(training_curve(history, name), name, _description(history, name)) for name in CURVES)


def training_curve(history: Sequence[Epoch], name: str) -> Figure:
    """Draw one of ``CURVES`` for training and validation by epoch, with the phases marked."""
    figure = _figure()
    axis = figure.subplots()
    epochs = [limited(row.epoch) for row in history]
    boundary = next((limited(row.epoch) for row in history if row.phase == "fine_tune"), None)
    trained = [limited(getattr(row, name)) for row in history]
    validated = [
        (limited(row.epoch), limited(value)) for row in history if (value := getattr(row, f"val_{name}")) is not None
    ]
    axis.plot(epochs, trained, "o-", color=COLORS["fp32"], label="training", ms=4)
    if validated:
        axis.plot(*zip(*validated), "s--", color=COLORS["int8"], label="validation", ms=4)
    if boundary is not None and boundary > 1:
        axis.axvline(boundary - 0.5, color=MUTED, lw=1, ls=":")
    axis.set_title(name, loc="left")
    axis.set_xlabel("epoch" if boundary is None or boundary <= 1 else "epoch (dotted: fine-tuning begins)")
    axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axis.set_xticks(_ticks(min(epochs), max(epochs)))
    shown = [*trained, *(value for _, value in validated)]
    if name == "accuracy" and 0 <= min(shown) <= max(shown) <= 1:  # a share: the axis ends at 0 and 1
        room = max(0.05 * (max(shown) - min(shown)), 0.01)
        low, high = max(0.0, min(shown) - room), min(1.0, max(shown) + room)
        axis.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axis.legend(frameon=False)
    return figure


def _ticks(first: float, last: float) -> list[float]:
    """Whole epochs for the axis, at most `MOST_TICKS`; a single one has a single tick."""
    step, scale = 1, 1
    while (last - first) / step >= MOST_TICKS:
        step = next(larger for larger in (2 * scale, 5 * scale, 10 * scale) if larger > step)
        scale = scale * 10 if step == 10 * scale else scale
    return [first + step * index for index in range(int((last - first) // step) + 1)]


def _description(history: Sequence[Epoch], name: str) -> str:
    """The curve as text, for screen readers."""
    first, last = history[0], history[-1]
    training = f"{name} by epoch: training {getattr(first, name):.3g} to {getattr(last, name):.3g}"
    validated = [value for row in history if (value := getattr(row, f"val_{name}")) is not None]
    return training + (f", validation {validated[0]:.3g} to {validated[-1]:.3g}" if validated else "")


def _figure() -> Figure:
    """An empty figure in the page's style."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
            "font.size": LETTERS,
            "axes.edgecolor": GRID,
            "axes.labelcolor": MUTED,
            "axes.titlesize": LETTERS + 1,
            "axes.titlecolor": INK,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "xtick.color": MUTED,
            "ytick.color": INK,
            "text.color": INK,
        }
    )
    return Figure(figsize=SIZE, layout="constrained")


def _svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an SVG element in the page's colours, with IDs that no other figure on the page has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    whole = buffer.getvalue()
    drawing = whole[whole.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", drawing)
    for color, variable in VARIABLES.items():
        drawing = drawing.replace(color, f"var(--{variable}, {color})")
    start = re.match(r"<svg[^>]*>", drawing)
    assert start is not None, "the text begins with it"
    box = re.search(r'viewBox="[^"]*"', start[0])
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{description}"'
    names = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return f"{head} {names}>{drawing[start.end() :]}"


def read_labels(path: Path, card: ModelCard, remedy: str) -> np.ndarray:
    """Read the labels of the images in an .npz file, whose pixels are read where they are needed.

    Args:
        path: a file with the arrays "pixels" and "labels".
        card: of the model that they belong to.
        remedy: the last sentence of error messages.

    Returns:
        integers (N,), indices of its classes; -1 where an image has no label. There are as many pixels, uint8
        (N, height, width, 3) as the model sees them before preprocessing.

    Raises:
        ProjectError: the file is missing, damaged, or of another model.
    """
    try:
        pixels = array_forms(path, ("pixels", "labels"))["pixels"]
        labels = read_arrays(path, ("labels",))["labels"]
    except (OSError, DataError) as error:
        raise ProjectError(f"Expected 'pixels' and 'labels' in {path}. Received: {error}. {remedy}") from error
    fits = pixels.dtype == np.uint8 and pixels.shape[1:] == (*card.size, 3) and labels.shape == pixels.shape[:1]
    received = ""
    if not fits or not np.issubdtype(labels.dtype, np.integer):
        received = f"pixels {pixels.dtype} {pixels.shape} and labels {labels.dtype} {labels.shape}"
    elif len(labels) and not -1 <= labels.min() <= labels.max() < len(card.classes):
        received = f"labels from {labels.min()} to {labels.max()} for {count(len(card.classes), 'class', 'classes')}"
    if received:
        raise ProjectError(
            f"Expected 'pixels' and 'labels' of the model of {CARD} in {path}. Received: {received}. {remedy}"
        )
    return labels


def data_uri(pixels: np.ndarray, most: int = 160) -> str:
    """Return a small image for the ``src`` of an element: as a PNG, or as a JPEG where that is much shorter.

    Args:
        pixels: uint8 (height, width, 3).
        most: pixels of the longer side. Defaults to 160.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    png, jpeg = _encoded(image, "PNG"), _encoded(image, "JPEG")
    kind, data = ("jpeg", jpeg) if 2 * len(jpeg) < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, quality=85)
    return buffer.getvalue()
