"""The plots of the report, each an SVG string."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.benchmark_report import BenchmarkRow
    from pipeline.parity_report import Hop
    from pipeline.stage_records import Epoch

MOST = 1e12  # what is more is drawn as this; its number stands beside it
LONGEST = 48  # characters of a row's name
INK, MUTED, GRID = "#1d2733", "#66727f", "#e3e8ee"
COLORS = {"keras": "#8a94a0", "fp32": "#4c7fb8", "fp16": "#3a9d78", "int8": "#d9822b", "limit": "#c0392b"}


def training_curves(history: Sequence[Epoch]) -> str:
    """Loss and accuracy by epoch, training and validation, with the phases marked."""
    return _svg(training_figure(history))


def training_figure(history: Sequence[Epoch]) -> Figure:
    """The figure of ``training_curves``."""
    figure = _figure(9.2, 3.0)
    epochs = [_drawn(row.epoch) for row in history]
    boundary = next((_drawn(row.epoch) for row in history if row.phase == "fine_tune"), None)
    for axis, name in zip(figure.subplots(1, 2), ("accuracy", "loss")):
        axis.plot(
            epochs, [_drawn(getattr(row, name)) for row in history], "o-", color=COLORS["fp32"], label="training", ms=4
        )
        judged = [
            (_drawn(row.epoch), _drawn(value)) for row in history if (value := getattr(row, f"val_{name}")) is not None
        ]
        if judged:
            axis.plot(*zip(*judged), "o-", color=COLORS["int8"], label="validation", ms=4)
        if boundary is not None and boundary > 1:
            axis.axvline(boundary - 0.5, color=MUTED, lw=1, ls=":")
            axis.text(
                boundary - 0.45, 0.03, "fine-tuning", color=MUTED, fontsize=8, transform=axis.get_xaxis_transform()
            )
        axis.set_title(name, loc="left")
        axis.set_xlabel("epoch")
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
    return figure


def parity_waterfall(hops: Sequence[Hop], limits: Mapping[str, float | None]) -> str:
    """SQNR against Keras, one row a candidate that was run, whatever came of it; the threshold as a mark.

    Args:
        hops: the ``from_keras`` hops.
        limits: smallest SQNR in dB by precision; None: not asked for.
    """
    ran = [hop for hop in hops if hop.verdict != "not run"]
    if not ran:
        return ""
    figure = _figure(9.2, 0.55 * len(ran) + 1.0)
    axis = figure.subplots()
    ends = [0.0]
    for row, hop in enumerate(ran):
        end = _drawn(hop.sqnr_db or 0.0)
        axis.barh(row, end, color=COLORS[hop.precision], height=0.55)
        axis.text(max(end, 0.0), row, f"  {_sqnr_text(hop)}", va="center", fontsize=9, color=INK)
        limit = limits.get(hop.precision)
        if limit is not None:
            limit = _drawn(limit)
            axis.plot([limit, limit], [row - 0.38, row + 0.38], color=COLORS["limit"], lw=2)
        ends += [end, limit or 0.0]
    axis.set_xlim(1.15 * min(ends), 1.15 * max(ends) or 1)
    axis.set_xlabel("SQNR of the logits against Keras, dB (more is closer; red: the recipe's threshold)")
    _name_rows(axis, [f"{hop.precision.upper()}  {_file_label(hop.candidate)}" for hop in ran])
    return _svg(figure)


def _sqnr_text(hop: Hop) -> str:
    if not hop.compared:
        return "failed to run"
    if hop.sqnr_db is not None:
        return f"{hop.sqnr_db:.1f} dB" if abs(hop.sqnr_db) < MOST else f"{hop.sqnr_db:.3g} dB"
    return "equal" if hop.equal else "NaN or infinite"


def _file_label(name: str) -> str:
    """``rtx/int8.plan`` or ``model.int8.onnx``: what tells candidates apart, without the stage's folder."""
    path = PurePosixPath(name)
    return path.relative_to("build").as_posix() if path.is_relative_to("build") else path.name


def speed(results: Sequence[BenchmarkRow]) -> str:
    """Latency at the smallest batch and throughput at the largest, one bar a row that has numbers."""
    timed = [row for row in results if row.p50_ms is not None]
    batches = sorted({row.batch for row in timed})
    if not batches:
        return ""
    first, last = ([row for row in timed if row.batch == batch] for batch in (batches[0], batches[-1]))
    figure = _figure(9.2, 0.5 * max(len(first), len(last)) + 1.1)
    left, right = figure.subplots(1, 2)
    _bars(left, first, [row.p50_ms for row in first], [row.p90_ms for row in first])
    _bars(right, last, [row.images_per_second for row in last])
    left.set_title(f"batch {batches[0]}", loc="left")
    left.set_xlabel("latency, ms (line: to p90; less is better)")
    right.set_title(f"batch {batches[-1]}", loc="left")
    right.set_xlabel("throughput, images/s (more is better)")
    return _svg(figure)


def _bars(
    axis: Axes, rows: Sequence[BenchmarkRow], values: Sequence[float | None], reach: Sequence[float | None] = ()
) -> None:
    """One bar a row with its value; a line from it to where it reaches."""
    largest = 0.0
    for index, (row, value) in enumerate(zip(rows, values)):
        length = max(0.0, _drawn(value or 0.0))
        axis.barh(index, length, color=COLORS["keras" if row.backend == "keras" else row.precision], height=0.55)
        end = length
        if reach and (to := reach[index]) is not None:
            axis.plot([length, max(0.0, _drawn(to))], [index, index], color=INK, lw=1)
            end = max(end, _drawn(to))
        axis.text(end, index, f"  {_speed_text(value)}", va="center", fontsize=9)
        largest = max(largest, end)
    labels = [f"{row.backend} {row.name}" for row in rows]
    told_apart = [f"{label} ({row.file})" if labels.count(label) > 1 else label for label, row in zip(labels, rows)]
    axis.set_xlim(0, largest * 1.25 or 1)
    _name_rows(axis, told_apart)


def _speed_text(value: float | None) -> str:
    if value is None:
        return "too fast for the clock"
    return f"{value:,.0f}" if 1000 <= value < MOST else f"{value:,.3g}"


def sensitivity(layers: Sequence[tuple[str, float, bool]]) -> str:
    """The figure of ``sensitivity_figure``."""
    return _svg(sensitivity_figure(layers))


def sensitivity_figure(layers: Sequence[tuple[str, float, bool]], most: int = 25) -> Figure:
    """Each layer's share of the INT8 noise, the dearest first.

    Args:
        layers: name, noise alone (energy of the error over that of the logits; infinite where the logits are not
            finite), whether it stays in float.
        most: how many are drawn; the others are one bar.
    """
    whole = sum(noise for _, noise, _ in layers if math.isfinite(noise)) or 1.0
    shown = list(layers[:most])
    if len(layers) > most:
        shown.append((f"{len(layers) - most} others", sum(noise for _, noise, _ in layers[most:]), False))
    figure = _figure(9.2, 0.24 * len(shown) + 0.9)
    axis = figure.subplots()
    largest = 0.0
    for row, (_, noise, kept) in enumerate(shown):
        share = 100 * noise / whole if math.isfinite(noise) else 0.0
        axis.barh(row, share, color=COLORS["fp16" if kept else "int8"], height=0.65)
        text = f"{share:.1f} %" if math.isfinite(noise) else "NaN or infinite"
        axis.text(share, row, f"  {text}", va="center", fontsize=8)
        largest = max(largest, share)
    axis.set_xlim(0, largest * 1.15 or 1)
    axis.set_xlabel("share of the noise that quantising each layer alone adds to the logits, % (green: kept in float)")
    _name_rows(axis, [name for name, _, _ in shown], size=8)
    return figure


def _drawn(value: float) -> float:
    return max(-MOST, min(value, MOST))


def _name_rows(axis: Axes, names: Sequence[str], size: int = 9) -> None:
    """Rows from the top, each with its name; of a long one the end, which tells names apart."""
    shown = [name if len(name) <= LONGEST else f"…{name[-LONGEST:]}" for name in names]
    axis.set_yticks(range(len(shown)), shown, fontsize=size)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def _figure(width: float, height: float) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9,
            "text.parse_math": False,  # names come from outside, and $ in one is a dollar
            "axes.edgecolor": GRID,
            "axes.labelcolor": MUTED,
            "axes.titlesize": 10,
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


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has fonts for them
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub("[\\x00-\\x08\\x0b-\\x1f]", _escape, text[text.index("<svg") :])


def _escape(found: re.Match[str]) -> str:
    """A control character, which XML cannot hold, in words."""
    return f"\\x{ord(found[0]):02x}"
