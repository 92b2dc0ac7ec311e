"""What a person reads off the plots that matplotlib draws, on the page and as PNG files."""

from __future__ import annotations

import logging
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from pipeline import charts, fonts, pictures
from pipeline.stage_records import Epoch

EPOCHS = [
    Epoch("head", 1, 4.0, 0.5, 6.0, 0.25),
    Epoch("head", 2, 2.0, 0.75),
    Epoch("fine_tune", 3, 1.0, 1.0, 3.0, 0.5),
]


@pytest.fixture
def loud() -> object:
    """Every warning is an error, those about missing letters too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_curves_show_their_own_values() -> None:
    figure = charts.training_figure(EPOCHS)
    curves = {
        (axis.get_title(loc="left"), line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for axis in figure.axes
        for line in axis.lines
    }
    assert curves["accuracy", "training"] == ([1, 2, 3], [0.5, 0.75, 1.0])
    assert curves["accuracy", "validation"] == ([1, 3], [0.25, 0.5])
    assert curves["loss", "training"] == ([1, 2, 3], [4.0, 2.0, 1.0])
    assert curves["loss", "validation"] == ([1, 3], [6.0, 3.0])
    boundary = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in boundary] == [[2.5, 2.5]]
    assert "dotted: fine-tuning begins" in figure.axes[0].get_xlabel()


def ticks(axis, which: str) -> list[float]:
    low, high = getattr(axis, f"get_{which}lim")()
    return [float(tick) for tick in getattr(axis, f"get_{which}ticks")() if low <= tick <= high]


@pytest.mark.parametrize(("accuracy", "phase"), [(1.0, "head"), (0.0, "fine_tune"), (0.25, "head")])
def test_one_epoch_has_one_tick_and_no_accuracy_beyond_all(accuracy: float, phase: str) -> None:
    figure = charts.training_figure([Epoch(phase, 1, 0.0, accuracy)])
    figure.draw_without_rendering()
    assert [ticks(axis, "x") for axis in figure.axes] == [[1.0], [1.0]]
    shares = ticks(figure.axes[0], "y")
    assert len(shares) >= 2
    assert 0 <= min(shares) <= max(shares) <= 1
    assert "fine-tuning" not in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("count", [2, 7, 9, 40, 1000])
def test_epochs_are_whole_numbers(count: int) -> None:
    figure = charts.training_figure([Epoch("head", n + 1, 1.0, 0.5) for n in range(count)])
    figure.draw_without_rendering()
    shown = ticks(figure.axes[0], "x")
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


# --- layers, as a PNG ---


def bars(figure) -> list[tuple[str, float, str]]:
    (axis,) = figure.axes
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    assert axis.yaxis_inverted(), "the rows do not begin at the top"
    return [
        (label, round(bar.get_width(), 2), note.get_text().strip())
        for label, bar, note in zip(labels, axis.patches, axis.texts)
    ]


def test_each_layer_has_its_share_of_the_noise() -> None:
    layers = [("conv_1 (Conv)", 1.2, True), ("conv_2 (Conv)", 0.6, False), *((f"l{n}", 0.1, False) for n in range(2))]
    assert bars(charts.sensitivity_figure(layers, most=2)) == [
        ("conv_1 (Conv)", 60.0, "60.0 %"),
        ("conv_2 (Conv)", 30.0, "30.0 %"),
        ("2 others", 10.0, "10.0 %"),
    ]
    assert bars(charts.sensitivity_figure([("a", math.inf, True), ("b", 1.0, False)])) == [
        ("a", 0.0, "NaN or infinite"),
        ("b", 100.0, "100.0 %"),
    ]


def test_of_a_long_name_the_end_is_shown() -> None:
    (bar,) = bars(charts.sensitivity_figure([(f"{'block_' * 60}conv_1 (Conv)", 1.0, False)]))
    assert bar[0].endswith("block_conv_1 (Conv)")
    assert len(bar[0]) == 49


# --- names that not every font has ---

NAMES = ("猫", "قطة", "नमस्ते", "👩\u200d🔬", "a\x01\nb", "$x^{$", "\U0001fae8", "\udcff", "ไทย", "𓀀")


def test_a_picture_of_any_name_is_drawn_without_a_warning(
    tmp_path: Path, loud: None, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.zeros((len(NAMES), 8, 8, 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        pictures.save_samples(pixels, list(range(len(NAMES))), NAMES, tmp_path / "samples.png")
        charts.sensitivity_figure([(name, 1.0, False) for name in NAMES]).savefig(tmp_path / "s.png")
    assert (tmp_path / "samples.png").stat().st_size > 1000
    assert caplog.messages == []


def test_a_name_that_no_font_has_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_families", lambda: [])
    fonts._family_with.cache_clear()
    try:
        assert fonts.drawable("猫", "class 2") == ("class 2", [fonts.FIRST])
        assert fonts.drawable("b猫") == ("b\\u732b", [fonts.FIRST])
        assert fonts.drawable("naïve Жук") == ("naïve Жук", [fonts.FIRST])
    finally:
        fonts._family_with.cache_clear()


def test_letters_that_must_be_joined_are_told_otherwise() -> None:
    for name in ("قطة", "שלום", "नमस्ते", "👩\u200d🔬", "line\nline"):
        assert fonts.drawable(name, "class 1")[0] == "class 1"
        assert fonts.drawable(name)[0].isascii()


def test_a_font_of_boxes_is_none() -> None:
    assert not [name for name in fonts._families() if "Last Resort" in name or "STIX" in name]
    for name in NAMES:
        shown, families = fonts.drawable(name, "class 0")
        assert shown == "class 0" or all(any(fonts._has(one, letter) for one in families) for letter in shown)


def test_layers_that_stay_in_float_are_green_as_the_axis_says() -> None:
    axis = charts.sensitivity_figure([("kept", 2.0, True), ("quantized", 1.0, False)]).axes[0]
    assert [to_hex(bar.get_facecolor()) for bar in axis.patches] == [charts.COLORS["fp16"], charts.COLORS["int8"]]
    assert "green: kept in float" in axis.get_xlabel()
