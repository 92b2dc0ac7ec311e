"""Plots that matplotlib draws: learning curves, for the page and as a PNG, and what each layer costs, as a PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.fonts import FIRST, drawable
from pipeline.words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.stage_records import Epoch

MOST = 1e12  # what is more is drawn as this
LONGEST = 48  # characters of a row's name
MOST_TICKS = 8
INK, MUTED, GRID = "#1d2733", "#5a6672", "#dfe5ec"
COLORS = {"fp32": "#4c7fb8", "fp16": "#2f8a66", "int8": "#c26a14"}
# On a page the colours are those of its style, which knows light and dark.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", **{color: name for name, color in COLORS.items()}}
CURVES = ("accuracy", "loss")


def training_curves(history: Sequence[Epoch]) -> tuple[str, ...]:
    """Accuracy and loss by epoch, each an SVG of its own, so that a page can put them side by side or one below.

    Its letters are as large as the page's where it is about 330 pixels wide.
    """
    found = []
    for name in CURVES:
        figure = _figure(3.9, 2.7, 10.5)
        _draw(figure.subplots(), history, name)
        found.append(_svg(figure, name, _told(history, name)))
    return tuple(found)


def training_figure(history: Sequence[Epoch]) -> Figure:
    """Both curves side by side, for a PNG."""
    figure = _figure(9.2, 3.0, 9)
    for axis, name in zip(figure.subplots(1, 2), CURVES):
        _draw(axis, history, name)
    return figure


def _draw(axis: Axes, history: Sequence[Epoch], name: str) -> None:
    """Training and validation by epoch, with the phases marked."""
    epochs = [_drawn(row.epoch) for row in history]
    boundary = next((_drawn(row.epoch) for row in history if row.phase == "fine_tune"), None)
    trained = [_drawn(getattr(row, name)) for row in history]
    judged = [
        (_drawn(row.epoch), _drawn(value)) for row in history if (value := getattr(row, f"val_{name}")) is not None
    ]
    axis.plot(epochs, trained, "o-", color=COLORS["fp32"], label="training", ms=4)
    if judged:
        axis.plot(*zip(*judged), "s--", color=COLORS["int8"], label="validation", ms=4)
    if boundary is not None and boundary > 1:
        axis.axvline(boundary - 0.5, color=MUTED, lw=1, ls=":")
    axis.set_title(name, loc="left")
    axis.set_xlabel("epoch" if boundary is None or boundary <= 1 else "epoch (dotted: fine-tuning begins)")
    axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axis.set_xticks(_whole(min(epochs), max(epochs)))
    shown = [*trained, *(value for _, value in judged)]
    if name == "accuracy" and 0 <= min(shown) <= max(shown) <= 1:  # a share: no axis goes beyond all
        room = max(0.05 * (max(shown) - min(shown)), 0.01)
        low, high = max(0.0, min(shown) - room), min(1.0, max(shown) + room)
        axis.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axis.legend(frameon=False)


def _whole(first: float, last: float) -> list[float]:
    """Whole epochs for the axis, at most `MOST_TICKS`; a single one has a single tick."""
    step, scale = 1, 1
    while (last - first) / step >= MOST_TICKS:
        step = next(wanted for wanted in (2 * scale, 5 * scale, 10 * scale) if wanted > step)
        scale = scale * 10 if step == 10 * scale else scale
    return [first + step * index for index in range(int((last - first) // step) + 1)]


def _told(history: Sequence[Epoch], name: str) -> str:
    """The curve in words, for who does not see it."""
    first, last = history[0], history[-1]
    told = f"{name} by epoch: training {getattr(first, name):.3g} to {getattr(last, name):.3g}"
    judged = [value for row in history if (value := getattr(row, f"val_{name}")) is not None]
    return told + (f", validation {judged[0]:.3g} to {judged[-1]:.3g}" if judged else "")


def sensitivity_figure(layers: Sequence[tuple[str, float, bool]], most: int = 25) -> Figure:
    """Each layer's share of the INT8 noise, the dearest first, for a PNG.

    Args:
        layers: as `shares` takes them.
        most: how many are drawn; the others are one bar.
    """
    shown = shares(layers, most)
    figure = _figure(9.2, 0.24 * len(shown) + 0.9, 9)
    axis = figure.subplots()
    largest = 0.0
    for row, (_, share, kept) in enumerate(shown):
        length = share if math.isfinite(share) else 0.0
        axis.barh(row, length, color=COLORS["fp16" if kept else "int8"], height=0.65)
        axis.text(length, row, f"  {share_text(share)}", va="center", fontsize=8)
        largest = max(largest, length)
    axis.set_xlim(0, largest * 1.15 or 1)
    axis.set_xlabel("share of the noise that quantising each layer alone adds to the logits, % (green: kept in float)")
    _name_rows(axis, [name for name, _, _ in shown])
    return figure


def shares(layers: Sequence[tuple[str, float, bool]], most: int) -> list[tuple[str, float, bool]]:
    """Name, share of all noise in percent (infinite where the noise is) and whether it stays in float, of each layer.

    Args:
        layers: name, noise alone (energy of the error over that of the logits; infinite where the logits are not
            finite), whether it stays in float.
        most: how many are given; the others are one.
    """
    whole = sum(noise for _, noise, _ in layers if math.isfinite(noise)) or 1.0
    shown = list(layers[:most])
    if rest := layers[most:]:
        shown.append((count(len(rest), "other"), sum(noise for _, noise, _ in rest), False))
    return [(name, 100 * noise / whole, kept) for name, noise, kept in shown]


def share_text(share: float) -> str:
    """A share of the noise as a reader sees it."""
    return f"{share:.1f} %" if math.isfinite(share) else "NaN or infinite"


def _drawn(value: float) -> float:
    return max(-MOST, min(value, MOST))


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Rows from the top, each with its name; of a long one the end, which tells names apart."""
    shown = [drawable(name if len(name) <= LONGEST else f"…{name[-LONGEST:]}") for name in names]
    axis.set_yticks(range(len(shown)), [label for label, _ in shown], fontsize=8)
    for tick, (_, families) in zip(axis.get_yticklabels(), shown):
        tick.set_fontfamily(families)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def _figure(width: float, height: float, letters: float) -> Figure:
    """An empty figure; sizes in inches, letters in points."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "font.family": "sans-serif",
            "font.sans-serif": [FIRST],
            "font.size": letters,
            "text.parse_math": False,  # names come from outside, and $ in one is a dollar
            "axes.edgecolor": GRID,
            "axes.labelcolor": MUTED,
            "axes.titlesize": letters + 1,
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
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, told: str) -> str:
    """A figure as an element of a page: in the page's colours, with names that no other figure there has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    whole = buffer.getvalue()
    drawing = whole[whole.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", drawing)
    drawing = re.sub("#[0-9a-f]{6}", lambda color: _variable(color[0]), drawing)
    start = re.match(r"<svg[^>]*>", drawing)
    assert start is not None, "the text begins with it"
    box = re.search(r'viewBox="[^"]*"', start[0])
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{told}" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return f'{head}xmlns="http://www.w3.org/2000/svg">{drawing[start.end() :]}'


def _variable(color: str) -> str:
    return f"var(--{VARIABLES[color]}, {color})" if color in VARIABLES else color
