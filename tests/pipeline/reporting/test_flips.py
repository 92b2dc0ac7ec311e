"""Changed answers with their pictures, confusions, classes that lost, and the noise of each image."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.image_results import ImageResults
from pipeline.reporting import classes, flips
from pipeline.reporting.charts import data_uri
from pipeline.reporting.pictures import SMALL
from tests.pipeline.report_artifacts import ONNX, SIZE, Artifacts, image_noise, image_results, layer, layer_run
from tests.pipeline.report_page import Node, Page

KERAS_ANSWERS = [0, 1, 2, 0, 1, 2]


def pixels(figure: Node) -> np.ndarray:
    (image,) = figure.all("img")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.attrs["src"].partition("base64,")[2]))))


def blocks(page: Page) -> list[str]:
    return [node.text for node in page.section(flips.TITLE).children if isinstance(node, Node) and node.tag[0] == "h"]


@pytest.fixture
def changed(artifacts: Artifacts) -> Artifacts:
    """INT8 serves, and has a real change, a near tie and no answer to an image; FP16 has one change."""
    artifacts.served = {"model": ONNX[2], "precision": "int8"}
    artifacts.results = image_results(
        {ONNX[0]: KERAS_ANSWERS, ONNX[1]: [0, 1, 2, 0, 0, 2], ONNX[2]: [0, 2, 1, 0, 1, -1]},
        (0.5, 0.05, 0.6, 0.5, 0.5, 0.02),
    )
    return artifacts


def test_every_changed_answer_has_its_picture_and_both_answers(changed: Artifacts) -> None:
    page = changed.write().page()
    section = page.section(flips.TITLE)
    assert [node.text for node in section.all("h3")] == [f"{ONNX[2]} serves", ONNX[1]], "what serves comes first"
    assert [node.text for node in section.all("h4")] == ["Real changes", "Near ties", "Real changes"]
    figures = section.all("figure")
    assert [node.text for node in figures] == [
        "2.png Keras: owl 90 % here: dog 75 % is owl",
        "5.png Keras: owl 90 % here: NaN or infinite is owl",
        "1.png Keras: dog 90 % here: owl 75 % is dog",
        "4.png Keras: dog 90 % here: cat 75 % is dog",
    ]
    for number, figure in zip((2, 5, 1, 4), figures):
        np.testing.assert_array_equal(pixels(figure), changed.image(number))
    notes = [node.text for node in section.all("p", "note")]
    assert notes == [
        "3 changed answers: 2 real, 1 near tie.",
        "1 changed answer: 1 real, 0 near ties.",
        "No answer changed: model.onnx.",
    ]
    assert not section.all("table")


def test_what_has_no_picture_is_in_a_table(changed: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flips, "PICTURES", 1)
    page = changed.write().page()
    assert len(page.section(flips.TITLE).all("img")) == 1
    assert page.rows(flips.TITLE)[1] == {
        **{"kind": "near tie", "image": "1.png", "Keras": "dog 90 %", "this file": "owl 75 %"},
        **{"true class": "dog", "margin": "5.00%"},
    }
    assert [cells["image"] for cells in page.rows(flips.TITLE)] == ["5.png", "1.png"]
    assert [cells["image"] for cells in page.rows(flips.TITLE, 1)] == ["4.png"]
    monkeypatch.setattr(flips, "MOST_ROWS", 1)
    section = changed.page().section(flips.TITLE)
    assert section.all("summary")[0].text == "2 changed answers without a picture"
    assert "1 more changed answer is in verify/images.npz." in section.text


def test_pixels_of_another_set_of_images_are_not_shown(changed: Artifacts) -> None:
    results = changed.results
    assert results is not None
    changed.results = ImageResults(
        results.names[1:],
        results.labels[1:],
        results.runs,
        results.classes[:, 1:],
        results.scores[:, 1:],
        results.margins[1:],
        results.noise_db[:, 1:],
    )
    section = changed.write().page().section(flips.TITLE)
    assert not section.all("img")
    assert len(section.all("td")) > 0


def test_a_photo_is_a_small_jpeg() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (SIZE * 32, SIZE * 32, 3), dtype=np.uint8)
    uri = data_uri(photo, SMALL)
    assert uri.startswith("data:image/jpeg;")
    assert len(uri) < 6000
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))).size == (64, 64)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_damaged_or_missing_results_cost_their_sections_alone(changed: Artifacts, damage: bytes | None) -> None:
    path = changed.write().root / "verify/images.npz"
    if damage is None:
        path.unlink()
        words = "This verdict has no results image by image."
    else:
        path.write_bytes(damage)
        words = "verify/images.npz is left out: "
    page = changed.page()
    (said,) = page.section(flips.TITLE).all("p")
    assert said.text.startswith(words)
    assert "Classes" not in [node.text for node in page.root.all("h2")]


def test_results_that_verify_did_not_write_are_left_out(changed: Artifacts) -> None:
    root = changed.write().root
    image_results({ONNX[0]: [1] * 6}).write(root / "verify/images.npz")
    assert "it is not the one that the verify stage wrote" in changed.page().section(flips.TITLE).text


def test_results_of_another_number_of_classes_are_left_out(changed: Artifacts) -> None:
    changed.results = image_results({ONNX[0]: [0, 1, 2, 0, 1, 3]})
    assert "it is of a model with other classes" in changed.write().page().section(flips.TITLE).text


# --- classes ---


def cells(page: Page, number: int) -> list[list[str]]:
    return [
        [cell.text for cell in line.all("td")]
        for line in page.section("Classes").all("table", "heat")[number].all("tr")[1:]
    ]


def test_confusions_of_keras_and_of_what_serves(changed: Artifacts) -> None:
    page = changed.write().page()
    assert [node.text for node in page.section("Classes").all("h4")] == ["Keras", "model.int8.onnx"]
    assert cells(page, 0) == [["2", "", ""], ["", "2", ""], ["", "", "2"]]
    assert cells(page, 1) == [["2", "", ""], ["", "1", "1"], ["", "1", ""]]
    kinds = [
        sorted(cell.kinds - {"n"}) for cell in page.section("Classes").all("table", "heat")[1].all("tr")[2].all("td")
    ]
    assert kinds == [[], ["hit2"], ["miss2"]]
    assert "Images without a finite answer are not counted: 1 of model.int8.onnx." in page.section("Classes").text
    assert "model.int8.onnx: owl lost 2 of 2 images, dog lost 1 of 2 images." in page.section("Classes").text
    assert page.rows("Classes", 2) == [
        {"class": "owl", "images": "2", "Keras": "100.00%", "model.int8.onnx": "0.00%"},
        {"class": "dog", "images": "2", "Keras": "100.00%", "model.int8.onnx": "50.00%"},
        {"class": "cat", "images": "2", "Keras": "100.00%", "model.int8.onnx": "100.00%"},
    ]


def test_where_nothing_serves_every_file_is_shown_and_equal_matrices_once(changed: Artifacts) -> None:
    root = changed.write().root
    (root / "infer/manifest.json").unlink()
    page = changed.page()
    titles = [node.text for node in page.section("Classes").all("h4")]
    assert titles == ["Keras, model.onnx", "model.fp16.onnx", "model.int8.onnx"]
    assert cells(page, 1) == [["2", "", ""], ["1", "1", ""], ["", "", "2"]]
    assert not page.section(flips.TITLE).all("span", "badge")


def test_of_many_classes_the_most_frequent_confusions_are_listed(changed: Artifacts, monkeypatch) -> None:
    monkeypatch.setattr(classes, "MOST_CLASSES", 2)
    monkeypatch.setattr(classes, "ROWS_BY_CLASS", 2)
    page = changed.write().page()
    assert not page.section("Classes").all("table", "heat")
    assert page.rows("Classes") == [
        {"true class": "dog", "answer": "owl", "Keras": "0", "model.int8.onnx": "1"},
        {"true class": "owl", "answer": "dog", "Keras": "0", "model.int8.onnx": "1"},
    ]
    assert len(page.rows("Classes", 1)) == 2
    assert "1 more class is not shown." in page.section("Classes").text


def test_images_without_labels_have_no_classes(changed: Artifacts) -> None:
    assert changed.results is not None
    changed.results = replace(changed.results, labels=np.full(6, -1))
    page = changed.write().page()
    assert "Classes" not in [node.text for node in page.root.all("h2")]
    assert page.section(flips.TITLE).all("figure")[0].text == "2.png Keras: owl 90 % here: dog 75 %"


# --- noise of each image ---

NOISE = "Noise of each image"


def test_the_worst_images_are_shown_with_both_answers(changed: Artifacts) -> None:
    changed.hops[1] = replace(changed.hops[1], image_noise=image_noise([(4, 51.25)], 60.0))
    changed.hops[2] = replace(changed.hops[2], image_noise=image_noise([(5, None), (1, 8.54)]))
    saturated = [layer("conv_1", 30.0, 30.0, saturated=0.001), layer("conv_2", 30.0, 30.0, saturated=0.0124)]
    changed.layers = (layer_run(ONNX[2], "int8", 20.0, *saturated),)
    page = changed.write().page()
    assert page.rows(NOISE) == [
        {
            **{"run": ONNX[2], "median, dB": "40.0", "5th percentile, dB": "30.0", "mean, dB": "39.0"},
            **{"deviation, dB": "2.5", "worst, dB": "NaN or infinite"},
        },
        {
            **{"run": ONNX[1], "median, dB": "60.0", "5th percentile, dB": "50.0", "mean, dB": "59.0"},
            **{"deviation, dB": "2.5", "worst, dB": "51.2"},
        },
    ]
    figures = page.section(NOISE).all("figure")
    assert [node.text for node in figures] == [
        "NaN or infinite 5.png Keras: owl 90 % here: NaN or infinite",
        "8.5 dB 1.png Keras: dog 90 % here: owl 75 %",
        "51.2 dB 4.png Keras: dog 90 % here: cat 75 %",
    ]
    for number, figure in zip((5, 1, 4), figures):
        np.testing.assert_array_equal(pixels(figure), changed.image(number))
    clips = "conv_2 clips most: 1.24% of its values are at the end of the range (tensor conv_2/out)."
    assert [node.text for node in page.section(NOISE).all("p", "note")] == [clips]
    folds = [(node.all("summary")[0].text, "open" in node.attrs) for node in page.section(NOISE).all("details")]
    assert folds == [(f"Worst images of {ONNX[2]}, which serves", True), (f"Worst images of {ONNX[1]}", False)]


def test_without_results_the_noise_is_numbers_alone(changed: Artifacts) -> None:
    changed.hops[2] = replace(changed.hops[2], image_noise=image_noise([(1, 8.5), (99, 9.0)]))
    changed.results = None
    section = changed.write().page().section(NOISE)
    assert not section.all("figure")
    assert len(section.all("tr")) == 2
