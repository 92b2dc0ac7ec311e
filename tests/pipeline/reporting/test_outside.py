"""What comes from outside: images and their answers, damaged files, and texts that would like to be code."""

from __future__ import annotations

import base64
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import ProjectError
from pipeline.artifacts.diagnosis import Decoding, Hint
from pipeline.artifacts.paths import Artifacts as Paths
from pipeline.data.decode import DecodeSpec
from pipeline.reporting import charts
from pipeline.reporting.charts import data_uri
from pipeline.reporting.html import TEMPLATES
from pipeline.reporting.pictures import SMALL, small_pictures
from pipeline.reporting.sections import labels_by_pixels
from pipeline.training.checkpoint import Epoch
from tests.pipeline.report_artifacts import (
    CLASSES,
    LAYERS,
    ONNX,
    PLAN,
    SIZE,
    Artifacts,
    hop,
    image_noise,
    image_results,
    layer,
    layer_run,
    not_compared,
    row,
    write_csv,
)
from tests.pipeline.report_page import Page

# --- predictions ---


def figures(page: Page) -> list[tuple[str, set[str]]]:
    return [(node.text, node.kinds) for node in page.section("Predictions").all("figure")]


def test_predictions_and_what_is_wrong_with_them(artifacts: Artifacts) -> None:
    long = f"{'n' * 150}.png"
    artifacts.predictions = [
        ("images/0.png", "ok", "cat", 0.875, ""),
        ("images/1.png", "ok", "owl", 0.515, ""),
        ("images/broken.png", "error", "", "", "not an image <b>"),
        ("images/gone.png", "ok", "cat", 0.25, ""),
        ("images/odd\udcff<i>.png", "ok", "dog", 0.25, ""),
        (f"images/{long}", "ok", "dog", 0.25, ""),
        ("images/text.png", "ok", "dog", 0.25, ""),
        ("images/other.png", "ok", "dog", 0.25, ""),
    ]
    images = artifacts.root / "infer/images"
    images.mkdir(parents=True)
    (images / "text.png").write_text("no image")
    Image.fromarray(np.full((SIZE, SIZE, 3), 251, np.uint8)).save(images / "other.png")
    page = artifacts.write().page()
    shown = figures(page)
    assert shown[0] == ("cat 88%", {"right"})
    assert shown[1] == ("✗ owl 52% is dog", {"wrong"})
    assert shown[2] == ("broken.png: not an image <b>", {"missing"})
    assert shown[3] == ("gone.png: cat 25%; there is no such file here", {"missing"})
    assert shown[4][0].startswith("odd\\udcff<i>.png: dog")
    assert shown[5][0].startswith("n" * 59 + "…: dog")
    assert shown[6] == ("text.png: dog 25%; not an image that Pillow can read", {"missing"})
    assert shown[7][0] == "other.png: dog 25%; the file is no longer a test image that was verified"
    assert len(page.section("Predictions").all("img")) == 2
    assert page.section("Predictions").all("code")[0].text == "export/model.onnx"


def test_at_most_24_predictions(artifacts: Artifacts) -> None:
    artifacts.predictions = [(f"images/{n % 3}.png", "ok", CLASSES[n % 3], 0.5, "") for n in range(30)]
    assert len(figures(artifacts.write().page())) == 24


def test_thumbnails_are_decoded_as_the_card_says(artifacts: Artifacts) -> None:
    artifacts.card = replace(artifacts.card, decode=DecodeSpec((SIZE, SIZE), "pad"))
    artifacts.predictions = [("images/0.png", "ok", "cat", 0.5, "")]
    wide = np.random.default_rng(1).integers(0, 255, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
    expected = artifacts.card.decode.pixels(wide)
    artifacts.image = lambda number: expected  # type: ignore[method-assign]
    artifacts.write()
    Image.fromarray(wide).save(artifacts.root / "infer/images/0.png")
    (image,) = artifacts.page().section("Predictions").all("img")
    data = base64.b64decode(image.attrs["src"].partition("base64,")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_a_large_image_is_shown_small() -> None:
    data = base64.b64decode(data_uri(np.zeros((200, 320, 3), np.uint8)).partition("base64,")[2])
    assert Image.open(io.BytesIO(data)).size == (160, 100)


def test_equal_pixels_of_two_classes_are_neither_right_nor_wrong(artifacts: Artifacts) -> None:
    artifacts.image = lambda number: np.zeros((SIZE, SIZE, 3), np.uint8)  # type: ignore[method-assign]
    assert {str(kinds) for _, kinds in figures(artifacts.write().page())} == {"set()"}


def test_predictions_of_an_older_verdict_are_not_shown(artifacts: Artifacts) -> None:
    path = artifacts.write().root / "verify/parity.json"
    path.write_text(path.read_text() + "\n")
    assert "classifies no images" in artifacts.page().section("Predictions").text


def test_predictions_of_a_file_that_is_inconclusive(artifacts: Artifacts) -> None:
    artifacts.hops[0] = hop(ONNX[0], "fp32", "inconclusive")
    assert "export/model.onnx (verdict: inconclusive)" in artifacts.write().page().section("Predictions").text


# --- images that the model was trained on ---


def test_some_training_images_are_shown_with_their_classes(artifacts: Artifacts) -> None:
    assert not artifacts.write().page().section("Training").all("img"), "an earlier version wrote none"
    artifacts.samples = (2, 0, 1)
    artifacts.card = replace(artifacts.card, classes=("<b>cat", "dog", "owl"))
    artifacts.predictions = []
    shown = artifacts.write().page().section("Training").all("figure")
    assert [node.text for node in shown] == ["owl", "<b>cat", "dog"]
    for number, node in enumerate(shown):
        (image,) = node.all("img")
        data = base64.b64decode(image.attrs["src"].partition("base64,")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), artifacts.image(number))


def test_training_images_of_another_model_are_refused(artifacts: Artifacts) -> None:
    artifacts.samples = (0, 3)
    with pytest.raises(ProjectError, match=r"labels from 0 to 3 for 3 classes\. Run the train stage again\.") as caught:
        artifacts.write().page()
    assert str(artifacts.root / "train/samples.npz") in str(caught.value)


# --- damage ---

GOOD = ("images/0.png", "ok", "cat", "0.5", "")


@pytest.mark.parametrize(
    ("head", "bad", "said"),
    [
        (None, ("images/0.png", "ok", "cat", "high", ""), "number from 0 to 1 as 'probability' in row 2"),
        (None, ("images/0.png", "ok", "cat", "nan", ""), "'probability' in row 2"),
        (None, ("images/0.png", "ok", "cat", "1.5", ""), "'probability' in row 2"),
        (None, ("images/0.png", "ok", "cat", "", ""), "'probability' in row 2"),
        (None, ("images/0.png", "ok", "emu", "0.5", ""), "'class' in row 2"),
        (None, ("images/0.png", "fine", "cat", "0.5", ""), "ok or error as 'status' in row 2"),
        (None, ("images/0.png", "ok"), "Expected 5 cells in row 2"),
        (None, (*GOOD, "more"), "Expected 5 cells in row 2"),
        (("path", "status", "class", "error"), GOOD[:4], "Expected the column 'probability' once"),
        (("path", "path", "status", "class", "probability", "error"), GOOD, "Expected the column 'path' once"),
        ((), (), "Expected the column 'path' once"),
    ],
)
def test_damaged_predictions(artifacts: Artifacts, head, bad, said: str) -> None:
    path = artifacts.write().root / "infer/predictions.csv"
    columns = ("path", "status", "class", "probability", "error") if head is None else head
    write_csv(path, columns, [GOOD, bad] if head is None else [bad])
    with pytest.raises(ProjectError, match=said) as caught:
        artifacts.page()
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Run the infer stage again.")
    assert artifacts.inputs()["infer/predictions.csv"]


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b'path,"status', b"\0" * 10, b"x" * 400_000])
def test_predictions_that_are_no_csv(artifacts: Artifacts, data: bytes) -> None:
    path = artifacts.write().root / "infer/predictions.csv"
    path.write_bytes(data)
    with pytest.raises(ProjectError, match=r"predictions\.csv") as caught:
        artifacts.page()
    assert len(str(caught.value)) < 600
    assert not [name for name in artifacts.inputs() if "image " in name]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("noise", "-1"),
        ("noise", "much"),
        ("sqnr_db", "?"),
        ("top1_agreement", "2"),
        ("accuracy_drop", "x"),
        ("kept", ""),
    ],
)
def test_damaged_sensitivity(artifacts: Artifacts, column: str, value: str) -> None:
    columns = ("keras_layer", "node", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept")
    bad = list(LAYERS[1])
    bad[columns.index(column)] = value
    artifacts.sensitivity = [LAYERS[0], tuple(bad)]
    with pytest.raises(ProjectError, match=rf"'{column}' in row 2 of .*sensitivity\.csv.*quantize stage again\."):
        artifacts.write().page()


def test_a_layer_that_overflows_is_shown(artifacts: Artifacts) -> None:
    artifacts.sensitivity = [("conv_3", "n3", "Conv", "-inf", "inf", "0.1000", "0.5000", "fp16"), *LAYERS]
    assert artifacts.write().page().rows("Sensitivity to INT8")[0]["SQNR alone, dB"] == "-inf"


@pytest.mark.parametrize(
    "name",
    [
        *("train/model.json", "train/history.json", "quantize/calibration.json", "quantize/placement.json"),
        *("verify/parity.json", "verify/reference.npz", "benchmark/benchmark.json", "train/samples.npz"),
    ],
)
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"[[]]"])
def test_a_damaged_record_is_one_error_that_names_it(artifacts: Artifacts, name: str, damage: Callable) -> None:
    artifacts.samples = (0, 1)
    path = artifacts.write().root / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ProjectError) as caught:
        artifacts.page()
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.array([0, 1, 2, 3, 4, 5])}, "labels from 0 to 5 for 3 classes"),
        ({"labels": np.array([0, 1, -2, 0, 1, 2])}, "labels from -2 to 2"),
        ({"labels": np.zeros(5, int)}, r"labels int64 \(5,\)"),
        ({"labels": np.zeros(6)}, "labels float64"),
        ({"pixels": np.zeros((6, 4, 4, 3), np.uint8)}, r"pixels uint8 \(6, 4, 4, 3\)"),
        ({"pixels": np.zeros((6, SIZE, SIZE, 3))}, "pixels float64"),
        ({"pixels": None}, "pixels"),
    ],
)
def test_a_reference_of_another_model(artifacts: Artifacts, arrays: dict, said: str) -> None:
    path = artifacts.write().root / "verify/reference.npz"
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files} | arrays
    np.savez(path, **{name: value for name, value in kept.items() if value is not None})
    with pytest.raises(ProjectError, match=said) as caught:
        artifacts.page()
    assert str(path) in str(caught.value)


def test_images_without_a_label_have_no_true_class(artifacts: Artifacts) -> None:
    artifacts.samples = [0, 1, 2]
    root = artifacts.write().root
    for name in ("verify/reference.npz", "train/samples.npz"):
        with np.load(root / name) as file:
            arrays = dict(file)
        arrays["labels"][1] = -1
        np.savez(root / name, **arrays)
    page = artifacts.page()
    assert "an image without a label" in page.section("Training").text
    with np.load(root / "verify/reference.npz") as file:
        found = labels_by_pixels(Paths(root), artifacts.card)
        assert [found[sha256(pixels.tobytes()).digest()] for pixels in file["pixels"]][:3] == ["cat", None, "owl"]


def test_pictures_are_taken_from_more_test_images_than_the_memory_holds(artifacts: Artifacts) -> None:
    root, number = artifacts.write().root, 50_000
    pixels = np.zeros((number, SIZE, SIZE, 3), np.uint8)
    pixels[7], pixels[-1] = artifacts.image(0), artifacts.image(1)
    np.savez(root / "verify/reference.npz", pixels=pixels, labels=np.full(number, -1, np.int8))
    tracemalloc.start()
    found = small_pictures(Paths(root), artifacts.card, [number - 1, 7, number], number)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(found) == [7, number - 1]
    assert (found[7], found[number - 1]) == (data_uri(pixels[7], SMALL), data_uri(pixels[-1], SMALL))
    assert peak < pixels.nbytes / 2


def test_damaged_manifests_and_sidecars_leave_a_page(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(hop(PLAN, "int8"))
    root = artifacts.write().root
    for path in root.glob("*/manifest.json"):
        path.write_text("{}")
    (root / "build/rtx/int8.json").write_text('{"schema": 2}')
    page = artifacts.page()
    assert page.section("Stages").text.count("its record is damaged") == 7
    (remark,) = page.remarks("Engines", 0)
    assert remark.startswith("Expected 'flavour' of type text in")
    assert page.rows("Engines")[0]["verdict"] == "not verified"
    assert "None:" in page.section("Predictions").text


@pytest.mark.parametrize(
    ("stage", "damage", "key"),
    [
        ("build", {"why_not": 5}, "why_not"),
        ("infer", {"backend": None}, "backend"),
        ("infer", {"at_batch": "x"}, "at_batch"),
    ],
)
def test_a_result_of_other_types_is_told_with_its_stage(
    artifacts: Artifacts, stage: str, damage: dict, key: str
) -> None:
    artifacts.write()
    inputs = artifacts.digests("verify/parity.json", "export/model.onnx", "train/model.json")
    artifacts.manifest(stage, {"model": "export/model.onnx"} | damage if stage == "infer" else damage, inputs)
    again = f"Run the {stage} stage again, with --force"
    with pytest.raises(ProjectError, match=rf"Expected '{key}' of type .* in {stage}/manifest\.json\. .*{again}"):
        artifacts.page()


# --- what comes from outside ---

EVIL = "<script>alert('&')</script>\x00"


def test_nothing_from_outside_becomes_part_of_the_page(artifacts: Artifacts, real_plots: None) -> None:
    shown = "<script>alert('&')</script>\\x00"
    artifacts.description = "<script>alert('&')</script>"
    artifacts.card = replace(artifacts.card, classes=(EVIL, "dog", "owl"), backbone=EVIL)
    artifacts.warnings = (f"doubt {EVIL}",)
    artifacts.history = (Epoch(EVIL, 1, 1.0, 0.5),)
    artifacts.hops[0] = hop(ONNX[0], "fp32", certainty=f"sure {EVIL}", note=f"note {EVIL}", reference=EVIL)
    artifacts.hops.append(not_compared(f"build/rtx/{EVIL}.plan", "fp16", "fail", f"died {EVIL}"))
    artifacts.rows = [
        row("keras", "fp32", 1, None, error=EVIL, includes=EVIL),
        row("onnxruntime", "fp32", 1, 1.0, caveat=EVIL, variant=f"$a{EVIL}$"),
    ]
    artifacts.predictions = [(f"images/{EVIL.replace('/', '')}", "ok", EVIL, 0.5, ""), ("x", "error", "", "", EVIL)]
    artifacts.sensitivity = [(EVIL, "n", EVIL, "1.0", "1.0", "0.5", "0.5", "int8")]
    artifacts.plans = ["build/rtx/fp16-<i>.plan"]
    results = image_results({ONNX[2]: [1, 2, 0, 1, 2, 0]})
    artifacts.results = replace(results, names=(EVIL, *results.names[1:]))
    artifacts.hops[2] = hop(ONNX[2], "int8", image_noise=image_noise([(0, 5.0)]))
    artifacts.decoding = (Decoding(EVIL, 1, False, 1, 0.5, rule=EVIL),)
    artifacts.layers = (layer_run(EVIL, "int8", 20.0, layer(EVIL, 1.0, 1.0), note=EVIL),)
    artifacts.without_tensor = {EVIL: EVIL}
    root = artifacts.write().root
    _replace(root / "build/rtx/fp16-<i>.json", "a convolution is FP32", "SM86", "1.7.1")
    _replace(root / "benchmark/benchmark.json", "Fast CPU", "Big GPU")
    _replace(root / "quantize/calibration.json", "conv_9", "overflows", "SQNR of at least 20.0 dB", "minmax")
    _replace(root / "quantize/placement.json", "dense", "MatMul", "the classifier stays in float")
    _replace(root / "train/manifest.json", np.__version__)
    page = artifacts.page()
    assert not page.root.all("script")
    assert not page.root.all("i")
    source = (artifacts.folder / "out/report.html").read_text(encoding="utf-8")
    assert "\0" not in source
    quantized = ("Sensitivity to INT8", "Quantization", "INT8 placement")
    explained = ("Changed answers", "Classes", "Noise of each image", "Layers against Keras", "How files are decoded")
    for title in (*quantized, *explained, "Training", "Parity", "Speed", "Predictions", "Engines"):
        assert shown in page.section(title).text, title
    assert f"doubt {shown}" in page.alerts
    assert shown in page.section("What was judged").text


def test_hints_are_text(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail")
    artifacts.hints = (Hint(EVIL, EVIL, "unknown", EVIL, EVIL, EVIL, EVIL),)
    page = artifacts.write().page()
    assert not page.root.all("script")
    said = page.section("What to look at").text
    assert said.count("<script>alert('&')</script>\\x00") == 4, "layer, text, evidence and remedy"


def test_a_quote_in_a_name_ends_no_attribute(artifacts: Artifacts) -> None:
    name = 'a" onload="alert(1).png'
    artifacts.predictions = [(f"images/{name}", "ok", "cat", 0.5, "")]
    artifacts.write()
    Image.fromarray(artifacts.image(0)).save(artifacts.root / "infer/images" / name)
    (image,) = artifacts.page().section("Predictions").all("img")
    assert image.attrs.keys() == {"src", "alt"}
    assert image.attrs["alt"] == f"{name}, classified as cat"


def test_only_what_the_project_wrote_itself_is_taken_for_html() -> None:
    templates = "".join(path.read_text(encoding="utf-8") for path in TEMPLATES.iterdir())
    assert sorted(re.findall(r"(\w+) *\| *safe\b", templates)) == ["curve", "style"]
    assert templates.count("safe") == 2


def _replace(path: Path, *texts: str) -> None:
    content = path.read_text()
    for text in texts:
        assert json.dumps(text)[1:-1] in content
        content = content.replace(json.dumps(text), json.dumps(EVIL))
    path.write_text(content)


def test_a_name_does_not_turn_what_stands_beside_it(artifacts: Artifacts) -> None:
    turning = "\u202egnp.tac\u2066"
    artifacts.card = replace(artifacts.card, classes=("قطة", turning, "owl"))
    artifacts.predictions = [("images/0.png", "ok", "قطة", 0.5, ""), ("images/1.png", "ok", turning, 0.5, "")]
    page = artifacts.write().page()
    assert [text for text, _ in figures(page)] == ["قطة 50%", "\\u202egnp.tac\\u2066 50%"]
    assert {node.attrs["dir"] for node in page.section("Predictions").all("b")} == {"auto"}


def test_a_page_with_a_lone_surrogate_is_written(artifacts: Artifacts, monkeypatch) -> None:
    monkeypatch.setattr(charts, "training_curves", lambda history: ("<svg>plot \udcff</svg>",))
    recipe = replace(artifacts.context.recipe, description="odd \udcff")
    artifacts.write().page(recipe)
    source = (artifacts.folder / "out/report.html").read_text(encoding="utf-8")
    assert "odd \\udcff" in source
    assert "plot \\udcff" in source
