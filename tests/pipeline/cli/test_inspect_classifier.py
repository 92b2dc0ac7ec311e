"""``inspect``: the number of classes, counts as Keras counts, and why something cannot be deployed."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tf_keras
import yaml
from keras import layers

from export.errors import ModelError, RecipeError
from export.records import to_json
from pipeline.cli.commands import main
from pipeline.cli.inspect_model import _lines, describe, inspect_model
from pipeline.keras_files.read import read_model_file
from pipeline.models.classifier_check import Shape, _why_no_image
from pipeline.models.import_model import import_model
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Model as ModelSection

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model(*after: Any, shape: tuple[int | None, ...] = (16, 16, 3), package: Any = keras) -> Any:
    """Layers on an image."""
    x = inputs = package.Input(shape, name="pixels")
    for layer in after:
        x = layer(x)
    return package.Model(inputs, x)


def facts(built: Any, path: Path) -> dict[str, Any]:
    built.export(str(path), verbose=False) if path.suffix == "" else built.save(path)
    return to_json(describe(read_model_file(path)))


def memory(x: Any) -> Any:
    return layers.LSTM(4, stateful=True, name="memory")(layers.Reshape((16, 32))(x))


def body(package: Any = keras) -> list[Any]:
    part = package.layers
    return [part.Conv2D(4, 3, name="conv"), part.GlobalAveragePooling2D(name="pool")]


# --- classes ---


@pytest.mark.parametrize(
    "head",
    [
        lambda part: [part.GlobalAveragePooling2D(), part.Dense(5), part.Activation("softmax")],
        lambda part: [part.GlobalAveragePooling2D(), part.Dense(5), part.Softmax()],
        lambda part: [part.Conv2D(5, 1), part.GlobalAveragePooling2D(), part.Activation("softmax")],
        lambda part: [part.GlobalMaxPooling2D(keepdims=True), part.Conv2D(5, 1), part.Reshape((5,)), part.Softmax()],
        lambda part: [part.GlobalAveragePooling2D(keepdims=True), part.Conv2D(5, 1, padding="same"), part.Flatten()],
        lambda part: [part.Flatten(), part.Dense(5, activation="softmax"), part.Dropout(0.1)],
    ],
    ids=["activation", "softmax", "pooled", "reshape", "flatten", "dropout"],
)
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras3", "keras2"])
def test_classes_are_found_behind_what_stands_at_the_end(tmp_path: Path, head: Any, package: Any) -> None:
    built = model(package.layers.Conv2D(4, 3), *head(package.layers), package=package)
    assert facts(built, tmp_path / "m.h5")["classes"] == 5


def test_one_sigmoid_is_two_classes(tmp_path: Path) -> None:
    found = facts(model(*body(), layers.Dense(1), layers.Activation("sigmoid")), tmp_path / "m.keras")
    assert (found["classes"], found["cannot_go"]) == (2, None)


def test_sigmoids_are_seen_behind_an_activation(tmp_path: Path) -> None:
    found = facts(model(*body(), layers.Dense(4), layers.Activation("sigmoid")), tmp_path / "m.keras")
    assert yaml.safe_load(found["recipe"])["model"]["output"] == "sigmoid"


def test_a_nested_head_and_a_signature(tmp_path: Path) -> None:
    head = keras.Sequential([layers.Input((4,)), layers.Dense(6), layers.Softmax()], name="head")
    assert facts(model(*body(), head), tmp_path / "m.keras")["classes"] == 6
    assert facts(model(*body(), head), tmp_path / "saved")["classes"] == 6


# --- what cannot go ---


@pytest.mark.parametrize(
    ("built", "why"),
    [
        (lambda: model(layers.Dense(3), shape=(8,)), r"rows of numbers, \(N, 8\); an image classifier takes images"),
        (lambda: model(*body(), layers.Dense(1)), "one number without a sigmoid, as a regression does"),
        (lambda: model(layers.Conv2D(3, 3, padding="same")), r"an image or a map for each input, \(N, 16, 16, 3\)"),
        (lambda: model(layers.Conv2D(64, 3, strides=2)), r"a feature map, \(N, .*, 64\)"),
        (lambda: model(*body(), layers.Dense(3), shape=(16, 16, 5)), r"takes 5 channels, \(N, 16, 16, 5\)"),
        (lambda: model(layers.Flatten(), layers.Dense(3), shape=(4, 16, 16, 3)), "videos or volumes"),
        (lambda: model(*body(), layers.Dense(1, activation="relu")), "one number without a sigmoid"),
        (lambda: model(*body(), layers.Dense(1, activation="softmax")), "one number without a sigmoid"),
        (lambda: model(layers.Flatten(), layers.Dense(3), shape=(4, 4, 3)), r"\(N, 4, 4, 3\), which is too small"),
        (lambda: keras.Model((x := keras.Input((16, 32, 1), 2)), layers.Dense(3)(memory(x))), "layer memory remembers"),
    ],
    ids=["numbers", "regression", "denoiser", "backbone", "channels", "video", "relu", "one", "small", "memory"],
)
@pytest.mark.parametrize("kind", ["m.keras", "m.h5"])
def test_what_cannot_go_gets_a_reason_and_no_recipe(
    tmp_path: Path, built: Any, why: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(built(), tmp_path / kind)
    assert found["recipe"] is None
    assert found["classes"] is None
    assert re.search(why, found["cannot_go"])
    inspect_model(tmp_path / kind)
    assert "no recipe: this cannot be deployed as an image classifier, because" in capsys.readouterr().out


def test_a_signature_that_cannot_go(tmp_path: Path) -> None:
    found = facts(model(layers.Dense(3), shape=(8,)), tmp_path / "saved")
    assert "rows of numbers, (N, 8)" in found["cannot_go"]
    assert found["recipe"] is None


def test_two_inputs_or_outputs_cannot_go(tmp_path: Path) -> None:
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="two")
    x = layers.Flatten(name="flat")(layers.Add(name="sum")([one, two]))
    assert (
        "takes 2 inputs"
        in facts(keras.Model([one, two], layers.Dense(3, name="first")(x)), tmp_path / "in.keras")["cannot_go"]
    )
    alone = layers.Flatten(name="flat_one")(one)
    ends = [layers.Dense(n, name=f"end{n}")(alone) for n in (2, 3)]
    assert "gives 2 outputs" in facts(keras.Model(one, ends), tmp_path / "out.keras")["cannot_go"]


def two_ends(package: Any, form: str) -> Any:
    part = package.layers
    x = inputs = package.Input((16, 16, 3), name="pixels")
    for layer in body(package):
        x = layer(x)
    box, kind = part.Dense(4, name="box")(x), part.Dense(3, activation="softmax", name="kind")(x)
    return package.Model(inputs, {"b": box, "a": kind} if form == "dictionary" else [box, kind])


def argmax(package: Any) -> Any:
    scores = model(*body(package), package.layers.Dense(3, name="scores"), package=package)
    if package is keras:
        return keras.Model(scores.input, keras.ops.argmax(scores.output, axis=-1))
    import tensorflow as tf

    return tf_keras.Model(scores.input, tf.math.argmax(scores.output, axis=-1))


@pytest.mark.parametrize(
    ("built", "name", "output", "classes"),
    [
        (lambda: two_ends(keras, "list"), "two.keras", "kind", 3),
        (lambda: two_ends(keras, "dictionary"), "its two.keras", "kind", 3),
        (lambda: two_ends(tf_keras, "list"), "two.h5", "kind", 3),
        (lambda: two_ends(keras, "dictionary"), "saved", "a", 3),
        (lambda: argmax(keras), "argmax.keras", "scores", 3),
        (lambda: argmax(tf_keras), "argmax.h5", "scores", 3),
    ],
)
def test_the_line_that_cuts_a_model_gives_one_that_is_taken(
    built: Any,
    name: str,
    output: str,
    classes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    original = built()
    found = facts(original, Path(name))
    assert found["recipe"] is None
    inspect_model(Path(name))
    said = capsys.readouterr().out
    line = said.rstrip().splitlines()[-1]
    assert f"to cut it to {output!r}" in said
    assert f" run this in Python, and inspect {found['cut']['saved']}:" in said
    assert ("with that name in its place" in said) is ("argmax" not in name), "the other output fits as well"
    assert line == found["cut"]["line"]
    assert Path(found["cut"]["saved"]).suffix == Path(name).suffix
    exec(line, {})  # as it is printed
    whole = to_json(describe(read_model_file(Path(found["cut"]["saved"]))))
    assert (whole["cannot_go"], whole["classes"]) == (None, classes)
    trusted = tuple(finding["name"] for finding in whole["unsafe"])  # type: ignore[attr-defined]
    config = ModelSection(path=found["cut"]["saved"], preprocessing="unit", allow=trusted)
    taken = import_model(config, ("a", "b", "c", "d")[:classes], "stretch")
    pixels = np.random.default_rng(3).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    logits = np.asarray(taken.model(pixels.astype(np.float32)))
    assert logits.shape == (2, classes)
    if "argmax" in name:
        expected = np.asarray(original(pixels / np.float32(255)))
        assert np.argmax(logits, axis=1).tolist() == expected.tolist()


def test_what_no_line_can_cut_gets_none(tmp_path: Path) -> None:
    x = keras.Input((16, 16, 3))
    maps = [layers.Conv2D(n, 3, name=f"map{n}")(x) for n in (2, 3)]
    found = facts(keras.Model(x, maps), tmp_path / "maps.keras")
    assert "gives 2 outputs (map2 (N, " in found["cannot_go"]
    assert found["cut"] is None
    assert facts(model(*body(), layers.Dense(1)), tmp_path / "one.keras")["cut"] is None


def test_a_model_that_keras_quantized_or_never_called_gets_no_recipe(tmp_path: Path) -> None:
    quantized = model(*body(), layers.Dense(3, name="end"))
    quantized.quantize("int8")
    assert "Keras quantized its layer end" in facts(quantized, tmp_path / "q.keras")["cannot_go"]
    uncalled = keras.Sequential([*body(), layers.Dense(3)])
    assert "does not say what size of image it takes" in facts(uncalled, tmp_path / "u.keras")["cannot_go"]
    uncalled(np.zeros((1, 16, 16, 3), np.float32))
    assert facts(uncalled, tmp_path / "c.keras")["cannot_go"] is None


def test_an_end_that_is_neither_logits_nor_softmax_is_said_in_the_recipe(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)  # of some weights every answer is between 0 and 1, as a probability is
    found = facts(model(*body(), layers.Dense(3, activation="tanh")), tmp_path / "m.keras")
    assert yaml.safe_load(found["recipe"])["model"]["output"] == "logits"
    config = ModelSection(path=str(tmp_path / "m.keras"), preprocessing="unit", output="logits")
    assert import_model(config, ("a", "b", "c"), "stretch").card.output == "logits"


def test_what_cannot_be_built_gets_no_recipe(tmp_path: Path) -> None:
    built = model(layers.RandomFlip(name="flip"), *body(), layers.Dense(3))
    built.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b"RandomFlip", b"TheirBlock")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    found = to_json(describe(read_model_file(tmp_path / "other.keras")))
    assert "TheirBlock" in found["cannot_go"]
    assert found["recipe"] is None


def test_a_recipe_says_what_must_be_chosen(tmp_path: Path) -> None:
    found = facts(model(*body(), layers.Dense(3, activation="softmax")), tmp_path / "m.keras")
    (tmp_path / "r.yaml").write_text(found["recipe"])
    with pytest.raises(RecipeError, match=r"model\.preprocessing: expected one of caffe, tf.*Received: CHOOSE, as"):
        load_recipe(tmp_path / "r.yaml")
    chosen = load_recipe(tmp_path / "r.yaml", ["model.preprocessing=unit"])
    assert chosen.model.preprocessing == "unit"


# --- counts ---


def counted(package: Any, kind: str) -> Any:
    part = package.layers
    x = inputs = package.Input((16, 16, 3), name="pixels")
    if kind == "random":
        x = part.RandomRotation(0.1)(part.RandomFlip()(x))
    elif kind == "normalization":
        x = part.Normalization()(x)
    elif kind == "nested twice":
        inner = package.Sequential([part.Input((16, 16, 3)), part.Conv2D(3, 3, padding="same")], name="inner")
        x = inner(inner(x))
    x = part.BatchNormalization()(part.Conv2D(4, 3, use_bias=False)(x))
    x = part.LSTM(6)(part.Reshape((14, 56))(x)) if kind == "recurrent" else part.GlobalAveragePooling2D()(x)
    if kind == "spectral":
        x = part.SpectralNormalization(part.Dense(5))(x)
    built = package.Model(inputs, part.Dense(3, activation="softmax")(part.Dropout(0.1)(x)))
    if kind == "trained":
        built.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        built.fit(np.zeros((2, 16, 16, 3)), np.zeros(2), verbose=0)
    return built


@pytest.mark.parametrize(
    ("package", "kind"),
    [
        *((keras, kind) for kind in ("random", "normalization", "nested twice", "recurrent", "spectral", "trained")),
        *((tf_keras, kind) for kind in ("normalization", "trained")),
        *(pytest.param(tf_keras, kind, marks=pytest.mark.slow) for kind in ("random", "nested twice", "recurrent")),
    ],
)
def test_parameters_are_those_that_keras_counts(tmp_path: Path, package: Any, kind: str) -> None:
    built = counted(package, kind)
    trainable = sum(int(np.prod(w.shape)) for w in built.trainable_weights)
    ways = ["m.keras", "m.h5", "export"] + (["saved"] if package is tf_keras else [])
    for way in ways:
        path = tmp_path / way
        if way == "export":
            built.export(str(path), **({"verbose": False} if package is keras else {}))
        else:
            built.save(str(path))
        found = to_json(describe(read_model_file(path)))["parameters"]
        assert found["total"] == built.count_params(), way
        assert found["trainable"] in (trainable, None), way
        assert found["trainable"] is not None or way in ("export", "saved") or package is tf_keras


# --- files of other kinds ---


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("m.onnx", b"\x08\x08\x12\x07pytorch", "an ONNX model, which is an output of the conversion"),
        ("m.bin", b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite model"),
        ("graph.pb", b"\n\x10", "without the folder of a SavedModel"),
        ("m.pth", b"\x80\x02\x8a\n", "PyTorch's"),
        ("m.plan", b"ftrt\0\0", "a TensorRT engine"),
        ("m.h5", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("m.h5", b"<!DOCTYPE html>", "a web page"),
        ("m.keras.gz", b"\x1f\x8b\x08", "a gzip archive"),
        ("m.pkl", b"\x80\x04\x95", "a Python pickle"),
        ("m.safetensors", b"\x08\0\0\0\0\0\0\0{}", "weights alone"),
        ("m.json", b"{}", "an architecture alone"),
        ("m.h5", b"", "an empty file"),
        ("m.what", b"hello", r"which is none; it starts with b'hello'"),
    ],
)
def test_a_file_is_told_what_it_is(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=what):
        read_model_file(tmp_path / name)


@pytest.mark.parametrize(
    ("members", "what"),
    [
        (["m/saved_model.pb", "m/variables/variables.index"], "a SavedModel in a zip archive. Unzip it.* folder m"),
        (["archive/data.pkl", "archive/version"], "PyTorch's"),
        (["m/config.json", "m/model.weights.h5"], "zipped with its folder. Zip its content: cd m "),
        (["a.npy", "b.npy"], "NumPy arrays"),
        (["models/best.h5"], "Unzip it, and name models/best.h5"),
    ],
)
def test_a_zip_is_told_what_it_holds(tmp_path: Path, members: list[str], what: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for member in members:
            archive.writestr(member, "x")
    with pytest.raises(ModelError, match=what):
        read_model_file(tmp_path / "m.zip")


def convolution(activation: str | None) -> list[object]:
    return [layers.Conv2D(4, 3, name="conv", activation=activation), layers.GlobalAveragePooling2D(name="pool")]


@pytest.mark.parametrize(
    "rows",
    [
        convolution("relu"),
        [*convolution("relu"), layers.LayerNormalization(name="norm")],
        [keras.Sequential([keras.Input((16, 16, 3)), *convolution("relu")], name="backbone"), layers.Dropout(0.5)],
        [layers.Conv2D(4, 3), layers.ReLU(), layers.GlobalMaxPooling2D(name="pool")],
    ],
    ids=["pooled", "normalised", "nested", "maximum"],
)
def test_a_backbone_without_a_head_gets_no_recipe(tmp_path: Path, rows: list[object]) -> None:
    found = facts(model(*rows), tmp_path / "m.keras")
    assert found["recipe"] is None
    assert "Pooling2D 'pool', the features of a backbone" in found["cannot_go"]
    assert "say so in a recipe: model.output: logits" in found["cannot_go"]


@pytest.mark.parametrize(
    "rows",
    [
        convolution(None),
        [layers.Conv2D(4, 3), layers.Dropout(0.5), layers.GlobalAveragePooling2D()],
        [*convolution("relu"), layers.Softmax()],
        [*convolution("relu"), layers.Dense(4)],
    ],
    ids=["channel a class", "behind dropout", "softmax", "dense"],
)
def test_pooling_may_end_a_classifier(tmp_path: Path, rows: list[object]) -> None:
    assert facts(model(*rows), tmp_path / "m.keras")["cannot_go"] is None


def test_a_relu_of_its_own_at_the_end_is_asked_about(tmp_path: Path) -> None:
    found = facts(model(layers.Flatten(), layers.Dense(4), layers.ReLU()), tmp_path / "m.keras")
    assert "output: logits  # if the values of its relu are scores" in found["recipe"]


def test_a_layer_that_is_called_twice_does_not_mislead(tmp_path: Path) -> None:
    inputs = keras.Input((16, 16, 3), name="pixels")
    gate = layers.Activation("sigmoid", name="gate")
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Multiply(name="gated")([x, gate(x)]))
    found = facts(keras.Model(inputs, gate(layers.Dense(1, name="score")(x))), tmp_path / "m.keras")
    assert found["cannot_go"] is None
    assert found["recipe"] is not None


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_classes_are_found_behind_what_is_no_map(tmp_path: Path, name: str) -> None:
    part = tf_keras.layers
    rows = [part.Reshape((16, 48)), part.Bidirectional(part.GRU(4)), part.Dense(5, activation="softmax")]
    assert facts(model(*rows, package=tf_keras), tmp_path / name)["classes"] == 5


def test_a_recipe_is_written_to_a_new_file_and_names_the_model_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model(layers.GlobalAveragePooling2D(name="pool"), layers.Dense(3, name="out")).save(tmp_path / "m.keras")
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "m.keras", "--recipe", "configs/mine.yaml"]) == 0
    text = Path("configs/mine.yaml").read_text()
    assert text.startswith("# configs/mine.yaml\n")
    assert yaml.safe_load(text)["model"]["path"] == "../m.keras"
    said = (
        "configs/mine.yaml: a recipe to start from. Fill in data.path and model.preprocessing, then: python -m pipeline"
    )
    assert said in capsys.readouterr().out
    assert main(["inspect", "m.keras", "--recipe", "configs/mine.yaml"]) == 2
    assert "Received: configs/mine.yaml, which exists already" in capsys.readouterr().err
    assert Path("configs/mine.yaml").read_text() == text

    def read_only(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pipeline.artifacts.output.tempfile.TemporaryFile", read_only)
    assert main(["inspect", "m.keras", "--recipe", "configs/other.yaml"]) == 2
    assert "Received: configs/other.yaml: Read-only file system (in configs). Name another." in capsys.readouterr().err
    assert main(["inspect", "m.keras", "--recipe", "configs"]) == 2


def test_no_recipe_is_written_of_a_model_that_cannot_be_deployed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(layers.Conv2D(3, 3, name="map")).save(tmp_path / "m.keras")
    assert main(["inspect", str(tmp_path / "m.keras"), "--recipe", str(tmp_path / "r.yaml")]) == 2
    assert "Nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "r.yaml").exists()


def test_a_regression_beside_a_classifier_is_no_way_to_cut(tmp_path: Path) -> None:
    built = model(layers.Flatten(name="flat"))
    ends = [layers.Dense(5, name="kind"), layers.Dense(1, name="age"), layers.Dense(1, "sigmoid", name="old")]
    keras.Model(built.inputs, [end(built.outputs[0]) for end in ends]).save(tmp_path / "m.keras")
    cut = describe(read_model_file(tmp_path / "m.keras")).cut
    assert cut is not None
    assert (cut.output, cut.others) == ("old", ("kind",))


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((8, 8, 3), True), ((7, 8, 3), False), ((8, 7, 1), False), ((3, 16, 16), True), ((3, 16, 7), False)],
)
def test_the_smallest_picture(shape: Shape, fits: bool) -> None:
    assert (_why_no_image("float32", shape) is None) == fits


def test_the_frozen_parameters_are_counted(tmp_path: Path) -> None:
    frozen = layers.Dense(6, name="frozen")
    frozen.trainable = False
    model(layers.Flatten(), frozen, layers.Dense(2)).save(tmp_path / "m.keras")
    lines = _lines(describe(read_model_file(tmp_path / "m.keras")))
    (line,) = [line for line in lines if line.startswith("  parameters")]
    assert line.endswith("4,628 (14 trainable, 4,614 not)")
