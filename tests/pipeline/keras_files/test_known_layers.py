"""Every public layer of Keras 2 and 3 has been decided on: it only computes, or it is refused with a reason."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

from export.errors import ModelError
from pipeline.keras_files.allowed_names import APPLICATION_LAYERS, FOREIGN_LAYERS, KNOWN_LAYERS
from pipeline.keras_files.code_scan import scan_config
from pipeline.keras_files.declared_sizes import check_declared_sizes
from pipeline.keras_files.load import load_model
from pipeline.keras_files.load_guards import check_tensors
from pipeline.keras_files.model_file import layers_of
from pipeline.keras_files.read import read_model_file


@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_every_public_layer_is_decided_on(package: Any) -> None:
    """Under each of its names: the one it is exported by, and its class's, which files hold."""
    public = {name: found for name, found in vars(package.layers).items() if inspect.isclass(found)}
    public = {name: found for name, found in public.items() if issubclass(found, package.layers.Layer)}
    assert len(public) > 120
    names = public.keys() | {found.__name__ for found in public.values()}
    assert names - KNOWN_LAYERS - FOREIGN_LAYERS.keys() - {"Lambda"} == set(), "decide on these"


def test_no_layer_is_both() -> None:
    assert not KNOWN_LAYERS & (FOREIGN_LAYERS.keys() | {"Lambda"} | APPLICATION_LAYERS.keys())


@pytest.mark.parametrize("kind", FOREIGN_LAYERS)
@pytest.mark.parametrize("module", ["keras.layers", None])
def test_what_is_refused_says_why(kind: str, module: str | None) -> None:
    layer = {"class_name": kind, "config": {"name": "x"}, **({"module": module} if module else {})}
    findings = scan_config({"class_name": "Functional", "config": {"layers": [layer]}})
    assert [(f.why, f.allowable) for f in findings] == [(FOREIGN_LAYERS[kind], False)]


def archive(folder: Path, *steps: Any) -> Path:
    """A classifier that begins with these layers."""
    x = inputs = keras.Input((32, 32, 3), name="pixels")
    for step in steps:
        x = step(x)
    x = layers.Dense(3, activation="softmax", name="out")(layers.GlobalAveragePooling2D(name="pool")(x))
    keras.Model(inputs, x).save(folder / "m.keras")
    return folder / "m.keras"


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.CutMix(name="first"),
        lambda: layers.ContrastLimitedAdaptiveHistogramEqualization(name="first"),
        lambda: layers.Pipeline([layers.RandomFlip(name="flip"), layers.AutoContrast(name="contrast")], name="first"),
        lambda: layers.AdaptiveAveragePooling2D((4, 4), name="first"),
        lambda: layers.MaxNumBoundingBoxes(5, name="first"),
    ],
    ids=["CutMix", "CLAHE", "Pipeline", "AdaptiveAveragePooling2D", "MaxNumBoundingBoxes"],
)
def test_kerass_own_layers_are_taken(tmp_path: Path, layer: Any) -> None:
    path = archive(tmp_path, layer())
    assert read_model_file(path).findings == ()
    assert load_model(path).layers[1].name == "first"


def test_what_a_pipeline_holds_is_judged_as_layers(tmp_path: Path) -> None:
    path = archive(tmp_path, layers.Pipeline([layers.RandomFlip(name="flip"), layers.Rescaling(0.1, name="scale")]))
    config = read_model_file(path).config
    assert config is not None
    kinds = [kind for _, kind, _ in layers_of(config)]
    assert kinds[:4] == ["InputLayer", "Pipeline", "RandomFlip", "Rescaling"]
    held = config["config"]["layers"][1]["config"]["layers"]
    for foreign in (
        {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "l", "function": {}}},
        {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"name": "t"}},
        {"class_name": "Adam", "module": "keras.optimizers", "config": {"name": "a"}},
        {"class_name": "function", "module": "os", "config": "system"},
    ):
        held[1] = foreign
        assert len(scan_config(config)) == 1, foreign


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_of_keras_applications_are_taken_with_and_without_a_module(tmp_path: Path, suffix: str) -> None:
    from keras.src.applications.convnext import LayerScale, StochasticDepth
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    x = inputs = keras.Input((8, 8, 3), name="pixels")
    x = StochasticDepth(0.5, name="depth")(LayerScale(0.3, 3, name="scale")(x))
    x = CustomScaleLayer(0.2, name="add")([x, inputs])
    model = keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten(name="flat")(x)))
    model.save(tmp_path / f"m{suffix}")
    assert read_model_file(tmp_path / f"m{suffix}").findings == ()
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    opened = load_model(tmp_path / f"m{suffix}")
    np.testing.assert_allclose(opened.predict(pixels, verbose=0), model.predict(pixels, verbose=0), rtol=1e-6)


def test_the_name_that_keras_2_registers_is_known() -> None:
    def found(kind: str) -> int:
        return len(
            scan_config({"class_name": "Functional", "config": {"layers": [{"class_name": kind, "config": {}}]}})
        )

    assert found("Custom>CustomScaleLayer") == 0
    assert found("Custom>Mine") == 1


# --- limits ---


def promised(kind: str, **settings: Any) -> None:
    check_declared_sizes(
        {"class_name": "Functional", "config": {"layers": [{"class_name": kind, "config": settings}]}}, 0, "m.keras"
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("AdaptiveAveragePooling3D", {"output_size": [2**15, 1, 1]}),
        ("AdaptiveMaxPooling1D", {"output_size": 2**15}),
        ("ContrastLimitedAdaptiveHistogramEqualization", {"tile_grid_size": [2**12, 1]}),
        ("MaxNumBoundingBoxes", {"max_number": 2**21}),
        ("GroupedQueryAttention", {"head_dim": 2**15, "num_query_heads": 2**15, "num_key_value_heads": 1}),
    ],
)
def test_their_settings_have_limits(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        promised(kind, **settings)
    promised(kind, **{key: [8] * len(value) if isinstance(value, list) else 8 for key, value in settings.items()})


def test_what_happens_inside_a_pipeline_has_limits() -> None:
    def model(times: int) -> keras.Model:
        large = layers.UpSampling2D(times, name="large")
        again = layers.Pipeline([large, layers.AveragePooling2D(times, name="small")], name="inner")
        inputs = keras.Input((64, 64, 3), name="pixels")
        return keras.Model(inputs, layers.Pipeline([again], name="outer")(inputs))

    check_tensors(model(4), "m.keras")
    with pytest.raises(ModelError, match=r"whose layer large makes \[8192, 8192, 3\]"):
        check_tensors(model(128), "m.keras")


def test_histograms_have_limits() -> None:
    def model(side: int, tiles: int) -> keras.Model:
        inputs = keras.Input((side, side, 3), name="pixels")
        tiled = layers.ContrastLimitedAdaptiveHistogramEqualization(tile_grid_size=(tiles, tiles), name="clahe")
        return keras.Model(inputs, tiled(inputs))

    check_tensors(model(512, 8), "m.keras")
    with pytest.raises(ModelError, match="whose layer clahe makes histograms of"):
        check_tensors(model(2048, 8), "m.keras")
