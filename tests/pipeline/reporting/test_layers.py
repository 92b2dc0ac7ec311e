"""Every Keras layer against its tensor: strips, the first layer at fault, how the error grows, sub-models."""

from __future__ import annotations

import pytest

from pipeline.artifacts.layer_report import Reduced
from pipeline.reporting import layers
from pipeline.reporting.layers import TITLE
from tests.pipeline.report_artifacts import ONNX, Artifacts, layer, layer_run
from tests.pipeline.report_page import Page


@pytest.fixture
def compared(artifacts: Artifacts) -> Artifacts:
    """INT8 with a layer below its threshold of 20 dB, FP32 without."""
    rows = [
        layer("conv_1", None, None, cosine=1.0),
        layer("conv_2", 12.34, 12.34, saturated=0.0212, range_used=1.25),
        layer("conv_3", 25.9, 12.0, cosine=0.98),
        layer("conv_4", 30.0, None, finite=False, cosine=None),
        layer("conv_5", 55.0, 47.0),
        layer("conv_6", 75.0, 62.0),
    ]
    artifacts.layers = (
        layer_run(ONNX[2], "int8", 20.0, *rows, note="Fake quantization."),
        layer_run(ONNX[0], "fp32", 100.0, layer("conv_1", 130.0, 128.0)),
    )
    return artifacts


def strips(page: Page) -> list[list[str]]:
    return [[" ".join(cell.kinds) for cell in strip.all("span")] for strip in page.section(TITLE).all("div", "strip")]


def test_each_layer_has_a_cell_in_the_order_of_the_model(compared: Artifacts) -> None:
    page = compared.write().page()
    assert strips(page) == [
        ["d3", "below", "d0", "d1", "d2", "d3"],
        ["d3", "below", "below", "below", "d2", "d3"],
        ["d2"],
        ["d2"],
    ]
    own, total, *_ = page.section(TITLE).all("div", "strip")
    assert [cell.attrs["title"] for cell in own.all("span")][:3] == ["conv_1: equal", "conv_2: 12.3", "conv_3: 25.9"]
    assert total.all("span")[3].attrs["title"] == "conv_4: NaN or infinite"
    assert own.attrs["aria-label"] == "Own error of each layer: 1 of 6 layers below 20 dB"
    assert total.attrs["aria-label"] == "Total error up to each layer: 3 of 6 layers below 20 dB"


def test_the_first_layer_at_fault_is_named(compared: Artifacts) -> None:
    said = compared.write().page().section(TITLE).text
    assert "First layer whose own error is too large: conv_2 (12.3 dB), 20 dB asked." in said
    assert "No layer's own error is too large: each has 100 dB or more." in said
    assert "on 4 test images" in said
    assert "Peak memory: 512 MiB." in said
    assert "Fake quantization." in said


def test_a_run_without_layers_is_not_said_to_have_good_ones(artifacts: Artifacts) -> None:
    artifacts.layers = (layer_run("build/rtx/int8.plan", "int8", 20.0, note="not run: no driver here"),)
    section = artifacts.write().page().section(TITLE)
    assert "build/rtx/int8.plan: Not run: no driver here." in section.text
    assert "No layer's own error" not in section.text
    assert section.all("div", "strip") == []


def test_the_worst_layers_stand_in_a_table_and_all_in_another(compared: Artifacts, monkeypatch) -> None:
    monkeypatch.setattr(layers, "WORST", 2)
    page = compared.write().page()
    assert page.rows(TITLE) == [
        {
            **{"own error": "too large", "layer": "conv_2", "kind": "Conv2D", "own SQNR, dB": "12.3"},
            **{"total SQNR, dB": "12.3", "cosine": "0.99900", "saturated": "2.12%", "range used": "125.00%"},
        },
        {
            **{"own error": "fine", "layer": "conv_3", "kind": "Conv2D", "own SQNR, dB": "25.9"},
            **{"total SQNR, dB": "12.0", "cosine": "0.98000", "saturated": "", "range used": ""},
        },
    ]
    every = page.rows(TITLE, 1)
    assert [cells["layer"] for cells in every] == [f"conv_{number}" for number in range(1, 7)]
    assert (every[0]["own SQNR, dB"], every[0]["tensor"]) == ("equal", "conv_1/out")
    assert every[3]["total SQNR, dB"] == "NaN or infinite"
    summaries = [node.text for node in page.section(TITLE).all("summary")]
    assert summaries[1] == "Show all 6 layers, compared in 1.5 s"
    assert summaries[3] == "Show the 1 layer, compared in 1.5 s"
    opened = [("open" in node.attrs, node.kinds) for node in page.section(TITLE).all("details")]
    assert opened == [(True, set()), (False, {"long"}), (False, {"long"}), (False, {"long"}), (True, set())]


def test_the_error_is_drawn_along_the_depth(compared: Artifacts) -> None:
    page = compared.write().page()
    bars = page.chart("model.int8.onnx: total SQNR along the depth")
    assert [(bar.label, bar.shown, bar.more) for bar in bars] == [
        ("conv_1", "equal", "own equal"),
        ("conv_2", "12.3", "own 12.3"),
        ("conv_3", "12.0", "own 25.9"),
        ("conv_4", "NaN or infinite", "own 30.0"),
        ("conv_5", "47.0", "own 55.0"),
        ("conv_6", "62.0", "own 75.0"),
    ]
    assert [bar.end for bar in bars][:1] == [100]
    assert bars[3].start is None
    assert bars[1].end == bars[1].mark == pytest.approx(12.34 / 75 * 100, abs=0.01)


def test_what_was_not_compared_is_a_line_for_each_reason(compared: Artifacts) -> None:
    plans = ("build/rtx/fp16.plan", "build/rtx/int8.plan")
    compared.layers = (
        layer_run(ONNX[0], "fp32", 100.0, layer("conv_1", 130.0, 128.0)),
        *(layer_run(plan, "fp16", 45.0, note="not run: no GPU") for plan in plans),
    )
    section = compared.write().page().section(TITLE)
    assert [node.text for node in section.all("p", "apart")] == [f"not compared {', '.join(plans)}: Not run: no GPU."]
    assert len(section.all("div", "strip")) == 2
    assert section.text.count("No layer's own error is too large") == 1, "of a file without layers that says nothing"
    assert "open" not in section.all("details")[-1].attrs, "how the error grows is folded where no layer is at fault"


def test_of_many_layers_some_are_drawn_from_first_to_last(compared: Artifacts) -> None:
    rows = [layer(f"conv_{number}", 40.0, 40.0 - number / 10) for number in range(100)]
    compared.layers = (layer_run(ONNX[2], "int8", 20.0, *rows),)
    bars = compared.write().page().chart("along the depth")
    assert len(bars) == 12
    assert (bars[0].label, bars[-1].label) == ("conv_0", "conv_99")


def test_a_table_of_very_many_layers_ends(compared: Artifacts, monkeypatch) -> None:
    monkeypatch.setattr(layers, "MOST_ROWS", 4)
    page = compared.write().page()
    assert len(page.rows(TITLE, 1)) == 4
    assert "2 more layers are in layers/layers.json." in page.section(TITLE).text


def test_layers_without_a_tensor_and_sub_models(compared: Artifacts) -> None:
    compared.without_tensor = {"bn_1": "folded into conv_1"}
    files = ("reduced/int8/model.onnx", "reduced/int8/README.txt")
    compared.reduced = (Reduced(ONNX[2], ("conv_2", "relu_2"), files, 4, "SQNR 3.2 dB."),)
    section = compared.write().page().section(TITLE)
    assert "1 layer has no tensor of its own" in [node.text for node in section.all("summary")]
    assert f"Smallest sub-model that fails: {ONNX[2]}" in [node.text for node in section.all("h3")]
    assert "SQNR 3.2 dB. It has 4 nodes, of conv_2, relu_2." in section.text
    assert [node.text for node in section.all("li") if node.all("code")] == [f"layers/{file}" for file in files]


def test_layers_of_other_files_are_not_shown(compared: Artifacts) -> None:
    compared.write()
    (compared.root / ONNX[2]).write_bytes(b"another")
    (said,) = compared.page().section(TITLE).all("p")
    words = f"layers/layers.json is left out: it is of another {ONNX[2]} than the one here now."
    assert said.text.startswith(f"Not compared layer by layer. {words}")
    assert " verify -c " in said.text
    assert "--layers" in said.text


@pytest.mark.parametrize("damage", [None, b"", b'{"schema": 7}'])
def test_without_a_record_of_layers_there_is_a_command(compared: Artifacts, damage: bytes | None) -> None:
    path = compared.write().root / "layers/layers.json"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    (said,) = compared.page().section(TITLE).all("p")
    assert said.all("code")[0].text.startswith("python -m pipeline verify -c ")
    assert ("layers/layers.json is left out" in said.text) == (damage is not None)
