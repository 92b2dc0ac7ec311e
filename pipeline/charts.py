"""The plots of the report, each an SVG string."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.layout import engine_name, plan_variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2733", "#66727f", "#e3e8ee"
COLORS = {"keras": "#8a94a0", "fp32": "#4c7fb8", "fp16": "#3a9d78", "int8": "#d9822b", "limit": "#c0392b"}


def training_curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss and accuracy by epoch, training and validation, with the phases marked."""
    return _svg(training_figure(history))


def training_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure of ``training_curves``."""
    figure = _figure(9.2, 3.0)
    epochs = [row["epoch"] for row in history]
    boundary = next((row["epoch"] for row in history if row["phase"] == "fine_tune"), None)
    for axis, name in zip(figure.subplots(1, 2), ("accuracy", "loss")):
        axis.plot(epochs, [row[name] for row in history], "o-", color=COLORS["fp32"], label="training", ms=4)
        if f"val_{name}" in history[0]:
            values = [row[f"val_{name}"] for row in history]
            axis.plot(epochs, values, "o-", color=COLORS["int8"], label="validation", ms=4)
        if boundary is not None and boundary > 1:
            axis.axvline(boundary - 0.5, color=MUTED, lw=1, ls=":")
            axis.text(
                boundary - 0.45, 0.03, "fine-tuning", color=MUTED, fontsize=8, transform=axis.get_xaxis_transform()
            )
        axis.set_title(name, loc="left")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
    return figure


def parity_waterfall(hops: Sequence[Mapping[str, Any]], limits: Mapping[str, float | None]) -> str:
    """SQNR against Keras after each step, one bar a candidate that ran; the threshold as a mark.

    Args:
        hops: the ``from_keras`` hops.
        limits: smallest SQNR in dB by precision; None: not asked for.
    """
    ran = [hop for hop in hops if hop["sqnr_db"] is not None]
    figure = _figure(9.2, 0.55 * max(len(ran), 1) + 1.0)
    axis = figure.subplots()
    for row, hop in enumerate(ran):
        axis.barh(row, hop["sqnr_db"], color=COLORS[hop["precision"]], height=0.55)
        axis.text(hop["sqnr_db"], row, f"  {hop['sqnr_db']:.1f} dB", va="center", fontsize=9, color=INK)
        limit = limits.get(hop["precision"])
        if limit is not None:
            axis.plot([limit, limit], [row - 0.38, row + 0.38], color=COLORS["limit"], lw=2)
    axis.set_yticks(range(len(ran)), [f"{hop['precision'].upper()}  {_where(hop)}" for hop in ran])
    axis.invert_yaxis()
    axis.set_xlim(0, max((hop["sqnr_db"] for hop in ran), default=1) * 1.15)
    axis.set_xlabel("SQNR of the logits against Keras, dB (more is closer; red: the recipe's threshold)")
    axis.grid(axis="y", visible=False)
    return _svg(figure)


def _where(hop: Mapping[str, Any]) -> str:
    variant = plan_variant(Path(hop["candidate"])) if hop["backend"] == "tensorrt" else None
    return f"{hop['backend']} {variant}" if variant else str(hop["backend"])


def speed(results: Sequence[Mapping[str, Any]]) -> str:
    """Latency at the smallest batch and throughput at the largest, one bar a backend and precision."""
    timed = [row for row in results if "error" not in row]
    batches = sorted({row["batch"] for row in timed})
    if not batches:
        return ""
    panels = [("p50_ms", batches[0], "latency, ms (line: to p90; less is better)")]
    panels.append(("images_per_second", batches[-1], "throughput, images/s (more is better)"))
    rows = max(sum(row["batch"] == batch for row in timed) for batch in (batches[0], batches[-1]))
    figure = _figure(9.2, 0.5 * rows + 1.1)
    for axis, (key, batch, label) in zip(figure.subplots(1, 2), panels):
        shown = [row for row in timed if row["batch"] == batch]
        largest = max(row[key] for row in shown)
        for index, row in enumerate(shown):
            color = COLORS["keras"] if row["backend"] == "keras" else COLORS[row["precision"]]
            axis.barh(index, row[key], color=color, height=0.55)
            end = row[key]
            if key == "p50_ms":
                axis.plot([row["p50_ms"], row["p90_ms"]], [index, index], color=INK, lw=1)
                end = max(end, row["p90_ms"])
            axis.text(
                end, index, f"  {row[key]:,.3g}" if row[key] < 1000 else f"  {row[key]:,.0f}", va="center", fontsize=9
            )
            largest = max(largest, end)
        axis.set_yticks(range(len(shown)), [f"{row['backend']} {engine_name(row)}" for row in shown])
        axis.invert_yaxis()
        axis.set_xlim(0, largest * 1.25)
        axis.set_title(f"batch {batch}", loc="left")
        axis.set_xlabel(label)
        axis.grid(axis="y", visible=False)
    return _svg(figure)


def sensitivity(layers: Sequence[tuple[str, float, bool]]) -> str:
    """The figure of ``sensitivity_figure``."""
    return _svg(sensitivity_figure(layers))


def sensitivity_figure(layers: Sequence[tuple[str, float, bool]], most: int = 25) -> Figure:
    """Each layer's share of the INT8 noise, the dearest first.

    Args:
        layers: name, noise alone (energy of the error over that of the logits), whether it stays in float.
        most: how many are drawn; the others are one bar.
    """
    whole = sum(noise for _, noise, _ in layers) or 1.0
    shown = list(layers[:most])
    if len(layers) > most:
        shown.append((f"{len(layers) - most} others", sum(noise for _, noise, _ in layers[most:]), False))
    figure = _figure(9.2, 0.24 * len(shown) + 0.9)
    axis = figure.subplots()
    for row, (_, noise, kept) in enumerate(shown):
        axis.barh(row, 100 * noise / whole, color=COLORS["fp16" if kept else "int8"], height=0.65)
        axis.text(100 * noise / whole, row, f"  {100 * noise / whole:.1f} %", va="center", fontsize=8)
    axis.set_yticks(range(len(shown)), [name for name, _, _ in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(100 * noise / whole for _, noise, _ in shown) * 1.15 or 1)
    axis.set_xlabel("share of the noise that quantising each layer alone adds to the logits, % (green: kept in float)")
    axis.grid(axis="y", visible=False)
    return figure


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
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
