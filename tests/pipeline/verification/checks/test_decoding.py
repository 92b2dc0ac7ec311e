"""Image files as this project loads them and as Keras does: equal where they have to be, named where they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.image_kinds import write_image_kinds
from benchmarks.faults.resizing import WrongDecoding
from export.onnx_passes.signature import prepend_preprocessing
from export.preprocessing import PreprocessingSpec
from pipeline.artifacts.diagnosis import Decoding
from pipeline.data.decode import DecodeSpec
from pipeline.data.resize import Resize
from pipeline.data.sample import Sample
from pipeline.models.model_card import ModelCard
from pipeline.verification.checks.decoding import compare_decoding, decoding_hop
from tests.export.conftest import run_onnx
from tests.export.tiny_graphs import graph as tiny

SIZE = (32, 48)
EXACT = {
    "JPEG, RGB", "JPEG, RGB, progressive", "JPEG, grey", "PNG, RGB", "PNG, grey", "BMP, RGB", "BMP, grey",
}  # fmt: skip
DIFFERENT = {"JPEG, RGB, EXIF-turned", "PNG, alpha", "PNG, 16 bit", "WebP, alpha"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("keras")
    return write_image_kinds(tmp_path_factory.mktemp("kinds"))


def samples(*paths: Path) -> list[Sample]:
    return [Sample(path.name, 0, "", lambda path=path: path, path) for path in paths]


def card(decode: DecodeSpec) -> ModelCard:
    return ModelCard(("cat", "dog"), PreprocessingSpec.from_mode("caffe"), decode, "softmax")


def compared(files: dict[str, Path], decode: DecodeSpec) -> dict[str, Decoding]:
    return {one.kind: one for one in compare_decoding(samples(*files.values()), card(decode), None)}


@pytest.mark.parametrize("mode", ["stretch", "crop", "imagenet", "pad"])
def test_kinds_are_read_from_the_file_and_equal_where_they_must_be(files: dict[str, Path], mode: Resize) -> None:
    found = compared(files, DecodeSpec(SIZE, mode))
    assert set(found) == set(files)
    assert {kind for kind, one in found.items() if one.required} == EXACT
    assert {kind for kind, one in found.items() if not one.equal} == DIFFERENT
    for kind, one in found.items():
        assert bool(one.rule) == (kind in DIFFERENT), "the rule is stated where it matters"
        assert (one.most > 0, one.share > 0) == (kind in DIFFERENT,) * 2
        assert one.step == ("decoding" if kind in DIFFERENT else "")
    hop = decoding_hop(list(found.values()))
    assert hop is not None
    assert (hop.verdict, hop.candidate, hop.images) == ("pass", "train/model.json", len(files))


@pytest.mark.parametrize("mode", ["stretch", "crop", "imagenet", "pad"])
@pytest.mark.parametrize("wrong", ["nearest", "bicubic", "other mode"])
def test_another_filter_or_mode_fails(files: dict[str, Path], mode: Resize, wrong: str) -> None:
    some = {kind: files[kind] for kind in ("JPEG, RGB", "PNG, grey", "WebP, RGB")}
    found = compared(some, WrongDecoding(SIZE, mode, wrong=wrong))  # type: ignore[arg-type]
    assert {one.step for one in found.values()} == {"resizing"}
    hop = decoding_hop(list(found.values()))
    assert hop is not None
    assert hop.verdict == "fail"
    assert "the pixels of JPEG, RGB are not Keras'" in hop.why
    assert "it begins in the resizing" in hop.why
    assert "WebP" not in hop.why, "another decoder may round otherwise"


def test_the_logits_of_both_are_compared(files: dict[str, Path]) -> None:
    def logits(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1)[:, :2].astype(np.float32)

    kinds = (files["PNG, RGB"], files["PNG, alpha"])
    found = {one.kind: one for one in compare_decoding(samples(*kinds), card(DecodeSpec(SIZE, "stretch")), logits)}
    assert found["PNG, RGB"].relative_error == 0
    assert (found["PNG, alpha"].relative_error or 0) > 0.1
    (alone,) = compare_decoding(samples(files["PNG, alpha"]), card(DecodeSpec(SIZE, "stretch")), lambda pixels: None)
    assert (alone.relative_error, alone.equal) == (None, False), "a model that does not load hides no pixels"


def test_scaled_decoding_of_jpeg_is_a_rule_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path := tmp_path / "large.jpg")
    spec = DecodeSpec((32, 32), "stretch")
    (found,) = compare_decoding(samples(path), card(replace(spec, jpeg_scaling="dct")), None)
    assert (found.equal, found.required, found.step) == (False, False, "resizing")
    assert found.rule.startswith("data.jpeg_scaling")
    (found,) = compare_decoding(samples(path), card(spec), None)
    assert (found.equal, found.required) == (True, True)


def test_what_is_no_file_or_no_picture_for_keras_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("keras")
    caplog.set_level("INFO")
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    array = Sample("digits/1", 0, "", lambda: np.zeros((8, 8), np.uint8))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    lost = samples(*(tmp_path / name for name in ("text.jpg", "gone.jpg", "cut.png")))
    assert compare_decoding([array, *lost], card(DecodeSpec(SIZE, "stretch")), None) == ()
    assert "3 files not compared with Keras' loading" in caplog.text
    assert decoding_hop(()) is None


@pytest.mark.parametrize("first", ["Conv", "Mul"])
@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_each_mode_in_the_graph_is_that_of_keras_applications(files: dict[str, Path], mode: str, first: str) -> None:
    """The order of the channels is folded into a Conv, and is a Gather before anything else."""
    from keras.applications.imagenet_utils import preprocess_input
    from keras.utils import img_to_array, load_img

    weights = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    nodes = [("Transpose", ["x"], "t", {"perm": [0, 3, 1, 2]}), ("Conv", ["t", "w"], "y", {})]
    constants = {"w": weights[:, :, None, None]}
    if first == "Mul":
        nodes, constants = [("Mul", ["x", "w"], "y", {})], {"w": weights.diagonal()}
    graph = prepend_preprocessing(tiny(nodes, constants, x=("batch", *SIZE, 3)), PreprocessingSpec.from_mode(mode))
    for kind in sorted(EXACT):
        (own,) = run_onnx(graph, DecodeSpec(SIZE, "stretch").pixels(files[kind])[None])
        loaded = img_to_array(load_img(files[kind], target_size=SIZE, interpolation="bilinear"))
        expected = preprocess_input(loaded, mode=mode)[None] * weights.diagonal()
        expected = expected.transpose(0, 3, 1, 2) if first == "Conv" else expected
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-4 if mode == "caffe" else 2e-6, err_msg=kind)
