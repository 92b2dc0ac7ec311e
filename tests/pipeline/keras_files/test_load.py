"""Models of other people: whatever version wrote them, they give the same answers; what is no classifier says so."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from export.files import ROOT

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers

from export.errors import DataError, ModelError, RecipeError
from export.from_keras.convert import export_keras
from export.preprocessing import PreprocessingSpec
from pipeline.cli.inspect_model import describe
from pipeline.data.class_names import data_names, in_model_order, model_names
from pipeline.keras_files.load import load_classifier, load_model
from pipeline.keras_files.read import read_model_file
from pipeline.models.canonical_form import to_canonical_form
from pipeline.models.import_model import import_model
from pipeline.recipe.schema import Data, Model
from pipeline.runners.keras import KerasRunner
from tests.pipeline import legacy_models

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data beside the repository")
ALLOW = ("SavedModel",)
PIXELS = PreprocessingSpec.from_mode("none")


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """Files of Keras 2, and what Keras 2 answered."""
    folder = tmp_path_factory.mktemp("brought")
    answers = {}
    for name, build in {
        "nested.h5": legacy_models.nested,
        "nested.keras": legacy_models.nested,
        "nested_saved": legacy_models.nested,
        "half_frozen.h5": lambda: legacy_models.nested(trainable=True),
        "binary.h5": legacy_models.binary_with_operations,
        "binary_saved": legacy_models.binary_with_operations,
        "augmented.h5": legacy_models.augmented,
        "subclassed_saved": legacy_models.subclassed,
    }.items():
        answers[name] = legacy_models.save(build(), folder / name)
    legacy_models.rename_in_training_config(folder / "nested.h5", "learning_rate", "lr")
    return folder, answers


def two_classes(answers):
    """One sigmoid unit as the probabilities of two classes."""
    return np.concatenate([1 - answers, answers], axis=1) if answers.shape[1] == 1 else answers


FILES = (
    "nested.h5", "nested.keras", "nested_saved", "half_frozen.h5", "binary.h5", "binary_saved", "augmented.h5",
    "subclassed_saved",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_answers_of_keras_2_survive(brought, tmp_path, name) -> None:
    folder, answers = brought
    adopted = to_canonical_form(load_model(folder / name, ALLOW, compare=True), folder / name)
    path = tmp_path / "model.keras"
    adopted.model.save(path)
    with KerasRunner(path, PIXELS, output=adopted.output, allow=ALLOW) as runner:
        result = runner.infer(legacy_models.images())
    np.testing.assert_allclose(result.probabilities, two_classes(answers[name]), atol=2e-5)
    assert np.ptp(result.logits) > 1e-3


@pytest.mark.parametrize("name", ["nested.h5", "binary.h5", "augmented.h5", "subclassed_saved"])
def test_they_export(brought, tmp_path, name) -> None:
    folder, answers = brought
    adopted = to_canonical_form(load_model(folder / name, ALLOW, compare=True), folder / name)
    path = tmp_path / "model.onnx"
    classes = [f"c{i}" for i in range(adopted.model.outputs[0].shape[1])]
    export_keras(adopted.model, path, preprocessing=PIXELS, classes=classes, output=adopted.output)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        logits, probabilities = session.run(None, {"images": legacy_models.images()[:count]})
        np.testing.assert_allclose(probabilities, two_classes(answers[name])[:count], atol=2e-5)
    if name == "binary.h5":
        np.testing.assert_array_equal(logits[:, 0], 0)


def test_a_converted_model_loads_with_plain_keras(brought, tmp_path) -> None:
    folder, _ = brought
    adopted = to_canonical_form(load_model(folder / "nested.h5", compare=True), folder / "nested.h5")
    adopted.model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    assert [layer.name for layer in model.layers if hasattr(layer, "layers")] == ["backbone"]
    assert model.get_layer("backbone").get_layer("conv1").kernel.shape == (3, 3, 3, 8)


def test_a_saved_model_by_export_becomes_a_layer(tmp_path) -> None:
    inputs = layers.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    model.export(tmp_path / "served", verbose=False)
    pixels = legacy_models.images()[:, :16, :16].astype(np.float32)
    adopted = to_canonical_form(load_model(tmp_path / "served", ALLOW), tmp_path / "served")
    assert adopted.model.count_params() == model.count_params()
    adopted.model.save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"SavedModel.*model\.allow=\[SavedModel\]"):
        load_classifier(tmp_path / "m.keras")
    again = load_classifier(tmp_path / "m.keras", ALLOW)
    np.testing.assert_allclose(again(pixels), model(pixels), atol=1e-6)


def functional(*end, shape=(16, 16, 3), dtype=None, first=()):
    x = inputs = layers.Input(shape, name="picture", dtype=dtype)
    for layer in (*first, layers.Conv2D(4, 3, name="conv"), layers.GlobalAveragePooling2D(), *end):
        x = layer(x)
    return keras.Model(inputs, x, name="brought")


def pixels(size=16, channels=3, count=2):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, channels)).astype(np.float32)


WHERE = Path("brought.keras")


def test_a_plain_classifier_stays_as_it_is() -> None:
    model = functional(layers.Dense(3, activation="softmax"))
    adopted = to_canonical_form(model, WHERE)
    assert adopted.model is model
    assert adopted.changes == ()


def test_one_sigmoid_unit_is_two_classes() -> None:
    model = functional(layers.Dense(1, activation="sigmoid", name="score"))
    adopted = to_canonical_form(model, WHERE)
    logits = np.asarray(adopted.model(pixels()))
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(
        np.asarray(keras.ops.sigmoid(logits[:, 1])), np.asarray(model(pixels()))[:, 0], atol=1e-6
    )
    assert adopted.output == "logits"


def test_what_one_unit_means_is_asked_for() -> None:
    model = functional(layers.Dense(1))
    with pytest.raises(ModelError, match=r"one unit and 'linear'.*model\.output=logits.*regression"):
        to_canonical_form(model, WHERE)
    logits = to_canonical_form(model, WHERE, "logits").model(pixels())
    np.testing.assert_allclose(np.asarray(logits)[:, 1:], model(pixels()), rtol=1e-6)


def test_what_several_sigmoids_mean_is_asked_for() -> None:
    model = functional(layers.Dense(3), layers.Activation("sigmoid"))
    with pytest.raises(ModelError, match=r"what 3 sigmoids mean.*model\.output=sigmoid"):
        to_canonical_form(model, WHERE)
    logits = np.asarray(to_canonical_form(model, WHERE, "sigmoid").model(pixels()))
    np.testing.assert_allclose(np.asarray(keras.ops.sigmoid(logits)), model(pixels()), atol=1e-6)
    with pytest.raises(ModelError, match=r"because .* ends with softmax"):
        to_canonical_form(functional(layers.Dense(3, activation="softmax")), WHERE, "sigmoid")


def test_dictionaries_of_one_are_opened() -> None:
    plain = functional(layers.Dense(3, activation="softmax"))
    model = keras.Model({"picture": plain.inputs[0]}, {"scores": plain.outputs[0]})
    adopted = to_canonical_form(model, WHERE)
    np.testing.assert_array_equal(adopted.model(pixels()), plain(pixels()))


def test_any_size_gets_the_size_of_the_recipe() -> None:
    model = functional(layers.Dense(3), shape=(None, None, 3))
    adopted = to_canonical_form(model, WHERE, free_size=24)
    assert adopted.model.inputs[0].shape == (None, 24, 24, 3)
    np.testing.assert_array_equal(adopted.model(pixels(24)), model(pixels(24)))


def test_greyscale_input_takes_rgb() -> None:
    model = functional(layers.Dense(3), shape=(16, 16, 1))
    grey = pixels(channels=1)
    adopted = to_canonical_form(model, WHERE)
    np.testing.assert_allclose(adopted.model(grey.repeat(3, axis=3)), model(grey), rtol=1e-3, atol=1e-3)


def test_integer_input_and_a_fixed_batch_are_freed() -> None:
    x = inputs = layers.Input((16, 16, 3), batch_size=2, dtype="uint8")
    for layer in (layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(3)):
        x = layer(x)
    model = keras.Model(inputs, x)
    adopted = to_canonical_form(model, WHERE)
    whole = pixels().round()
    assert adopted.model.inputs[0].shape == (None, 16, 16, 3)
    np.testing.assert_allclose(adopted.model(whole), model(whole.astype(np.uint8)), rtol=1e-5, atol=1e-6)


def test_augmentation_goes_and_half_precision_becomes_single() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        # Named, because Keras numbers the layers that other tests made too.
        augmenting = [layers.RandomFlip(name="random_flip"), layers.RandomZoom(0.5, name="random_zoom")]
        inner = keras.Sequential([layers.Input((16, 16, 3)), *augmenting], name="augment")
        end = (layers.BatchNormalization(), layers.Dense(3, activation="softmax", dtype="float32"))
        model = functional(*end, first=(inner, layers.Rescaling(1 / 255)))
    finally:
        keras.config.set_dtype_policy("float32")
    adopted = to_canonical_form(model, WHERE)
    assert any("augmentation left out: random_flip, random_zoom" in change for change in adopted.changes)
    assert any("half precision" in change for change in adopted.changes)
    np.testing.assert_allclose(adopted.model(pixels()), model(pixels(), training=False), atol=5e-3)
    assert adopted.model.output.dtype == "float32"


def test_weights_of_what_is_kept_are_shared() -> None:
    model = functional(layers.Dense(1, activation="sigmoid"))
    adopted = to_canonical_form(model, WHERE)
    assert adopted.model.get_layer("conv") is model.get_layer("conv")


def two_inputs():
    a, b = layers.Input((16, 16, 3), name="left"), layers.Input((16, 16, 3), name="right")
    return keras.Model([a, b], layers.Dense(2)(layers.Flatten()(layers.Add()([a, b]))))


def two_outputs():
    inputs = layers.Input((16, 16, 3))
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(2)(x), layers.Dense(3)(x)])


def picture(filters, size=(16, 16, 3), strides=1):
    inputs = layers.Input(size)
    return keras.Model(inputs, layers.Conv2D(filters, 3, strides, padding="same")(inputs))


def dense(shape):
    inputs = layers.Input(shape)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (two_inputs, r"2: left \(None, 16, 16, 3\), right"),
        (two_outputs, r"gives .*\(None, 2\), .*\(None, 3\)\. Cut it to .*-m pipeline inspect "),
        (lambda: picture(1), "segmentation"),
        (lambda: picture(64, strides=8), "a backbone without its head"),
        (lambda: dense((20,)), "rows of numbers"),
        (lambda: dense((9, 20)), "sequences"),
        (lambda: dense((4, 16, 16, 3)), "videos"),
        (lambda: dense((16, 16, 5)), "5 channels"),
        (lambda: dense((2, 2, 3)), "too small"),
        (lambda: keras.Sequential([layers.Dense(3)]), "Sequential without one"),
    ],
)
def test_what_is_no_image_classifier_is_named(build, found) -> None:
    with pytest.raises(ModelError, match=f"(?s)Expected.*Received: .*{found}"):
        to_canonical_form(build(), WHERE)


def save(model, tmp_path) -> str:
    path = tmp_path / "m.keras"
    model.save(path)
    return str(path)


def test_what_the_file_does_not_say_is_asked_for(tmp_path) -> None:
    path = save(functional(layers.Dense(3, activation="softmax")), tmp_path)
    with pytest.raises(ModelError, match=r"model\.preprocessing: expected caffe, tf, torch, unit or none"):
        import_model(Model(path=path), ("a", "b", "c"), "stretch")
    with pytest.raises(ModelError, match=r"with 3; the data has 2 \(a, b\).*model\.classes"):
        import_model(Model(path=path, preprocessing="unit"), ("a", "b"), "stretch")
    taken = import_model(Model(path=path, preprocessing="unit"), ("a", "b", "c"), "stretch")
    assert taken.card.size == (16, 16)
    assert taken.card.written_by == f"Keras {keras.__version__}"


def test_normalisation_inside_needs_no_answer(tmp_path) -> None:
    path = save(functional(layers.Dense(3), first=(layers.Rescaling(1 / 255),)), tmp_path)
    assert import_model(Model(path=path), ("a", "b", "c"), "stretch").card.preprocessing.mode == "none"


def test_an_end_that_is_neither_logits_nor_softmax_is_asked_for_by_its_key(tmp_path) -> None:
    path = save(functional(layers.Dense(3, activation="tanh")), tmp_path)
    asked = r"model\.output: .*m\.keras: Expected a classifier.*'tanh'.*set output to logits"
    with pytest.raises(ModelError, match=asked):
        import_model(Model(path=path, preprocessing="unit"), ("a", "b", "c"), "stretch")
    assert (
        import_model(Model(path=path, preprocessing="unit", output="logits"), ("a", "b", "c"), "stretch").card.output
        == "logits"
    )


def test_broken_weights_are_found(tmp_path) -> None:
    model = functional(layers.Dense(3))
    model.get_layer("conv").bias.assign(np.full(4, np.nan))
    with pytest.raises(ModelError, match="NaN"):
        import_model(Model(path=save(model, tmp_path), preprocessing="unit"), ("a", "b", "c"), "stretch")


@needs_shared
def test_the_cifar_checkpoint_reaches_its_accuracy(tmp_path) -> None:
    import zipfile

    from pipeline.data.decode import load_image
    from pipeline.models.preprocessing import own_preprocessing
    from pipeline.recipe.schema import Preprocessing

    mean = str(SHARED / "cifar10" / "train_mean_x255.npy")
    config = Preprocessing(mean=mean, scale=1 / 255, mean_of="scaled")
    with zipfile.ZipFile(SHARED / "cifar10" / "test2000_jpeg.zip") as archive:
        names = [n for n in sorted(archive.namelist()) if n.endswith(".jpg")][::10]
        data = np.stack([load_image(archive.read(name), (32, 32)).pixels for name in names])
    classes = sorted({n.split("/")[0] for n in names})
    path = SHARED / "checkpoints" / "resnet20_cifar10_keras225.h5"
    taken = import_model(Model(path=str(path), preprocessing=config), tuple(classes), "stretch")
    assert own_preprocessing(config).mean_image is not None
    answers = np.asarray(taken.model(taken.card.preprocessing.apply(data), training=False)).argmax(axis=1)
    assert np.mean(answers == [classes.index(n.split("/")[0]) for n in names]) > 0.75
    assert taken.model.count_params() == 274_442


@needs_shared
def test_the_audio_checkpoint_is_no_classifier() -> None:
    path = str(SHARED / "checkpoints" / "resnet_audio_tfkeras214.h5")
    with pytest.raises(ModelError, match=r"takes input_2 \(None, 129, 8, 1\) and gives .*\(None, 129, 1, 1\)"):
        import_model(Model(path=path, preprocessing="unit"), ("a", "b"), "stretch")


def test_the_error_names_the_data_and_the_model() -> None:
    from pipeline.data.dataset import ImageSet

    images = ImageSet(("cat", "dog"), {"test": ()}, 0)
    with pytest.raises(DataError, match="data cat, dog; model cat, owl; dog is not"):
        in_model_order(images, ("cat", "owl"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "owl\ncat\n\ndog\n"),
        ("c.json", json.dumps(["owl", "cat", "dog"])),
        ("c.json", json.dumps([["n01", "owl"], ["n02", "cat"], ["n03", "dog"]])),
        ("c.json", json.dumps({"cat": 1, "dog": 2, "owl": 0})),
        ("c.json", json.dumps({"1": "cat", "0": "owl", "2": "dog"})),
        ("c.json", json.dumps({"1": ["n02", "cat"], "0": ["n01", "owl"], "2": ["n03", "dog"]})),
    ],
)
def test_class_names_come_from_a_file(tmp_path, name, content) -> None:
    (tmp_path / name).write_text(content)
    assert model_names(str(tmp_path / name)) == ("owl", "cat", "dog")
    data = Data(source="folder", path=str(tmp_path), classes=str(tmp_path / name))
    assert data_names(data, tmp_path) == ("owl", "cat", "dog")


def test_two_classes_of_one_name_are_kept_apart_by_their_ids(tmp_path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps([["n1", "crane"], ["n2", "crane"], ["n3", "owl"]]))
    assert model_names(str(path)) == ("crane (n1)", "crane (n2)", "owl")
    path.write_text(json.dumps(["crane", "crane", "owl"]))
    with pytest.raises(RecipeError, match=r"each name once\. Received: crane more than once"):
        model_names(str(path))
    with pytest.raises(DataError, match=r"each name once\. Received: crane more than once"):
        data_names(Data(classes=str(path)), tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "which does not exist."),
        ("owl\nMüller\n".encode("utf-16"), "which is no UTF-8 text. Save it as UTF-8."),
    ],
)
def test_class_names_that_cannot_be_read_are_said_in_words(tmp_path, content, said) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=r"^model\.classes: expected ") as info:
        model_names(str(tmp_path / "names.txt"))
    assert said in str(info.value)
    assert str(tmp_path / "names.txt") in str(info.value)
    assert "Errno" not in str(info.value)


def test_what_keras_3_reads_wrongly_is_taken_from_keras_2(brought, monkeypatch, caplog) -> None:
    from pipeline.keras_files import load
    from pipeline.keras_files.keras2 import load_legacy

    folder, answers = brought
    wrong = load_legacy(folder / "nested.h5")
    wrong.layers[-1].kernel.assign(-np.asarray(wrong.layers[-1].kernel))
    monkeypatch.setattr(load, "_load_keras3", lambda *_: wrong)
    monkeypatch.setattr(load.log, "propagate", True)
    with caplog.at_level("WARNING"):
        model = load_model(folder / "nested.h5", compare=True)
    assert "differently from Keras 2" in caplog.text
    x = legacy_models.images().astype(np.float32)
    np.testing.assert_allclose(np.asarray(model(x)), answers["nested.h5"], atol=2e-5)
    assert load_model(folder / "nested.h5") is wrong, "only taking over pays for the comparison"


@pytest.mark.parametrize("nested", [False, True])
def test_batch_norms_in_training_mode_use_what_they_learned(tmp_path, nested) -> None:
    """As a well-known course writes its ResNet-50: Keras 2 then answers with the statistics of the batch at hand."""
    import tf_keras as k

    inputs = k.Input((16, 16, 3))
    x = k.layers.Activation("relu")(
        k.layers.BatchNormalization(name="bn")(k.layers.Conv2D(4, 3)(inputs), training=True)
    )
    body = k.Model(inputs, x, name="body")
    x = k.layers.GlobalAveragePooling2D()(body(inputs) if nested else x)
    model = legacy_models.randomize(k.Model(inputs, k.layers.Dense(3, activation="softmax")(x)))
    model.save(str(tmp_path / "resnet50.h5"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert describe(read_model_file(tmp_path / "resnet50.h5")).called_in_training == ("bn",)
    assert "called_in_training: refuse" in (describe(read_model_file(tmp_path / "resnet50.h5")).recipe or "")
    config = Model(path=str(tmp_path / "resnet50.h5"), preprocessing="unit")
    with pytest.raises(
        ModelError, match=r"calls of 1 layer \(bn\).*other images of its batch.*called_in_training=inference"
    ):
        import_model(config, ("a", "b", "c"), "stretch")
    taken = import_model(replace(config, called_in_training="inference"), ("a", "b", "c"), "stretch")
    assert "1 of its layers (bn) was called with training=True" in taken.card.deviations[0]
    taken.model.save(tmp_path / "model.keras")
    export_keras(taken.model, tmp_path / "m.onnx", preprocessing=taken.card.preprocessing, classes=taken.card.classes)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with KerasRunner(tmp_path / "model.keras", taken.card.preprocessing) as runner:
        together = runner.infer(pixels).probabilities
        for i in range(4):
            alone = runner.infer(pixels[i : i + 1]).probabilities
            np.testing.assert_allclose(alone, together[i : i + 1], atol=1e-6)
            np.testing.assert_allclose(session.run(None, {"images": pixels[i : i + 1]})[1], alone, atol=1e-5)
    norm = (taken.model.get_layer("body") if nested else taken.model).get_layer("bn")
    learned = (model.get_layer("body") if nested else model).get_layer("bn")
    np.testing.assert_array_equal(norm.moving_variance, learned.moving_variance)


def test_keras_3_answers_at_inference_whatever_a_call_said(tmp_path) -> None:
    inputs = layers.Input((16, 16, 3), name="pictures")
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Rescaling(1 / 255, name="unit")(inputs))
    x = layers.BatchNormalization(name="norm")(layers.Dropout(0.5, name="drop")(x, training=True), training=True)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="scores")(x))
    model.save(tmp_path / "m.keras")
    taken = import_model(Model(path=str(tmp_path / "m.keras"), preprocessing="none"), ("a", "b"), "stretch")
    assert taken.card.deviations == ()
    expected = model.predict(pixels(), verbose=0)
    np.testing.assert_allclose(taken.model.predict(pixels(), verbose=0), expected, atol=1e-6)


def test_a_lambda_of_keras_2_runs_only_if_it_is_named(tmp_path) -> None:
    import tf_keras

    x = inputs = tf_keras.Input((16, 16, 3))
    for layer in (
        tf_keras.layers.Lambda(lambda t: t / 255.0, name="preprocess"),
        tf_keras.layers.Conv2D(2, 3),
        tf_keras.layers.BatchNormalization(),
        tf_keras.layers.GlobalAveragePooling2D(),
        tf_keras.layers.Dense(2, activation="softmax"),
    ):
        x = layer(x)
    model = tf_keras.Model(inputs, x)
    model.save(str(tmp_path / "m.h5"))
    with pytest.raises(ModelError, match=r"model\.allow=\[preprocess\]"):
        import_model(Model(path=str(tmp_path / "m.h5"), preprocessing="none"), ("a", "b"), "stretch")
    config = Model(path=str(tmp_path / "m.h5"), preprocessing="none", allow=("preprocess", "unknown"))
    taken = import_model(config, ("a", "b"), "stretch")
    taken.model.save(tmp_path / "again.keras")
    with pytest.raises(ModelError, match="a Lambda layer preprocess"):
        load_classifier(tmp_path / "again.keras")  # the card gives no permission
    again = load_classifier(tmp_path / "again.keras", config.allow)
    np.testing.assert_allclose(np.asarray(again(pixels())), model(pixels()).numpy(), atol=1e-6)


def keras1_config() -> dict:
    """A small residual net as Keras 1.2 wrote its architecture."""

    def layer(kind, name, *inbound, **config):
        node = [[[n, 0, 0] for n in inbound]] if inbound else []
        return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": node}

    conv = {
        "nb_filter": 3, "nb_row": 3, "nb_col": 3, "border_mode": "same", "subsample": [1, 1], "dim_ordering": "tf",
        "init": "glorot_uniform", "activation": "linear", "bias": True, "trainable": True, "W_regularizer": None,
        "b_regularizer": None, "W_constraint": None, "b_constraint": None, "activity_regularizer": None,
    }  # fmt: skip
    norm = {"mode": 0, "axis": -1, "epsilon": 1e-3, "momentum": 0.99, "gamma_regularizer": None, "trainable": True}
    pool = {"pool_size": [16, 16], "strides": [16, 16], "border_mode": "valid", "dim_ordering": "tf"}
    head = {"output_dim": 2, "input_dim": None, "init": "he_normal", "activation": "softmax", "bias": True}
    layers_ = [
        layer("InputLayer", "input_1", batch_input_shape=[None, 16, 16, 3], input_dtype="float32", sparse=False),
        layer("Convolution2D", "conv", "input_1", **conv),
        layer("BatchNormalization", "norm", "conv", **norm),
        layer("Merge", "sum", "norm", "input_1", mode="sum", concat_axis=-1, dot_axes=-1, output_shape=None),
        layer("Activation", "relu", "sum", activation="relu"),
        layer("AveragePooling2D", "pool", "relu", **pool),
        layer("Flatten", "flat", "pool"),
        layer("Dropout", "drop", "flat", p=0.5),
        layer("Dense", "head", "drop", **head),
    ]
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [["head", 0, 0]]}
    return {"class_name": "Model", "config": {"name": "model_1", "layers": layers_, **ends}}


def test_a_file_of_keras_1(tmp_path) -> None:
    import h5py

    from pipeline.keras_files.read import read_model_file

    random = np.random.default_rng(0)
    weights = {
        "conv": [("conv_W", (3, 3, 3, 3)), ("conv_b", (3,))],
        "norm": [("norm_gamma", (3,)), ("norm_beta", (3,)), ("norm_running_mean", (3,)), ("norm_running_std", (3,))],
        "head": [("head_W", (3, 2)), ("head_b", (2,))],
    }
    values = {name: random.uniform(0.2, 1, shape).astype(np.float32) for w in weights.values() for name, shape in w}  # type: ignore[attr-defined]
    config = keras1_config()
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [entry["name"].encode() for entry in config["config"]["layers"]]
        for entry in config["config"]["layers"]:
            inner = group.create_group(entry["name"])
            names = weights.get(entry["name"], [])
            inner.attrs["weight_names"] = [name.encode() for name, _ in names]  # type: ignore[attr-defined]
            for name, _ in names:  # type: ignore[attr-defined]
                inner[name] = values[name]
    assert read_model_file(tmp_path / "old.h5").written_by.startswith("Keras 1")
    model = to_canonical_form(load_model(tmp_path / "old.h5", compare=True), tmp_path / "old.h5").model
    x = pixels() / 255
    y = np.asarray(keras.ops.conv(x, values["conv_W"], padding="same")) + values["conv_b"]
    y = (y - values["norm_running_mean"]) / np.sqrt(values["norm_running_std"] + 1e-3)
    y = np.maximum(y * values["norm_gamma"] + values["norm_beta"] + x, 0).mean(axis=(1, 2))
    expected = np.asarray(keras.ops.softmax(y @ values["head_W"] + values["head_b"]))
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
