"""``preprocessing: auto`` takes pixels as they are only where the model proves that it normalises 0..255."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import layers

from export.errors import ModelError
from pipeline.keras_files.load import load_model
from pipeline.models.import_model import import_model
from pipeline.models.preprocessing import normalised_range, range_if_normalised
from pipeline.recipe.schema import Model, Preprocessing
from tests.pipeline.small_models import SIZE, classifier, dense

WHERE = Path("brought.keras")
MEAN, VARIANCE = [0.485, 0.456, 0.406], [0.229**2, 0.224**2, 0.225**2]


def nested(*inner):
    return keras.Sequential([layers.Input((*SIZE, 3)), *inner], name="nested")


def imagenet(scale):
    return layers.Normalization(
        mean=[m * scale for m in MEAN], variance=[v * scale * scale for v in VARIANCE], name="imagenet"
    )


FRONTS = {
    "x / 255": ([layers.Rescaling(1 / 255, name="unit")], (0, 1)),
    "x / 127.5 - 1": ([layers.Rescaling(1 / 127.5, -1, name="tf")], (-1, 1)),
    "augmentation and x / 255, nested": (
        [nested(layers.RandomFlip(name="flip"), layers.Rescaling(1 / 255, name="unit"))],
        (0, 1),
    ),
    "x / 255, then ImageNet's statistics": ([layers.Rescaling(1 / 255, name="unit"), imagenet(1)], (-2.118, 2.64)),
    "ImageNet's statistics of 0..255": ([imagenet(255)], (-2.118, 2.64)),
    "less a mean, as caffe": ([lambda x: x - np.float32([103.9, 116.8, 123.7])], (-123.7, 151.1)),
    "noise, then x / 255": ([layers.GaussianNoise(0.1, name="noise"), layers.Rescaling(1 / 255, name="unit")], (0, 1)),
    "of 0..1 to -1..1": ([layers.Rescaling(2.0, -1, name="twice")], None),
    "ImageNet's statistics of 0..1": ([imagenet(1)], None),
    "the same by arithmetic": ([lambda x: (x - np.float32(MEAN)) / np.float32([0.229, 0.224, 0.225])], None),
    "a sum of two branches": (
        [lambda x: layers.Add(name="sum")([x, layers.AveragePooling2D(3, 1, "same", name="pool")(x)])],
        None,
    ),
    "nothing": ([], None),
    "a BatchNormalization": ([layers.BatchNormalization(name="bn")], None),
    "x / 65025": ([layers.Rescaling(1 / 65025, name="twice_unit")], None),
}


@pytest.mark.parametrize(("first", "expected"), FRONTS.values(), ids=FRONTS.keys())
def test_where_the_grey_levels_end_up_decides(first, expected) -> None:
    found = normalised_range(classifier(dense(3), first=first), WHERE, 224)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.05))


def test_what_does_not_prove_it_is_asked_for(tmp_path) -> None:
    model = classifier(dense(3), first=[layers.Rescaling(2.0, -1, name="twice")])
    model.save(tmp_path / "m.keras")
    config = Model(path=str(tmp_path / "m.keras"))
    with pytest.raises(ModelError, match=r"model\.preprocessing: expected .*Rescaling twice.*0\.\.255.*Received: auto"):
        import_model(config, ("a", "b", "c"), "stretch")


@pytest.mark.parametrize(
    ("first", "preprocessing", "doubted"),
    [
        ([layers.Rescaling(1 / 255, name="unit")], "unit", True),
        ([layers.Rescaling(1 / 255, name="unit")], Preprocessing(mean=(1.0, 2.0, 3.0)), True),
        ([layers.Rescaling(1 / 255, name="unit")], "none", False),
        ([layers.Rescaling(1 / 255, name="unit")], Preprocessing(channel_order="BGR"), False),
        ([layers.Rescaling(1 / 255, name="unit")], "auto", False),
        ([layers.Rescaling(2.0, -1, name="of_0_to_1")], "unit", False),
        ([], "unit", False),
    ],
)  # fmt: skip
def test_pixels_that_are_normalised_twice_are_doubted(
    tmp_path, caplog, monkeypatch, first, preprocessing, doubted
) -> None:
    classifier(dense(3), first=first).save(tmp_path / "m.keras")
    config = Model(path=str(tmp_path / "m.keras"), preprocessing=preprocessing)
    card = import_model(config, ("a", "b", "c"), "stretch").card
    assert len(card.doubts) == doubted
    for line in card.doubts:
        assert "normalises its input itself (0..255 become 0..1)" in line
        assert "set model.preprocessing to none" in line
        assert line in [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_size_that_the_file_has_not_is_refused(tmp_path) -> None:
    classifier(dense(3), shape=(64, 64, 3)).save(tmp_path / "m.keras")
    config = Model(path=str(tmp_path / "m.keras"), preprocessing="none", input_size=96)
    with pytest.raises(ModelError, match=r"model\.input_size: expected .* 64x64\. Received: 96\. .*, or say 64\."):
        import_model(config, ("a", "b", "c"), "stretch")
    assert import_model(replace(config, input_size=64), ("a", "b", "c"), "stretch").card.size == (64, 64)


@pytest.mark.parametrize(
    "values", [None, [np.nan, 1], [0, 255], [0, 0.3], [-30, 225], [0, 13], [-500, 500]], ids=lambda v: str(v)
)
def test_other_ranges_prove_nothing(values) -> None:
    assert range_if_normalised(None if values is None else np.asarray(values, np.float32)) is None


BENT = {
    "a clip to 0..1": lambda x: keras.ops.clip(x, 0.0, 1.0) * 2.0 - 1.0,
    "a ReLU up to 1": lambda x: layers.ReLU(1.0, name="relu1")(x),
    "tanh": keras.ops.tanh,
    "log(1 + x)": keras.ops.log1p,
    "a threshold": lambda x: keras.ops.cast(x > 100.0, "float32"),
}


@pytest.mark.parametrize("bend", BENT.values(), ids=BENT.keys())
def test_what_cuts_off_or_bends_proves_nothing(bend) -> None:
    assert normalised_range(classifier(dense(3), first=[bend]), WHERE, 224) is None


def test_layers_that_stack_pictures_are_run_for_each_level() -> None:
    def stacked(x):
        return keras.ops.concatenate([x, keras.ops.flip(x, 2)], axis=0) / 255.0

    model = classifier(lambda x: sum(keras.ops.split(dense(3)(x), 2, axis=0)), first=[stacked], batch=2)
    assert normalised_range(model, WHERE, 224) == pytest.approx((0, 1))


def test_a_layer_named_after_a_seed_has_weights() -> None:
    model = classifier(dense(3), first=[layers.Conv2D(3, 1, name="seed_stem"), layers.Rescaling(1 / 255, name="unit")])
    assert normalised_range(model, WHERE, 224) is None


@pytest.mark.parametrize(("scale", "found"), [(1 / 255, (0.0, 1.0)), (2.0, None)])
def test_a_tensorflow_graph_is_run_up_to_its_first_weights(tmp_path, scale, found) -> None:
    model = classifier(dense(3, "softmax"), first=[layers.Rescaling(scale, name="front")])
    model.export(tmp_path / "served", verbose=False)
    graph = load_model(tmp_path / "served", ["SavedModel"])
    assert normalised_range(graph, WHERE, 224) == (None if found is None else pytest.approx(found))
