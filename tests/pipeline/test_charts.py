"""What a person reads off the plots: each row has its own label, length, number, colour and threshold."""

from __future__ import annotations

import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from pipeline import charts
from pipeline.stage_records import Epoch
from tests.pipeline.report_artifacts import hop, not_compared, row
from tests.pipeline.report_page import SVG, Bar, read_bars

FP32, FP16, INT8 = (charts.COLORS[name] for name in ("fp32", "fp16", "int8"))
LIMITS = {"fp32": None, "fp16": 50.0, "int8": 20.0}


def rounded(bar: Bar) -> tuple[str, float, str, str]:
    assert bar.inside, f"{bar} leaves the axes"
    return bar.label, round(bar.length, 2), bar.text, bar.color


def test_each_candidate_has_its_own_bar_and_threshold() -> None:
    hops = [
        hop("export/model.onnx", "fp32", sqnr_db=120.5),
        hop("quantize/model.fp16.onnx", "fp16", sqnr_db=61.25),
        hop("build/rtx/int8.plan", "int8", sqnr_db=31.0),
        hop("build/rtx/int8-large.plan", "int8", "inconclusive", sqnr_db=29.5),
        hop("build/tensorrt/int8.plan", "int8", "fail", sqnr_db=-4.0),
        hop("quantize/model.int8-trt8.onnx", "int8", "not run"),
    ]
    (bars,) = read_bars(charts.parity_waterfall(hops, LIMITS))
    assert [rounded(bar) for bar in bars] == [
        ("FP32 model.onnx", 120.5, "120.5 dB", FP32),
        ("FP16 model.fp16.onnx", 61.25, "61.2 dB", FP16),
        ("INT8 rtx/int8.plan", 31.0, "31.0 dB", INT8),
        ("INT8 rtx/int8-large.plan", 29.5, "29.5 dB", INT8),
        ("INT8 tensorrt/int8.plan", -4.0, "-4.0 dB", INT8),
    ]
    assert [[round(mark, 2) for mark in bar.marks] for bar in bars] == [[], [50.0], [20.0], [20.0], [20.0]]


def test_what_has_no_number_has_a_row_with_the_reason() -> None:
    none = {"sqnr_db": None}
    hops = [
        hop("export/model.onnx", "fp32", max_abs=0.0, relative_error=0.0, **none),
        hop("quantize/model.fp16.onnx", "fp16", "fail", finite=False, max_abs=None, relative_error=None, **none),
        not_compared("build/rtx/int8.plan", "int8", "fail", "it died"),
    ]
    (bars,) = read_bars(charts.parity_waterfall(hops, LIMITS))
    assert [rounded(bar) for bar in bars] == [
        ("FP32 model.onnx", 0.0, "equal", FP32),
        ("FP16 model.fp16.onnx", 0.0, "NaN or infinite", FP16),
        ("INT8 rtx/int8.plan", 0.0, "failed to run", INT8),
    ]
    assert [bar.marks for bar in bars][1] == pytest.approx((50.0,), abs=0.01)


def test_a_threshold_beyond_every_bar_is_drawn() -> None:
    (bars,) = read_bars(charts.parity_waterfall([hop("quantize/model.fp16.onnx", "fp16", sqnr_db=3.0)], LIMITS))
    assert bars[0].marks == pytest.approx((50.0,), abs=0.01)
    assert bars[0].inside


def test_nothing_ran() -> None:
    assert charts.parity_waterfall([hop("build/rtx/int8.plan", "int8", "not run")], LIMITS) == ""
    assert charts.speed([row("keras", "fp32", 1, None)]) == ""
    assert charts.speed([]) == ""


def test_speed_has_a_bar_for_each_row_of_its_batch() -> None:
    rows = [
        row("keras", "fp32", 1, 30.0, p90_ms=45.0),
        row("onnxruntime", "fp16", 1, 1.25, p90_ms=20.0),
        row("tensorrt", "int8", 1, 0.5, variant="latency"),
        row("tensorrt", "int8", 4, 2.0),
        row("keras", "fp32", 8, 40.0),
        row("tensorrt", "int8", 8, 4.0),
        row("tensorrt", "int8", 8, 2.5, file="tensorrt/int8.plan"),
        row("tensorrt", "fp32", 8, None),
    ]
    svg = charts.speed(rows)
    left, right = read_bars(svg)
    grey = charts.COLORS["keras"]
    assert [rounded(bar) for bar in left] == [
        ("keras fp32", 30.0, "30", grey),
        ("onnxruntime fp16", 1.25, "1.25", FP16),
        ("tensorrt int8 latency", 0.5, "0.5", INT8),
    ]
    assert [round(bar.reach or 0, 2) for bar in left] == [45.0, 20.0, 0.75]
    assert [rounded(bar) for bar in right] == [
        ("keras fp32", 200.0, "200", grey),
        ("tensorrt int8 (rtx/int8.plan)", 2000.0, "2,000", INT8),
        ("tensorrt int8 (tensorrt/int8.plan)", 3200.0, "3,200", INT8),
    ]
    assert all(bar.reach is None for bar in right)
    titles = re.findall(r">(batch \d+|latency[^<]*|throughput[^<]*)<", svg)
    order = sorted(titles, key=svg.index)
    assert order.index("latency, ms (line: to p90; less is better)") < order.index("batch 8")
    assert {"batch 1", "batch 8", "throughput, images/s (more is better)"} <= set(titles)


def test_times_that_the_clock_cannot_tell() -> None:
    left, right = read_bars(charts.speed([row("keras", "fp32", 1, 0.0), row("onnxruntime", "fp32", 1, 0.0)]))
    assert [bar.text for bar in left] == ["0", "0"]
    assert [bar.text for bar in right] == ["too fast for the clock"] * 2
    assert all(bar.length == pytest.approx(0, abs=1e-6) for bar in (*left, *right))


def lines(svg: str, color: str) -> int:
    """Points of the curve of a colour, over all axes."""
    tree = ElementTree.fromstring(svg)
    groups = [g for g in tree.iter(f"{SVG}g") if g.get("id", "").startswith("line2d_")]
    return sum(1 for g in groups for use in g.iter(f"{SVG}use") if color in use.get("style", ""))


def test_one_epoch_without_validation() -> None:
    svg = charts.training_curves([Epoch("head", 1, 1.5, 0.25)])
    assert "validation" not in svg
    assert lines(svg, FP32) >= 2


def test_curves_show_their_own_values() -> None:
    epochs = [
        Epoch("head", 1, 4.0, 0.5, 6.0, 0.25),
        Epoch("head", 2, 2.0, 0.75),
        Epoch("fine_tune", 3, 1.0, 1.0, 3.0, 0.5),
    ]
    figure = charts.training_figure(epochs)
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


def test_each_layer_has_its_share_of_the_noise() -> None:
    layers = [("conv_1 (Conv)", 1.2, True), ("conv_2 (Conv)", 0.6, False), *((f"l{n}", 0.1, False) for n in range(2))]
    (bars,) = read_bars(charts._svg(charts.sensitivity_figure(layers, most=2)))
    assert [rounded(bar) for bar in bars] == [
        ("conv_1 (Conv)", 60.0, "60.0 %", FP16),
        ("conv_2 (Conv)", 30.0, "30.0 %", INT8),
        ("2 others", 10.0, "10.0 %", INT8),
    ]


def test_layers_that_make_no_noise_or_overflow() -> None:
    (bars,) = read_bars(charts.sensitivity([("a", math.inf, True), ("b", 0.0, False)]))
    assert [(bar.label, bar.text) for bar in bars] == [("a", "NaN or infinite"), ("b", "0.0 %")]
    (bars,) = read_bars(charts.sensitivity([("a", math.inf, True), ("b", 1.0, False)]))
    assert [bar.text for bar in bars] == ["NaN or infinite", "100.0 %"]


def test_names_are_shown_as_they_are() -> None:
    name = "$x^{ <b>$ 猫 \x01"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = charts.speed([replace(row("keras", "fp32", 1, 1.0), variant=name)])
    (bars, _) = read_bars(svg)
    assert bars[0].label == "keras fp32 $x^{ <b>$ 猫 \\x01"


def test_of_a_long_name_the_end_is_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (bars,) = read_bars(charts.sensitivity([(f"{'block_' * 60}conv_1 (Conv)", 1.0, False)]))
    assert bars[0].label.endswith("block_conv_1 (Conv)")
    assert len(bars[0].label) == 49


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324])
def test_numbers_that_no_plot_can_hold(value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (bars,) = read_bars(charts.parity_waterfall([hop("export/model.onnx", "fp32", sqnr_db=value)], {"fp32": value}))
        fast = replace(row("keras", "fp32", 1, 2.0), p50_ms=value, p90_ms=value, images_per_second=value)
        charts.speed([fast])
        charts.training_curves([Epoch("head", 1, value, value, value), Epoch("head", 10**39, -value, 1.0)])
    assert len(bars[0].text) < 16
