"""A colleague's model through the whole chain, and the preprocessing and class names that its recipe spells out."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from export.files import ROOT

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from export.errors import ProjectError, RecipeError
from export.from_keras.convert import export_keras
from export.onnx_passes.signature import prepend_preprocessing
from export.preprocessing import MeanImage, PreprocessingSpec
from pipeline.cli.commands import main
from pipeline.models.preprocessing import own_preprocessing
from pipeline.recipe.schema import Preprocessing
from pipeline.verification import assert_parity
from tests.conftest import make_colour_images
from tests.export import keras_models
from tests.pipeline import legacy_models
from tests.pipeline.report_page import Page

SHARED = ROOT.parent / "shared" / "data"
LENIENT = {  # the weights are random, so many images lie at the border of two classes
    "fp16": {"top1_agreement": 0.9, "sqnr_db": 30},
    "int8": {"top1_agreement": 0.5, "sqnr_db": 5},
}


def test_a_legacy_model_goes_through_the_whole_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_colour_images(tmp_path / "images", count=40)
    legacy_models.called_in_training().save(str(tmp_path / "colleague.h5"))
    legacy_models.rename_in_training_config(tmp_path / "colleague.h5", "learning_rate", "lr")
    names = ["yellow", "red", "green", "blue"]  # not the order of the folders
    recipe = {
        "name": "colleague",
        "data": {
            "path": str(tmp_path / "images"),
            "splits": {"calibration": 0.5, "test": 0.5},  # the shares for training do not count
        },
        "model": {
            "path": "colleague.h5",
            "classes": names,
            "preprocessing": {"channel_order": "BGR", "mean": [100, 110, 120], "scale": [0.01, 0.02, 0.03]},
        },
        "quantize": {"min_images": 40},
        "verify": {"min_images": 40, "thresholds": LENIENT},
        "build": {"profile": {"min": 1, "opt": 2, "max": 4}},
        "infer": {"samples": 4},
    }
    (tmp_path / "colleague.yaml").write_text(yaml.safe_dump(recipe))
    options = ["-c", str(tmp_path / "colleague.yaml"), "--artifacts", str(tmp_path / "artifacts")]
    assert main(["train", *options]) == 2
    said = capsys.readouterr().err
    assert "training=True in the calls of 2 layers (backbone, monte_carlo)" in said
    assert "depends on the other images of its batch and chance" in said
    options += ["--set", "model.called_in_training=inference"]
    for verb in ("train", "export", "quantize", "build", "verify", "infer", "report"):
        assert main([verb, *options]) == 0, verb
    root = tmp_path / "artifacts" / "colleague"
    card = json.loads((root / "train" / "model.json").read_text())
    (deviation,) = card["deviations"]
    assert "does not predict as colleague.h5 does in Keras 2: 2 of its layers (backbone, monte_carlo)" in deviation
    assert card["classes"] == names
    assert card["written_by"].startswith("Keras 2")
    parity = json.loads((root / "verify" / "parity.json").read_text())
    assert deviation in parity["warnings"]
    alerts = Page((root / "report" / "report.html").read_text()).alerts
    assert any(deviation in alert for alert in alerts), "a person sees it under the verdict"
    hops = {(hop["kind"], hop["candidate"]): hop for hop in parity["hops"]}
    assert hops["from_keras", "export/model.onnx"]["relative_error"] < 1e-5
    manifest = json.loads((root / "train" / "manifest.json").read_text())
    assert manifest["result"]["images"] == {"train": 0, "validation": 0}
    with np.load(root / "verify" / "reference.npz") as file:
        counts = np.bincount(file["labels"], minlength=4)
        first = file["pixels"][file["labels"] == 0].mean(axis=(0, 1, 2))
    assert counts.min() > 5
    assert 60 < counts.sum() < 100, "half of them"
    assert first[0] > first[2] + 50, "label 0 is yellow: much red, little blue"
    capsys.readouterr()
    assert main(["train", *options, "--explain"]) == 0
    assert "up to date" in capsys.readouterr().out
    (tmp_path / "colleague.h5").write_bytes((tmp_path / "colleague.h5").read_bytes() + b"\0")
    assert main(["train", *options, "--explain"]) == 0
    assert "train     would run: input model.path" in capsys.readouterr().out


def test_a_mean_image_is_in_the_graph(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = MeanImage.from_array(random.uniform(90, 160, (32, 32, 3)).astype(np.float32))
    spec = PreprocessingSpec("BGR", (0.0, 0.0, 0.0), (0.01, 0.02, 0.03), mean_image=image)
    model, pixels = keras_models.classifier(), keras_models.images(5)
    path = tmp_path / "model.onnx"
    export_keras(model, path, preprocessing=spec, classes=keras_models.CLASSES)
    expected = model.predict(spec.apply(pixels), verbose=0)
    assert np.abs(model.predict(spec.apply(pixels[..., ::-1]), verbose=0) - expected).max() > 1e-3, "order matters here"
    for count in (1, 5):
        assert_parity(model, path, pixels[:count], preprocessing=spec, thresholds={"relative_error": 1e-5})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map["preprocessing"]
    assert json.loads(metadata)["mean_image"]["shape"] == [32, 32, 3]
    assert len(metadata) < 500, "the values are in the graph, not in the metadata"


def test_a_mean_image_travels_as_json() -> None:
    image = MeanImage.from_array(np.arange(24, dtype=np.float64).reshape(2, 4, 3))
    spec = PreprocessingSpec("BGR", (0, 0, 0), (1, 1, 1), mean_image=image)
    again = PreprocessingSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    np.testing.assert_array_equal(again.apply(np.full((1, 2, 4, 3), 9, np.uint8))[0, 0, 1], [6, 5, 4])
    with pytest.raises(ProjectError, match="mean image's shape"):
        spec.apply(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ProjectError, match="both"):
        PreprocessingSpec("RGB", (1, 2, 3), (1, 1, 1), mean_image=image)
    with pytest.raises(ProjectError, match="mean image of shape"):
        MeanImage.from_array(np.zeros((4, 4, 1)))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_mean_image_at_the_head_of_any_graph(order: str) -> None:
    shape = ("N", 8, 8, 3)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=opset, ir_version=9
    )
    spec, wrong = (
        PreprocessingSpec(order, (0, 0, 0), (1, 2, 3), mean_image=MeanImage.from_array(np.random.rand(*size, 3) * 255))
        for size in ((8, 8), (8, 4))
    )
    session = onnxruntime.InferenceSession(prepend_preprocessing(model, spec).SerializeToString())
    pixels = keras_models.images(3, size=8)
    np.testing.assert_array_equal(session.run(None, {"x": pixels})[0], np.maximum(spec.apply(pixels), 0))
    with pytest.raises(ProjectError, match=r"mean image of the model's input size \[8, 8, 3\].*\[8, 4, 3\]"):
        prepend_preprocessing(model, wrong)


def test_preprocessing_in_the_recipe(tmp_path: Path) -> None:
    pixels = np.full((1, 2, 2, 3), 51, np.uint8)
    np.save(tmp_path / "mean.npy", np.full((2, 2, 3), 0.1, np.float32))
    file = str(tmp_path / "mean.npy")
    scaled = own_preprocessing(Preprocessing(mean=file, scale=1 / 255, mean_of="scaled"))
    np.testing.assert_allclose(scaled.apply(pixels), 0.1, atol=1e-6)
    caffe = own_preprocessing(Preprocessing("BGR", (103.939, 116.779, 123.68)))
    expected = PreprocessingSpec.from_mode("caffe").apply(pixels)
    np.testing.assert_array_equal(caffe.apply(pixels), expected)
    torch = own_preprocessing(
        Preprocessing(mean=(0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225),
                      scale=(1 / 0.229 / 255, 1 / 0.224 / 255, 1 / 0.225 / 255), mean_of="scaled")
    )  # fmt: skip
    np.testing.assert_allclose(torch.apply(pixels), PreprocessingSpec.from_mode("torch").apply(pixels), atol=1e-6)


def test_preprocessing_that_cannot_be(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.full(3, 0.5))
    np.save(tmp_path / "shape.npy", np.zeros((3, 4, 4)))
    np.save(tmp_path / "nan.npy", np.full((2, 2, 3), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no")
    for config, found in (
        (Preprocessing(mean=str(tmp_path / "small.npy"), scale=1 / 255), "mean_of: expected to be told"),
        (Preprocessing(mean=str(tmp_path / "shape.npy")), r"\(3, 4, 4\)"),
        (Preprocessing(mean=str(tmp_path / "nan.npy")), "finite"),
        (Preprocessing(mean=str(tmp_path / "objects.npy")), "a .npy file of numbers"),
        (Preprocessing(mean=str(tmp_path / "text.npy")), "a .npy file of numbers"),
        (Preprocessing(mean=str(tmp_path / "none.npy")), "a .npy file of numbers"),
        (Preprocessing(mean=(1.0, 2.0)), "three numbers"),
        (Preprocessing(scale=0.0), "other than 0"),
    ):
        with pytest.raises(RecipeError, match=found):
            own_preprocessing(config)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data beside the repository")
def test_the_cifar_checkpoint_through_the_whole_chain(tmp_path: Path) -> None:
    with zipfile.ZipFile(SHARED / "cifar10" / "test2000_jpeg.zip") as archive:
        archive.extractall(tmp_path / "images")
    mean = str(SHARED / "cifar10" / "train_mean_x255.npy")
    recipe = {
        "data": {"path": "images", "splits": {"train": 0, "validation": 0, "calibration": 0.4, "test": 0.6}},
        "model": {
            "path": str(SHARED / "checkpoints" / "resnet20_cifar10_keras225.h5"),
            "preprocessing": {"mean": mean, "scale": 1 / 255, "mean_of": "scaled"},
        },
        # Heavily compressed pictures: a fifth is wrong, and many lie at the border of two classes.
        "verify": {
            "thresholds": {
                "fp16": {"top1_agreement": 0.995, "sqnr_db": 50, "accuracy_drop": 0.005},
                "int8": {"top1_agreement": 0.95, "sqnr_db": 20, "accuracy_drop": 0.01},
            }
        },
        "benchmark": {"seconds": 0.1},
    }
    (tmp_path / "cifar.yaml").write_text(yaml.safe_dump(recipe))
    artifacts = tmp_path / "artifacts"
    assert main(["run", "-c", str(tmp_path / "cifar.yaml"), "--artifacts", str(artifacts)]) == 0
    parity = json.loads((artifacts / "cifar" / "verify" / "parity.json").read_text())
    for hop in parity["hops"]:
        if hop["backend"] == "onnxruntime":
            assert hop["accuracy_candidate"] > 0.78
