"""What a person reads off the plots that matplotlib draws on the page."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.axes import Axes

from pipeline.reporting import charts
from pipeline.training.checkpoint import Epoch

EPOCHS = [
    Epoch("head", 1, 4.0, 0.5, 6.0, 0.25),
    Epoch("head", 2, 2.0, 0.75),
    Epoch("fine_tune", 3, 1.0, 1.0, 3.0, 0.5),
]


@pytest.fixture
def loud() -> object:
    """Every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_curves_show_their_own_values() -> None:
    axes = curves_of(EPOCHS)
    curves = {
        (axis.get_title(loc="left"), line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for axis in axes
        for line in axis.lines
    }
    assert curves["accuracy", "training"] == ([1, 2, 3], [0.5, 0.75, 1.0])
    assert curves["accuracy", "validation"] == ([1, 3], [0.25, 0.5])
    assert curves["loss", "training"] == ([1, 2, 3], [4.0, 2.0, 1.0])
    assert curves["loss", "validation"] == ([1, 3], [6.0, 3.0])
    boundary = [line for line in axes[0].lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in boundary] == [[2.5, 2.5]]
    assert "dotted: fine-tuning begins" in axes[0].get_xlabel()


def curves_of(history: list[Epoch]) -> list[Axes]:
    """The drawn axes of each curve."""
    figures = [charts.training_curve(history, name) for name in charts.CURVES]
    for figure in figures:
        figure.draw_without_rendering()
    return [figure.axes[0] for figure in figures]


def ticks(axis, which: str) -> list[float]:
    low, high = getattr(axis, f"get_{which}lim")()
    return [float(tick) for tick in getattr(axis, f"get_{which}ticks")() if low <= tick <= high]


@pytest.mark.parametrize(("accuracy", "phase"), [(1.0, "head"), (0.0, "fine_tune"), (0.25, "head")])
def test_one_epoch_has_one_tick_and_no_accuracy_beyond_all(accuracy: float, phase: str) -> None:
    axes = curves_of([Epoch(phase, 1, 0.0, accuracy)])
    assert [ticks(axis, "x") for axis in axes] == [[1.0], [1.0]]
    shares = ticks(axes[0], "y")
    assert len(shares) >= 2
    assert 0 <= min(shares) <= max(shares) <= 1
    assert "fine-tuning" not in axes[0].get_xlabel()


@pytest.mark.parametrize("count", [2, 7, 9, 40, 1000])
def test_epochs_are_whole_numbers(count: int) -> None:
    axes = curves_of([Epoch("head", n + 1, 1.0, 0.5) for n in range(count)])
    shown = ticks(axes[0], "x")
    assert shown[0] == 1
    assert 2 <= len(shown) <= charts.MOST_TICKS + 1
    assert all(tick == int(tick) for tick in shown)


def test_curves_of_the_page_are_two_and_in_its_colours() -> None:
    drawn = charts.training_curves(EPOCHS)
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in drawn]
    assert not names[0] & names[1], "a name stands once on a page"
    for svg, ids, name in zip(drawn, names, ("accuracy", "loss")):
        tree = ElementTree.fromstring(svg)
        assert tree.attrib["role"] == "img"
        assert tree.attrib["aria-label"].startswith(f"{name} by epoch: training ")
        assert "width" not in tree.attrib, "the page says how wide"
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= ids
        without_style = re.sub(r"var\(--(ink|muted|line|fp32|int8), #\w{6}\)", "", svg)
        assert not re.findall(r"#[0-9a-fA-F]{6}", without_style), "a colour that a dark page does not change"
        width = float(tree.attrib["viewBox"].split()[2])
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
        assert sizes
        assert min(sizes) * 334 / width >= 11, "on a phone"
    assert drawn == charts.training_curves(EPOCHS)


def test_one_epoch_without_validation() -> None:
    assert all("validation" not in svg for svg in charts.training_curves([Epoch("head", 1, 1.5, 0.25)]))


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324])
def test_numbers_that_no_plot_can_hold(value: float, loud: None) -> None:
    charts.training_curves([Epoch("head", 1, value, value, value), Epoch("head", 10**39, -value, 1.0)])
