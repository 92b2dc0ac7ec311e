"""What the page says of the search for INT8: what was tried, what each step gained, what has no eighth bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from export.int8.report import ShiftReport
from pipeline.reporting.int8_steps import grouped
from tests.pipeline.report_artifacts import Artifacts, distances

CHART = "SQNR of INT8's logits on held-out images"


def tried(artifacts: Artifacts) -> dict[str, tuple[str, str]]:
    """What the table says was tried -> whether it is used, and its SQNR."""
    rows = artifacts.write().page().rows("Quantization")
    return {row["what was tried"]: (row["chosen"], row["SQNR, dB"]) for row in rows}


def bars(artifacts: Artifacts) -> list[tuple[str, str, str]]:
    return [(bar.label, bar.shown, bar.more) for bar in artifacts.write().page().chart(CHART)]


def test_everything_that_was_tried_stands_in_the_order_of_the_search(artifacts: Artifacts) -> None:
    assert list(tried(artifacts).items()) == [
        ("channels not equalized", ("", "25.5")),
        ("channels equalized with strength 0.5", ("", "27.0")),
        ("channels equalized with strength 0.7", ("used", "28.0")),
        ("scales by minmax, shifted, weights in float", ("", "28.5")),
        ("scales by lp_3, shifted, weights in float", ("used", "32.0")),
        ("scales by lp_3, not shifted, weights in float", ("", "30.5")),
        ("second-order rounding of weights, by 54 images", ("used", "34.2")),
        ("corrected biases", ("", "33.2")),
        ("FP16, weights rounded to nearest", ("", "58.0")),
        ("FP16, rounded to keep the means", ("used", "66.0")),
    ]


def test_it_says_what_weights_in_float_are_for(artifacts: Artifacts) -> None:
    assert (
        "with weights in float, by the noise of activations alone"
        in artifacts.write().page().section("Quantization").text
    )


def test_a_row_has_the_images_too(artifacts: Artifacts) -> None:
    changed = distances(28.5, 0.94, 0.0556, median_db=31.04, tail_db=19.06, worst_db=-2.75)
    artifacts.calibration["methods"] = {**artifacts.calibration_report.methods, "minmax": changed}
    assert artifacts.write().page().rows("Quantization")[3] == {
        "chosen": "",
        "what was tried": "scales by minmax, shifted, weights in float",
        "SQNR, dB": "28.5",
        "median, dB": "31.0",
        "worst 5 %, dB": "19.1",
        "worst, dB": "-2.8",
        "agreement": "94.00%",
        "accuracy drop": "5.56%",
    }


def test_each_step_says_what_it_gained(artifacts: Artifacts) -> None:
    assert bars(artifacts) == [
        ("equalization with strength 0.7", "28.0 dB", "+2.5 dB, worst image 18.0 dB"),
        ("scales by lp_3, 2 of 6 tensors shifted, weights in float", "32.0 dB", "+1.5 dB, worst image 22.0 dB"),
        ("second-order rounding of weights, by 54 images", "34.2 dB", "+2.2 dB, worst image 24.2 dB"),
        ("corrected biases", "33.2 dB", "-1.0 dB, worst image 23.2 dB, not used"),
    ]
    chart = artifacts.page().chart(CHART)
    assert [bar.kind for bar in chart] == ["int8", "int8", "int8", "keras"]
    longest = max(bar.end or 0.0 for bar in chart)
    assert chart[1].mark == pytest.approx(longest * 30.5 / 34.25, abs=0.1), "the mark is the graph without the step"


def test_a_loss_that_rounds_to_nothing_has_no_minus(artifacts: Artifacts) -> None:
    correction = artifacts.calibration_report.bias_correction
    assert correction is not None
    artifacts.calibration["bias_correction"] = replace(correction, before=distances(33.2), after=distances(33.16))
    assert bars(artifacts)[-1] == ("corrected biases", "33.2 dB", "+0.0 dB, worst image 23.2 dB, not used")


def test_layers_in_float_are_the_last_step(artifacts: Artifacts) -> None:
    artifacts.calibration = {"kept": ("a/Conv", "b/Conv"), "mixed": distances(36.0)}
    assert bars(artifacts)[-1] == (
        "most sensitive layers kept in float: 2",
        "36.0 dB",
        "+1.8 dB, worst image 26.0 dB",
    )
    assert tried(artifacts)["most sensitive layers kept in float: 2"] == ("used", "36.0")


def test_a_shift_that_did_not_help_is_told_and_not_used(artifacts: Artifacts) -> None:
    before = artifacts.calibration_report.shift
    artifacts.calibration["shift"] = replace(before, used=False, shifted=(), after=distances(29.0))
    rows = tried(artifacts)
    assert rows["scales, shifted, weights in float"] == ("", "29.0")
    assert rows["scales by lp_3, weights in float"] == ("used", "32.0")
    assert bars(artifacts)[1:3] == [
        ("scales by lp_3, weights in float", "32.0 dB", "worst image 22.0 dB"),
        ("shifted, weights in float", "29.0 dB", "-1.5 dB, worst image 19.0 dB, not used"),
    ]
    assert "It was tried and not used" in artifacts.page().section("Quantization").text


@pytest.mark.parametrize(
    ("shift", "bar", "words"),
    [
        (
            ShiftReport(True, ("a",), {}, 1, None, distances(32.0)),  # quantize.shift=always
            ("scales by lp_3, 1 of 1 tensor shifted, weights in float", "32.0 dB", "worst image 22.0 dB"),
            "1 of 1 quantized tensor is shifted.",
        ),
        (
            ShiftReport(False, (), {}, 54),  # quantize.shift=never
            ("scales by lp_3, weights in float", "32.0 dB", "worst image 22.0 dB"),
            "No tensor is shifted.",
        ),
    ],
)
def test_a_shift_that_was_not_compared_gained_nothing(
    artifacts: Artifacts, shift: ShiftReport, bar: tuple[str, str, str], words: str
) -> None:
    artifacts.calibration["shift"] = shift
    assert bars(artifacts)[1] == bar
    page = artifacts.page()
    assert words in page.section("Quantization").text
    assert len(page.section("Quantization").all("table")) == 1, "nothing was refused"


def test_what_a_recipe_turns_off_has_no_step(artifacts: Artifacts) -> None:
    artifacts.calibration = {"rounding": None, "bias_correction": None, "equalization": None}
    assert [label for label, *_ in bars(artifacts)] == ["scales by lp_3, 2 of 6 tensors shifted"]
    assert "weights in float" not in artifacts.page().section("Quantization").text


def test_tensors_without_the_eighth_bit_are_grouped_by_the_reason(artifacts: Artifacts) -> None:
    assert artifacts.write().page().rows("Quantization", 1) == [
        {
            "tensors": "2",
            "why they are not shifted": "Conv reads it with padding",
            "behind the layers": "conv_3, conv_6",
        },
        {"tensors": "1", "why they are not shifted": "it is an output of the model", "behind the layers": "conv_5"},
        {
            "tensors": "1",
            "why they are not shifted": "no ReLU writes it, or its ReLU is not among those that quantize.shift asks "
            "for",
            "behind the layers": "",
        },
    ]


def test_no_text_of_a_reason_is_taken_for_the_name_of_a_node() -> None:
    reasons = {"a": "it's read by the Conv's reader", "b": "Conv reads it", "c": "Conv reads it"}
    assert grouped(reasons) == {"Conv reads it": ["b", "c"], "it's read by the Conv's reader": ["a"]}


def test_convolutions_that_second_order_rounding_leaves_out_are_named(artifacts: Artifacts) -> None:
    words = "No second-order rounding of conv_8: it stays in float."
    assert words in artifacts.write().page().section("Quantization").text


@pytest.mark.parametrize("trunk", ["fp32", "fp16"])
def test_the_type_of_the_trunk_is_named(artifacts: Artifacts, trunk: str) -> None:
    artifacts.calibration["trunk"] = trunk
    words = artifacts.write().page().section("Quantization").text
    assert f"Scales, biases and sums between INT8 layers are {trunk.upper()}." in words


def test_a_graph_without_a_number_has_no_bar_and_no_gain(artifacts: Artifacts) -> None:
    none = replace(distances(1.0), sqnr_db=None, median_db=None, tail_db=None, worst_db=None)
    second = artifacts.calibration_report.rounding
    assert second is not None
    artifacts.calibration["rounding"] = replace(second, after=none)
    chart = artifacts.write().page().chart(CHART)
    assert (chart[2].shown, chart[2].more, chart[2].start) == ("equal, or not finite", "", None)
    assert tried(artifacts)["second-order rounding of weights, by 54 images"] == ("used", "")
    assert math.isfinite(chart[3].end or 0.0)
