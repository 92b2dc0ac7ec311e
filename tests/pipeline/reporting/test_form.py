"""The form of a page: order of columns, footnotes, links, headings, words that agree, narrow screens, dark, print."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from export.files import ROOT
from pipeline.artifacts.diagnosis import Decoding
from pipeline.reporting import page as report
from pipeline.reporting.glossary import TERMS
from pipeline.reporting.html import TEMPLATES, Cell, Table, render, size
from pipeline.training.checkpoint import Epoch
from tests.pipeline.report_artifacts import (
    CLASSES,
    LAYERS,
    ONNX,
    PLAN,
    Artifacts,
    hop,
    image_noise,
    image_results,
    layer,
    layer_run,
    row,
)
from tests.pipeline.report_page import Page, element

CSS = (Path(report.__file__).parent / "report.css").read_text()


@pytest.fixture
def full(artifacts: Artifacts) -> Page:
    """A page with all of its tables, bars and remarks."""
    artifacts.plans, artifacts.sensitivity = [PLAN, "build/rtx/fp16.plan"], LAYERS
    sure = "at least 97.0 % agreement with 95 % confidence"
    artifacts.hops[0] = replace(artifacts.hops[0], certainty=sure)
    artifacts.hops[1] = replace(artifacts.hops[1], certainty=sure, note="a proxy")
    artifacts.hops += [
        hop(PLAN, "int8", "not run", why="no GPU"),
        hop(PLAN, "int8", "not run", kind="step", why="no GPU"),
    ]
    artifacts.results = image_results({ONNX[0]: [0, 1, 2, 0, 1, 2], ONNX[2]: [1, 1, 0, 0, 1, 2]}, (0.05, *[0.5] * 5))
    artifacts.hops[2] = replace(artifacts.hops[2], image_noise=image_noise([(1, 8.5), (4, None)]))
    artifacts.hops.append(hop(ONNX[2], "int8", kind="step", reference=ONNX[0]))
    artifacts.layers = (layer_run(ONNX[2], "int8", 20.0, layer("conv_1", 12.0, 11.0), layer("conv_2", 30.0, None)),)
    artifacts.without_tensor = {"bn_1": "folded into conv_1"}
    artifacts.decoding = (Decoding("PNG, palette", 2, False, 12, 0.031, rule="Palettes come first."),)
    proxy = row("onnxruntime", "int8", 4, 1.0, caveat="says nothing about engines", file=ONNX[2])
    artifacts.rows = [*(artifacts.rows or []), proxy]
    return artifacts.write().page()


# --- tables and footnotes ---


def test_the_verdict_is_the_first_column(full: Page) -> None:
    heads = {
        node.all("h2")[0].text: [[cell.unmarked for cell in one.all("th")] for one in node.all("table")]
        for node in full.root.all("section")
    }
    assert [heads[title][0][0] for title in ("Parity", "Engines", "Speed")] == ["verdict"] * 3
    first = [
        heads[title][0][0] for title in ("What was judged", "Quantization", "Sensitivity to INT8", "INT8 placement")
    ]
    assert first == ["now", "chosen", "stays", "precision"]
    for one in full.root.all("td"):
        badges = one.all("span", "badge")
        assert not badges or badges[0].text, "a verdict is a word, not a colour alone"


def test_footnotes_lead_to_their_text_and_back(full: Page) -> None:
    assert full.remarks("Parity", 0) == ["At least 97.0 % agreement with 95 % confidence."]
    assert full.remarks("Parity", 1) == ["At least 97.0 % agreement with 95 % confidence.", "FP16: a proxy."]
    (lost,) = [cell for cell in full.section("Parity").all("th") if cell.unmarked == "lost / gained"]
    assert full.note(lost.all("a")[0].attrs["href"]).startswith("Lost / gained: images that only the reference")
    listed = [node.text for node in full.section("Parity").all("ol", "footnotes")[0].all("li")]
    assert len(listed) == len(set(listed)) == 3


def shown(table: Table) -> Page:
    """A table as a page has it."""
    return element("table", table)


def test_a_remark_is_said_once_and_an_empty_one_never() -> None:
    page = shown(Table(("a", "b"), [("1", Cell("2", remarks=["", ""]))]))
    assert not page.root.all("ol")
    assert not page.root.all("span", "marks")
    page = shown(
        Table(
            (Cell("a", remarks=["head"]), "b"),
            [(Cell("1", remarks=["one", "two", "one"]), ""), (Cell("2", remarks=["two"]), "3")],
            "x",
        )
    )
    links = {
        node.text: [link.attrs["href"] for link in node.all("a")] for node in page.root.all("th") + page.root.all("td")
    }
    assert links == {
        "a 3": ["#x-note-3"],
        "b": [],
        "1 1 2": ["#x-note-1", "#x-note-2"],
        "2 2": ["#x-note-2"],
        "": [],
        "3": [],
    }
    assert [node.text for node in page.root.all("li")] == ["one ↑", "two ↑", "head ↑"]
    assert [node.attrs["id"] for node in page.root.all("sup") if "id" in node.attrs] == [
        "x-note-3-from",
        "x-note-1-from",
        "x-note-2-from",
    ]


def test_every_link_leads_somewhere_and_no_name_stands_twice(full: Page) -> None:
    names = [node.attrs["id"] for node in full.root.walk() if "id" in node.attrs]
    assert len(names) == len(set(names))
    links = [node.attrs["href"] for node in full.root.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(names)
    (contents,) = full.root.all("nav", "contents")
    titles = [node.text for node in full.root.all("h2")]
    assert [node.text for node in contents.all("a")] == titles
    assert [full.section(title).attrs["id"] for title in titles] == [
        node.attrs["href"].removeprefix("#") for node in contents.all("a")
    ]


def test_what_did_not_run_is_apart_from_what_did(full: Page) -> None:
    assert [cells["candidate"] for cells in full.rows("Parity")] == [*ONNX[:3], ONNX[2]]
    assert [node.text for node in full.section("Parity").all("p", "apart")] == [f"not run {PLAN}: no GPU."]


def test_what_says_nothing_of_engines_is_apart(full: Page) -> None:
    (apart,) = full.section("Speed").all("details")
    assert apart.all("summary")[0].text == "1 CPU time that does not predict engines"
    assert [cells["what ran"] for cells in full.rows("Speed", 1)] == ["onnxruntime int8"]
    assert full.remarks("Speed", 0, 1)[0] == "Says nothing about engines."
    assert [cells["what ran"] for cells in full.rows("Speed")] == ["keras fp32", "onnxruntime fp32"]
    assert [bar.label for bar in full.chart("Latency")] == ["keras fp32", "onnxruntime fp32"]
    assert full.card("speed")[:2] == ("2.0x", "Keras' speed: onnxruntime fp32, batch 4")


def test_sqnr_is_explained_with_what_is_good(full: Page) -> None:
    words = full.section("Parity").text
    assert "at 20 dB the error is a tenth of them" in words
    assert "Good values are 100 and more for FP32, 50 for FP16, 20 for INT8" in words


# --- templates ---


def test_every_template_is_called_by_its_name_and_is_there() -> None:
    named = {
        name
        for path in [*(ROOT / "pipeline" / "reporting").glob("*.py"), *TEMPLATES.iterdir()]
        for name in re.findall(r'"([a-z_]+\.html\.j2)"', path.read_text())
    }
    assert named == {path.name for path in TEMPLATES.iterdir()}


def test_a_value_that_a_template_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'command' is undefined"):
        render("not_timed.html.j2", comand="make")


# --- words ---


def test_one_of_everything_is_one(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.sensitivity = LAYERS[:1]
    artifacts.hops = [hop(ONNX[0], "fp32", images=1), hop(PLAN, "int8", images=1)]
    artifacts.history = (Epoch("head", 1, 1.0, 0.5),)
    artifacts.predictions = [("images/0.png", "ok", CLASSES[0], 0.5, "")]
    artifacts.card = replace(artifacts.card, parameters=1)
    path = artifacts.write().root / "quantize/calibration.json"
    text = path.read_text()
    for key in ("held_out_images", "scale_images", "int8_convolutions", "convolutions", "equalized_activations"):
        text = re.sub(rf'"{key}": \d+', f'"{key}": 1', text)
    path.write_text(text)
    page = artifacts.page()
    assert "1 parameter, from scratch, 1 epoch." in page.section("Training").text
    assert "on 1 test image that" in page.section("Parity").text
    assert "from 1 calibration image; every choice was made on 1 other," in page.section("Quantization").text
    assert "1 of 1 convolution computes in INT8; 1 activation was equalized." in page.section("Quantization").text
    assert page.section("Engines").text.startswith("Engines 1 TensorRT engine, built")
    assert page.section("Sensitivity to INT8").all("summary")[0].text == "Show the 1 layer"
    assert page.section("Predictions").text.startswith("Predictions A test image, classified")
    words = " ".join(node.text for node in page.root.walk() if node.tag in ("p", "summary", "figcaption"))
    assert not re.findall(r"(?<![\d.,/])1 (?!is\b|says\b|was\b)[a-zA-Z]+s\b", words)


# --- for everybody ---


def test_headings_go_down_one_step_at_a_time(full: Page) -> None:
    levels = [int(node.tag[1]) for node in full.root.walk() if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_language_pictures_and_tables_say_what_they_are(full: Page) -> None:
    assert full.root.all("html")[0].attrs["lang"] == "en"
    assert all(node.attrs["alt"] for node in full.root.all("img"))
    assert {node.attrs["role"] for node in full.root.all("table")} == {"table"}
    assert {node.attrs["role"] for node in full.root.all("td")} == {"cell"}
    assert ":focus-visible" in CSS
    assert "summary:focus-visible" in CSS


def palette(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", css))


LIGHT = palette(CSS[: CSS.index("@media")])
DARK = LIGHT | palette(CSS[CSS.index("prefers-color-scheme: dark") : CSS.index("* { box-sizing")])


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_everything_can_be_read_in_both_schemes(colors: dict[str, str]) -> None:
    pairs = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("paper", "ground")]
    kinds = ("pass", "fail", "wait", "open")
    pairs += [(kind, f"{kind}-tint") for kind in kinds] + [(kind, "paper") for kind in kinds]
    for ink, ground in pairs:
        assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    heat = [f"{kind}{depth}" for kind in ("hit", "miss") for depth in range(1, 5)]
    for tint in heat:
        assert contrast(colors["ink"], colors[tint]) >= 4.5, tint
    for mark in ("keras", "fp32", "fp16", "int8", "limit", "late", "below"):
        assert contrast(colors[mark], colors["paper"]) >= 3, mark


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_the_strip_of_layers_can_be_told_apart_without_colour(colors: dict[str, str]) -> None:
    depths = [luminance(colors[f"depth{depth}"]) for depth in range(4)]
    assert depths == sorted(depths, reverse=depths[0] > depths[-1])
    assert all(contrast(colors[f"depth{a}"], colors[f"depth{a + 1}"]) >= 1.5 for a in range(3))
    assert ".strip .below { border-top-width: 30px; }" in CSS, "below the threshold is higher too"


def test_every_term_is_explained_once_and_every_title_links_to_its_terms(full: Page) -> None:
    terms = [node.text for node in full.section("Terms").all("dt")]
    assert terms == list(TERMS)
    assert [node.text for node in full.section("Terms").all("dd")] == [
        " ".join(words.split()) for words in TERMS.values()
    ]
    linked = {
        title: [link.text for p in full.section(title).all("p", "terms") for link in p.all("a")]
        for title in ("Parity", "Layers against Keras")
    }
    assert linked["Layers against Keras"] == ["Own error", "SQNR", "Cosine", "Saturated", "Range used"]
    assert {"SQNR", "KL divergence", "Top-1 agreement", "Top-5 agreement"} <= set(linked["Parity"])
    assert all("Good" in words for term, words in TERMS.items() if term != "Logits"), "each says what is good"


def test_dark_changes_every_colour_of_the_page() -> None:
    assert [name for name in LIGHT if LIGHT[name] == DARK[name]] == []
    dark_only = CSS[CSS.index("* { box-sizing") :]
    assert set(re.findall(r"#[0-9a-f]{6}", dark_only)) == {"#14283d", "#27507c", "#ffffff", "#d3deea", "#10161d"}
    for ground in ("#14283d", "#27507c"):
        assert min(contrast(ink, ground) for ink in ("#ffffff", "#d3deea")) >= 4.5


# --- narrow screens and paper ---


def test_on_a_phone_a_row_is_a_block_with_the_names_of_its_columns(full: Page) -> None:
    for one in full.root.all("table"):
        head = [cell.unmarked for cell in one.all("th")]
        if "heat" in one.kinds:  # a matrix scrolls
            continue
        if len(head) > 2:
            assert "fold" in one.kinds, head
        if len(head) > 6:
            assert "wide" in one.kinds, head
        for line in one.all("tr")[1:]:
            assert [cell.attrs["data-label"] for cell in line.all("td")] == head
    narrow = CSS[CSS.index("@media screen and (max-width: 640px) {\n  .fold") :]
    assert ".fold td::before { content: attr(data-label)" in narrow
    assert ".fold, .fold tbody { display: block; }" in narrow


def test_nothing_is_wider_than_a_phone() -> None:
    assert not re.findall(r"min-width:\s*\d{3,}px", re.sub(r"@media[^{]*", "", CSS))
    assert not [size for size in re.findall(r"(?<![-\w])width:\s*(\d+)px", CSS) if int(size) > 320]
    assert "overflow-wrap: anywhere" in CSS[CSS.index("body {") : CSS.index("a {")]
    assert [rule for rule in re.findall(r"minmax\(([^,)]+)", CSS) if "min(100%" not in rule] == [
        "150px",
        "40%",
        "88px",
        "104px",
    ]
    assert "local" in CSS[CSS.index(".scroll {") : CSS.index("table {")], "what scrolls shows that it does"


def test_paper_cuts_no_row_and_no_chart() -> None:
    paper = CSS[CSS.index("@media print") :]
    assert "@page { size: A4" in CSS
    (whole,) = re.findall(r"([^{}]*)\{ break-inside: avoid; \}", paper)
    assert {"tr", "li", ".plot", ".curve", ".card"} <= {part.strip() for part in whole.split(",")}
    assert "details::details-content" in paper
    assert re.search(r"details\.long[^{]*\{ display: none; \}", paper)
    assert "border-top: 14px solid" in CSS, "a bar is a border, which is printed where a background is not"


def test_a_column_that_is_empty_throughout_is_left_out() -> None:
    page = shown(Table(("a", Cell("*b", remarks=["never said"]), "c"), [("1", "", ""), ("2", "", "x")]))
    assert not page.root.all("ol")
    assert [node.text for node in page.root.all("th")] == ["a", "c"]
    assert [[cell.text for cell in line.all("td")] for line in page.root.all("tr")[1:]] == [["1", ""], ["2", "x"]]


def test_the_style_is_the_one_in_the_repository(full: Page) -> None:
    assert full.root.all("style")[0].children == [(ROOT / "pipeline/reporting/report.css").read_text()]


def test_bytes_are_kilobytes_below_a_tenth_of_a_megabyte() -> None:
    assert [size(count) for count in (0, 13_700, 99_900, 100_000, 6_230_000)] == [
        *("0.0 kB", "13.7 kB", "99.9 kB", "0.1 MB", "6.2 MB"),
    ]
