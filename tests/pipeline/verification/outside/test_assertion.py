"""`assert_parity` passes what answers alike, and its failure says which threshold, by how much and for which images."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from export.errors import DataError, ProjectError, RecipeError
from export.files import ROOT
from pipeline.artifacts.paths import KERAS, ONNX
from pipeline.recipe.schema import Thresholds
from pipeline.runners.base import softmax
from pipeline.verification import ParityError, assert_parity
from tests import tiny_onnx
from tests.conftest import Chain
from tests.foreign_onnx import foreign

PIXELS = tiny_onnx.pixels(60)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx.write(tmp_path_factory.mktemp("own") / "own.onnx")


def as_floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32)


def scaled(path: Path, out: Path, factor: float) -> Path:
    """A copy whose first convolution is scaled."""
    model = onnx.load(str(path))
    kernel = next(one for one in model.graph.initializer if one.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(kernel) * factor).astype(np.float32), "kernel"))
    onnx.save(model, str(out))
    return out


def test_two_files_that_answer_alike_pass_with_all_numbers(own: Path, tmp_path: Path) -> None:
    hop = assert_parity(own, foreign(tmp_path / "x.onnx", floats=False), PIXELS, np.zeros(60, int))
    assert (hop.verdict, hop.precision, hop.images) == ("pass", "fp32", 60)
    assert hop.relative_error is not None
    assert hop.relative_error < 1e-5
    assert hop.accuracy_reference == hop.accuracy_candidate


def test_a_failure_names_files_threshold_numbers_and_changed_images(own: Path, tmp_path: Path) -> None:
    other = scaled(own, tmp_path / "turned.onnx", -2)
    with pytest.raises(ParityError) as failure:
        assert_parity(own, other, PIXELS)
    text = str(failure.value)
    assert f"Expected {other} (fp32) to answer like {own}. Received: relative error" in text
    assert "at most 1.00e-05 allowed" in text
    assert "SQNR" in text
    assert " of 60 answers changed: image " in text
    assert isinstance(failure.value, ProjectError)
    assert isinstance(failure.value, AssertionError)


def test_a_failure_says_what_was_done_to_the_answers_where_that_explains_it() -> None:
    drawn = np.random.default_rng(0).normal(0, 3, (60, 10)).astype(np.float32)
    twice = softmax(softmax(drawn))
    with pytest.raises(ParityError, match=r"activation is applied once too often.*without its last activation"):
        assert_parity(lambda images: drawn, lambda images: twice, PIXELS, batch_size=60)
    with pytest.raises(ParityError, match="The classes are in another order, reversed"):
        assert_parity(lambda images: drawn, lambda images: drawn[:, ::-1], PIXELS, batch_size=60)
    with pytest.raises(ParityError, match="See that both get the same preprocessing"):
        assert_parity(lambda images: drawn, lambda images: drawn[:, ::-1] ** 3, PIXELS, batch_size=60)


def test_a_file_that_is_not_there_is_not_called_damaged(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"Expected an ONNX file. Received: .*none.onnx, which is not there\."):
        assert_parity(own, tmp_path / "none.onnx", PIXELS)


def test_one_gives_logits_and_the_other_probabilities(own: Path, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx", floats=False, outputs=("probabilities",))
    assert assert_parity(own, path, PIXELS).verdict == "pass"
    assert assert_parity(path, own, PIXELS).verdict == "pass"
    with pytest.raises(ParityError, match="relative error"):
        assert_parity(scaled(own, tmp_path / "twice.onnx", 2), path, PIXELS)


def test_functions_get_the_images_as_they_are() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (tiny_onnx.SIZE**2 * 3, 4))

    def logits(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) @ weights

    assert assert_parity(logits, lambda images: logits(images) + 1e-9, PIXELS).verdict == "pass"
    assert assert_parity(
        logits, lambda images: softmax(logits(images) / 1e3), PIXELS, thresholds={"relative_error": None}
    ).finite
    with pytest.raises(ParityError, match=r"to answer like logits.*60 of 60 answers changed"):
        assert_parity(logits, lambda images: -logits(images), PIXELS)
    with pytest.raises(DataError, match="a row of scores for each of 32 images"):
        assert_parity(logits, lambda images: logits(images)[:1], PIXELS[:32])


def test_thresholds_are_those_of_a_recipe(own: Path, tmp_path: Path) -> None:
    other = scaled(own, tmp_path / "near.onnx", 1.001)
    with pytest.raises(ParityError, match="relative error"):
        assert_parity(own, other, PIXELS)
    assert assert_parity(own, other, PIXELS, thresholds={"relative_error": 0.1}).relative_limit == 0.1
    assert assert_parity(own, other, PIXELS, thresholds=Thresholds(sqnr_db=30)).verdict == "pass"
    assert assert_parity(own, other, PIXELS, precision="int8", thresholds={"top1_agreement": 0.5}).precision == "int8"
    with pytest.raises(ParityError, match=r"SQNR .* at least 200.0 dB needed"):
        assert_parity(own, other, PIXELS, thresholds={"relative_error": None, "sqnr_db": 200})
    with pytest.raises(RecipeError, match="relative_eror"):
        assert_parity(own, other, PIXELS, thresholds={"relative_eror": 0.1})
    with pytest.raises(RecipeError, match="a share from 0 to 1"):
        assert_parity(own, other, PIXELS, thresholds={"top1_agreement": 99})


def test_too_few_images_to_tell_is_said_and_no_failure(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]].astype(np.float32)
    other = rows.copy()
    other[0] = rows[1]
    answers = iter([other])
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    hop = assert_parity(
        lambda images: rows, lambda images: next(answers), PIXELS[:8],
        thresholds={"relative_error": None, "top1_agreement": 0.95},
    )  # fmt: skip
    assert hop.verdict == "inconclusive"
    assert "inconclusive: top-1 agreement 87.50 %" in caplog.text


def test_what_a_pass_on_few_images_shows_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    assert assert_parity(rows_of, rows_of, PIXELS[:1], precision="int8").verdict == "pass"
    assert "pass on 1 image, which shows little: at least 20.6 % agreement with 95 % confidence" in caplog.text
    caplog.clear()
    assert_parity(rows_of, rows_of, PIXELS, precision="int8")
    assert_parity(rows_of, rows_of, PIXELS[:1])
    assert caplog.text == "", "60 images are enough, and FP32 asks for no share of images"


def test_pixels_for_a_model_of_floats_need_preprocessing(own: Path, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx")
    assert assert_parity(own, path, PIXELS, preprocessing="none").verdict == "pass"
    assert assert_parity(own, path, PIXELS, preprocessing=as_floats).verdict == "pass"
    with pytest.raises(ParityError):
        assert_parity(own, path, PIXELS, preprocessing="caffe")
    with pytest.raises(DataError, match="Expected preprocessing"):
        assert_parity(own, path, PIXELS)
    with pytest.raises(DataError, match="Expected uint8 images"):
        assert_parity(own, path, as_floats(PIXELS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(PIXELS[:12]):
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return folder


def test_a_folder_is_decoded_at_the_size_of_the_files(own: Path, folder: Path, tmp_path: Path) -> None:
    hop = assert_parity(own, foreign(tmp_path / "x.onnx", floats=False), folder, list(range(4)) * 3)
    assert (hop.images, hop.verdict) == (12, "pass")
    with pytest.raises(ParityError, match=r"changed: \d\d\.png: \d instead of \d"):
        assert_parity(own, scaled(own, tmp_path / "twice.onnx", -2), folder)
    with pytest.raises(DataError, match="a folder without an image"):
        assert_parity(own, own, tmp_path)
    with pytest.raises(DataError, match="no folder"):
        assert_parity(own, own, tmp_path / "none")
    with pytest.raises(DataError, match="Pass size="):
        assert_parity(lambda images: images, lambda images: images, folder)
    with pytest.raises(DataError, match="a label for each of 12 images"):
        assert_parity(own, own, folder, [0])


def test_a_file_is_not_read_again_for_each_thing_that_it_says(
    own: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, loaded, load = foreign(tmp_path / "other.onnx", floats=False), list[str](), onnx.load

    def loading(path, **options: object) -> onnx.ModelProto:
        loaded.append(str(path))
        return load(path, **options)

    monkeypatch.setattr(onnx, "load", loading)
    assert assert_parity(own, other, folder).precision == "fp32"
    assert (loaded.count(str(own)), loaded.count(str(other))) == (1, 2), "the candidate again for what exceeds FP16"


def test_images_that_calibrated_are_refused_by_content(own: Path, folder: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    (calibration / "copy.png").write_bytes((folder / "03.png").read_bytes())
    for images, there in ((folder, calibration), (PIXELS, calibration), (PIXELS, PIXELS[3:4]), (folder, PIXELS[3:4])):
        with pytest.raises(DataError, match=r"Expected images that did not calibrate. Received: 1 image of "):
            assert_parity(own, own, images, calibration=there)
    Image.fromarray(tiny_onnx.pixels(1, seed=9)[0]).save(calibration / "copy.png")
    for images, there in ((folder, calibration), (PIXELS, calibration), (PIXELS, tiny_onnx.pixels(3, seed=9))):
        assert assert_parity(own, own, images, calibration=there).equal
    with pytest.raises(DataError, match="Expected calibration images as an array"):
        assert_parity(as_floats, as_floats, as_floats(PIXELS), calibration=calibration)


def test_a_keras_model_and_the_files_made_of_it(made_chain: Chain) -> None:
    with np.load(made_chain.root / "verify" / "reference.npz") as saved:
        pixels, labels = saved["pixels"], saved["labels"]
    keras = made_chain.root / KERAS
    hop = assert_parity(keras, made_chain.root / ONNX["fp32"], pixels, labels, preprocessing="caffe")
    assert hop.noise is not None
    assert hop.accuracy_candidate == hop.accuracy_reference
    with pytest.raises(ParityError, match=r"\(int8\) to answer like .*answers? changed"):
        assert_parity(keras, made_chain.root / ONNX["int8"], pixels[..., ::-1].copy(), preprocessing="torch")


def rows_of(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)[:, :4].astype(np.float32)


@pytest.mark.parametrize(
    ("answers", "received"),
    [
        (lambda images: rows_of(images)[:, :1], r"float32 of shape \(32, 1\)"),
        (lambda images: rows_of(images) * 1j, r"complex\w+ of shape"),
        (lambda images: rows_of(images)[:-1], r"float32 of shape \(31, 4\)"),
        (lambda images: {"logits": rows_of(images)}, "a dict"),
        (lambda images: [rows_of(images), rows_of(images)[:, :2]], "a list"),
        (lambda images: None, "a NoneType"),
    ],
)
def test_what_is_no_row_of_scores_for_each_image_is_refused(answers, received: str) -> None:
    with pytest.raises(DataError, match=f"Expected a row of scores for each of 32 images.*Received: {received}"):
        assert_parity(rows_of, answers, PIXELS)


def test_a_reference_that_gives_one_answer_to_all_images_proves_nothing() -> None:
    def dead(images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 4), np.float32)

    with pytest.raises(DataError, match="one row for all 60 images from dead"):
        assert_parity(dead, dead, PIXELS)
    assert assert_parity(dead, dead, PIXELS[:1]).verdict == "pass"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.full(60, 0.5)}, "Expected a label for each of 60 images, the number.*Received: float64"),
        ({"labels": ["cat"] * 60}, "Received: <U3"),
        ({"calibration": PIXELS[0]}, r"Expected calibration images like the images, uint8.*shape \(16, 16, 3\)"),
        ({"calibration": PIXELS[:0]}, r"shape \(0, 16, 16, 3\)"),
        ({"calibration": PIXELS[:3].astype(np.float32)}, "Received: float32"),
        ({"calibration": list(PIXELS)}, "Expected calibration images as an array.*Received: list"),
        ({"precision": "bf16"}, "Expected a precision of fp32, fp16, int8. Received: 'bf16'"),
        ({"size": (0, 0)}, r"Expected a size \(height, width\) in pixels, 1 or more. Received: \(0, 0\)"),
        ({"size": (16,)}, "Expected a size"),
        ({"resize": "zoom"}, "Expected resize as stretch, crop, imagenet, pad. Received: 'zoom'"),
        ({"batch_size": 0}, "Expected a batch_size of 1 or more. Received: 0"),
    ],
)
def test_arguments_that_would_check_less_than_they_seem_to_are_refused(options, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assert_parity(rows_of, rows_of, PIXELS, **options)


@pytest.mark.parametrize("images", [list(PIXELS), (image for image in PIXELS), None])
def test_images_are_an_array_or_a_folder(images) -> None:
    with pytest.raises(DataError, match="Expected images as an array"):
        assert_parity(rows_of, rows_of, images)


def test_a_model_takes_pixels_as_uint8_or_preprocessed_floats(own: Path) -> None:
    with pytest.raises(DataError, match="Received: int64"):
        assert_parity(own, own, PIXELS.astype(np.int64))
    with pytest.raises(DataError, match="Expected an ONNX file, a Keras model or its file, or a function"):
        assert_parity(own, None, PIXELS)  # type: ignore[arg-type]


def test_the_package_is_imported_without_the_libraries_that_the_function_needs() -> None:
    code = "import sys, pipeline.verification; print([n for n in ('PIL', 'onnx', 'keras', 'yaml') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(ImportError):
        from pipeline.verification import assert_equality  # type: ignore[attr-defined]  # noqa: F401
