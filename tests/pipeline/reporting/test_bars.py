"""What a person reads off the bar charts of the page: each row has its own label, length, number, colour and mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pipeline.reporting.html import Bar, Chart
from pipeline.reporting.parity import sqnr_bars
from pipeline.reporting.quantization import noise_bars
from pipeline.reporting.speed import speed_bars
from tests.pipeline import report_page
from tests.pipeline.report_artifacts import hop, not_compared, row
from tests.pipeline.report_page import Page, element

LIMITS = {"fp32": None, "fp16": 50.0, "int8": 20.0}


def page(*charts: Chart) -> Page:
    """The charts as a page has them."""
    return element("bars", *charts)


def read(*charts: Chart, words: str = "") -> list[report_page.Bar]:
    bars = page(*charts).chart(words)
    for bar in bars:
        assert bar.start is None or 0 <= bar.start <= (bar.end or 0) <= 100.01, f"{bar} leaves the chart"
        assert bar.mark is None or 0 <= bar.mark <= 100.01, f"{bar} leaves the chart"
    return bars


def said(bars: Sequence[report_page.Bar]) -> list[tuple[str, str, str]]:
    return [(bar.label, bar.shown, bar.kind) for bar in bars]


# --- bars in general ---


def test_lengths_are_in_proportion_and_marks_stand_at_their_number() -> None:
    bars = read(Chart("x", [Bar("a", 10.0, "10", "fp32", 20.0), Bar("b", 40.0, "40", "int8", 0.0)]))
    assert [(bar.start, bar.end, bar.mark) for bar in bars] == [(0, 25, 50), (0, 100, 0)]


def test_a_negative_number_goes_to_the_left_of_zero() -> None:
    chart = Chart("x", [Bar("a", -10.0, "-10", "fp32"), Bar("b", 30.0, "30", "fp32")])
    below, above = read(chart)
    assert [node.attrs["style"] for node in page(chart).root.all("span", "zero")] == ["left:25.00%"] * 2
    assert (below.start, below.end) == (0, 25)
    assert (above.start, above.end) == (25, 100)


def test_without_a_number_there_is_no_bar_and_an_infinite_one_is_whole() -> None:
    bars = read(Chart("x", [Bar("a", math.nan, "NaN", "fp32"), Bar("b", math.inf, "equal", "fp32")]))
    assert [(bar.shown, bar.start, bar.end) for bar in bars] == [("NaN", None, None), ("equal", 0, 100)]


def test_a_mark_far_away_is_an_arrow_that_the_legend_explains() -> None:
    rows = [Bar("a", 1.0, "1", "fp32", 1.5), Bar("b", 0.5, "0.5", "fp32", 45.0)]
    chart = Chart("x", rows, "p90", 2.0)
    near, far = read(chart)
    assert (near.end, near.mark, near.beyond) == (50, 75, False)
    assert (far.end, far.mark, far.beyond) == (25, None, True)
    assert page(chart).legend("x") == "p90 it lies beyond the scale"
    assert page(Chart("x", rows[:1], "p90", 2.0)).legend("x") == "p90"
    assert page(Chart("x", [Bar("a", 1.0, "1", "fp32")], "p90")).legend("x") == ""


def test_text_from_outside_is_text() -> None:
    chart = Chart("<b>", [Bar("<i>\x01", 1.0, "<u>", "fp32", more="<s>")])
    assert [(bar.label, bar.shown, bar.more) for bar in read(chart)] == [("<i>\\x01", "<u>", "<s>")]
    assert not page(chart).root.all("i")


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324])
def test_numbers_that_no_chart_can_hold(value: float) -> None:
    read(Chart("x", [Bar("a", value, "a", "fp32", value), Bar("b", -value, "b", "fp32", 1.0)], "m", 2.0))
    (bar,) = read(sqnr_bars([hop("export/model.onnx", "fp32", sqnr_db=value)], {"fp32": value}))
    assert len(bar.shown) < 16
    fast = replace(row("keras", "fp32", 1, 2.0), p50_ms=value, p90_ms=value, images_per_second=value)
    assert all(len(bar.shown) < 16 for bar in read(*speed_bars([fast]), words="Latency"))


# --- parity ---


def test_each_candidate_has_its_own_bar_and_threshold() -> None:
    hops = [
        hop("export/model.onnx", "fp32", sqnr_db=120.5),
        hop("quantize/model.fp16.onnx", "fp16", sqnr_db=60.25),
        hop("build/rtx/int8.plan", "int8", sqnr_db=31.0),
        hop("build/rtx/int8-large.plan", "int8", "inconclusive", sqnr_db=29.5),
        hop("build/tensorrt/int8.plan", "int8", "fail", sqnr_db=0.0),
        hop("quantize/model.int8-trt8.onnx", "int8", "not run"),
    ]
    chart = sqnr_bars(hops, LIMITS)
    bars = read(chart)
    assert said(bars) == [
        ("FP32 model.onnx", "120.5 dB", "fp32"),
        ("FP16 model.fp16.onnx", "60.2 dB", "fp16"),
        ("INT8 rtx/int8.plan", "31.0 dB", "int8"),
        ("INT8 rtx/int8-large.plan", "29.5 dB", "int8"),
        ("INT8 tensorrt/int8.plan", "0.0 dB", "int8"),
    ]
    assert [bar.end for bar in bars[:2]] == [100, 50]
    assert [bar.more for bar in bars] == ["", "asked: 50", "asked: 20", "asked: 20", "asked: 20"]
    assert [bar.mark for bar in bars[:3]] == [
        None,
        pytest.approx(5000 / 120.5, abs=0.01),
        pytest.approx(16.6, abs=0.01),
    ]
    assert page(chart).legend("SQNR") == "smallest that the recipe allows"


def test_what_has_no_number_has_a_row_with_the_reason() -> None:
    none = {"sqnr_db": None}
    hops = [
        hop("export/model.onnx", "fp32", max_abs=0.0, relative_error=0.0, **none),
        hop("quantize/model.fp16.onnx", "fp16", "fail", finite=False, max_abs=None, relative_error=None, **none),
        not_compared("build/rtx/int8.plan", "int8", "fail", "it died"),
    ]
    bars = read(sqnr_bars(hops, LIMITS))
    assert [(bar.label, bar.shown, bar.end) for bar in bars] == [
        ("FP32 model.onnx", "equal", 100),
        ("FP16 model.fp16.onnx", "NaN or infinite", None),
        ("INT8 rtx/int8.plan", "no answers", None),
    ]


def test_nothing_ran() -> None:
    nothing = [sqnr_bars([hop("build/rtx/int8.plan", "int8", "not run")], LIMITS), noise_bars([], 5)]
    nothing += [*speed_bars([row("keras", "fp32", 1, None)]), *speed_bars([])]
    assert not page(*nothing).root.all("figure")


# --- speed ---


def test_speed_has_a_bar_for_each_row_of_its_batch() -> None:
    rows = [
        row("keras", "fp32", 1, 30.0, p90_ms=45.0),
        row("onnxruntime", "fp32", 1, 1.25, p90_ms=20.0),
        row("tensorrt", "int8", 1, 0.5, variant="latency"),
        row("tensorrt", "int8", 4, 2.0),
        row("keras", "fp32", 8, 40.0),
        row("tensorrt", "int8", 8, 4.0),
        row("tensorrt", "int8", 8, 2.5, file="tensorrt/int8.plan"),
        row("tensorrt", "fp32", 8, None),
    ]
    charts = speed_bars(rows)
    latency = read(*charts, words="Latency of a batch of 1, ms (less is better)")
    assert said(latency) == [
        ("keras fp32", "30 ms", "keras"),
        ("onnxruntime fp32", "1.25 ms", "fp32"),
        ("tensorrt int8 latency", "0.5 ms", "int8"),
    ]
    assert [bar.more for bar in latency] == ["p90 45", "p90 20", "p90 0.75"]
    assert (latency[0].end, latency[0].mark) == (pytest.approx(66.67, abs=0.01), 100)
    throughput = read(*charts, words="Throughput in batches of 8, images/s (more is better)")
    assert said(throughput) == [
        ("keras fp32", "200", "keras"),
        ("tensorrt int8 (rtx/int8.plan)", "2,000", "int8"),
        ("tensorrt int8 (tensorrt/int8.plan)", "3,200", "int8"),
    ]
    assert all(bar.mark is None for bar in throughput)


def test_one_late_call_does_not_squash_the_bars() -> None:
    rows = [row("keras", "fp32", 1, 1.0, p90_ms=1.2), row("onnxruntime", "fp32", 1, 0.91, p90_ms=45.0)]
    charts = speed_bars(rows)
    keras, other = read(*charts, words="Latency")
    assert (other.shown, other.more, other.beyond) == ("0.91 ms", "p90 45", True)
    assert 45 <= (other.end or 0) < (keras.end or 0) == 50
    assert "beyond the scale" in page(*charts).legend("Latency")


def test_times_that_the_clock_cannot_tell() -> None:
    charts = speed_bars([row("keras", "fp32", 1, 0.0), row("onnxruntime", "fp32", 1, 0.0)])
    assert [(bar.shown, bar.end) for bar in read(*charts, words="Latency")] == [("0 ms", 0)] * 2
    assert [(bar.shown, bar.end) for bar in read(*charts, words="Throughput")] == [("too fast for the clock", 0)] * 2


# --- layers ---


def test_each_layer_has_its_share_of_the_noise() -> None:
    layers = [("conv_1 (Conv)", 1.2, "fp32"), ("conv_2 (Conv)", 0.6, "int8"), *((f"l{n}", 0.1, "int8") for n in (1, 2))]
    bars = read(noise_bars(layers, 2))
    assert said(bars) == [
        ("conv_1 (Conv)", "60.0 %", "fp16"),
        ("conv_2 (Conv)", "30.0 %", "int8"),
        ("2 others", "10.0 %", "int8"),
    ]
    assert [bar.more for bar in bars] == ["stays FP32", "", ""]
    assert [bar.end for bar in bars] == [100, 50, pytest.approx(16.67, abs=0.01)]
    assert noise_bars(layers[1:3], 1).bars[1].label == "1 other"


def test_layers_that_make_no_noise_or_overflow() -> None:
    for noise, others in ((0.0, "0.0 %"), (1.0, "100.0 %")):
        bars = read(noise_bars([("a", math.inf, "fp16"), ("b", noise, "int8")], 5))
        assert [bar.shown for bar in bars] == ["NaN or infinite", others]


def test_a_long_name_is_whole_and_wraps() -> None:
    name = f"{'block_' * 60}conv_1 (Conv)"
    assert read(noise_bars([(name, 1.0, "int8")], 5))[0].label == name
