"""Models of Keras 2 that Keras 3 refuses or reads otherwise: they answer as in Keras 2, from layers of Keras 3."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as k
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from export.errors import ModelError
from pipeline.keras_files.facts import called_in_training
from pipeline.keras_files.keras2 import load_tf_keras, rebuild
from pipeline.keras_files.keras2_comparison import first_difference
from pipeline.keras_files.load import load_model
from pipeline.keras_files.read import read_model_file
from pipeline.models.canonical_form import to_canonical_form
from pipeline.models.import_model import half_precision_changes

L = k.layers
PIXELS = np.random.default_rng(3).uniform(0, 255, (3, 16, 16, 3)).astype(np.float32)
Middle = Callable[[Any], Any]


def network(middle: Middle) -> Any:
    """A convolution, what is looked at, and three unsaturated outputs; weights are not fresh."""
    inputs = k.Input((16, 16, 3), name="pictures")
    x = L.Conv2D(4, 3, strides=2, name="stem")(L.Rescaling(1 / 255, name="unit")(inputs))
    x = L.Flatten(name="flat")(middle(x))
    model = k.Model(inputs, L.Dense(3, name="scores")(x))
    random = np.random.default_rng(0)
    values = [random.normal(0, 0.6, w.shape) for w in model.get_weights()]
    model.set_weights([abs(v) if "variance" in w.name else v for v, w in zip(values, model.weights)])
    return model


def rows(x: Any) -> Any:
    return L.Reshape((7, 28), name="rows")(x)


def volumes(x: Any) -> Any:
    return L.Reshape((7, 7, 4, 1), name="volumes")(x)


LAYERS: dict[str, Middle] = {
    "names with slashes": lambda x: L.ReLU(name="block_relu")(L.ReLU(name="block/relu", max_value=0.5)(x)),
    "SimpleRNN with dropout": lambda x: L.SimpleRNN(3, dropout=0.2, recurrent_dropout=0.1, name="rnn")(rows(x)),
    "a constraint of its own": lambda x: L.Conv2D(
        3, 3, kernel_constraint=k.constraints.RadialConstraint(), name="round"
    )(x),
    "LeakyReLU": lambda x: L.LeakyReLU(alpha=0.05, name="leaky")(x),
    "ThresholdedReLU": lambda x: L.ThresholdedReLU(0.2, name="thresholded")(x),
    "hard_sigmoid": lambda x: L.Activation("hard_sigmoid", name="gate")(x),
    "hard_sigmoid of Conv2D": lambda x: L.Conv2D(3, 1, activation="hard_sigmoid", name="gate")(x),
    "hard_sigmoid of LSTM": lambda x: L.LSTM(3, recurrent_activation="hard_sigmoid", name="lstm")(rows(x)),
    "hard_sigmoid of GRU": lambda x: L.GRU(
        3, recurrent_activation="hard_sigmoid", activation="hard_sigmoid", reset_after=False, name="gru"
    )(rows(x)),
    "hard_sigmoid of SimpleRNN": lambda x: L.SimpleRNN(3, activation="hard_sigmoid", name="rnn")(rows(x)),
    "hard_sigmoid of ConvLSTM2D": lambda x: L.ConvLSTM2D(2, 2, name="convlstm")(volumes(x)),
    "Bidirectional": lambda x: L.Bidirectional(L.GRU(3, recurrent_activation="hard_sigmoid"), "sum", name="both")(
        rows(x)
    ),
    "TimeDistributed": lambda x: L.TimeDistributed(L.Conv2D(2, 1, activation="hard_sigmoid"), name="each")(volumes(x)),
    "TimeDistributed model": lambda x: L.TimeDistributed(
        k.Sequential([k.Input((7, 4)), L.Conv1D(2, 1, name="a/b"), L.Flatten()]), name="each"
    )(x),
    "LocallyConnected2D": lambda x: L.LocallyConnected2D(3, (2, 3), strides=(2, 1), activation="relu", name="local")(x),
    "LayerScale": lambda x: LayerScale(0.5, 4, name="scale")(x),
    "CustomScaleLayer": lambda x: CustomScaleLayer(0.3, name="scale")([x, L.ReLU(name="relu")(x)]),
    "RandomCrop": lambda x: L.RandomCrop(5, 4, name="crop")(x),
    "Normalization of all": lambda x: L.Normalization(axis=None, mean=0.1, variance=0.3, name="normal")(x),
}
FUNCTIONS: dict[str, Middle] = {
    "lists": lambda x: (x - [1.0, 2.0, 3.0, 4.0]) / [4.0, 5.0, 6.0, 7.0],
    "a list before": lambda x: [1.0, 2.0, 3.0, 4.0] - x,
    "gelu": lambda x: tf.nn.gelu(x),
    "gelu, approximate": lambda x: tf.nn.gelu(x, approximate=True),
    "hard_sigmoid": lambda x: k.activations.hard_sigmoid(x),
    "hard_sigmoid of the backend": lambda x: k.backend.hard_sigmoid(x),
    "relu of Keras": lambda x: k.activations.relu(x, alpha=0.1, max_value=2.0),
    "elu": lambda x: k.activations.elu(x, alpha=0.5),
    "swish": lambda x: tf.nn.silu(x, beta=1.5),
    "mish": lambda x: k.activations.mish(x),
    "a layer called add": lambda x: L.Add(name="add")([x + x, x]),
    "where": lambda x: tf.where(x > 0.1, x, 0.1 * x),
    "split": lambda x: tf.split(x, [1, 3], axis=-1)[1],
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]]),
    "std": lambda x: x - tf.math.reduce_std(x, axis=[1, 2], keepdims=True),
    "squared difference": lambda x: tf.math.squared_difference(x, 1.0),
    "l2": lambda x: tf.math.l2_normalize(x, axis=-1),
    "mean of the backend": lambda x: k.backend.mean(x, axis=[1, 2]),
    "tile": lambda x: tf.tile(tf.transpose(x, [0, 2, 1, 3]), [1, 2, 1, 1]),
}


@pytest.mark.parametrize("name", [*LAYERS, *(f"tf: {name}" for name in FUNCTIONS)])
def test_it_answers_as_keras_2_does(tmp_path: Path, name: str) -> None:
    model = network((LAYERS | {f"tf: {key}": value for key, value in FUNCTIONS.items()})[name])
    expected = model(PIXELS, training=False).numpy()
    model.save(str(tmp_path / "m.h5"))
    rebuilt = rebuild(load_tf_keras(tmp_path / "m.h5"))
    rebuilt.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(np.asarray(again(PIXELS)), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert all(type(layer).__module__.startswith("keras.src.layers") for layer in again.layers)


@pytest.mark.parametrize("sizes", [[2, 196], [2, -1]])
def test_a_reshape_with_a_fixed_batch_takes_any(tmp_path: Path, sizes: list[int]) -> None:
    inputs = k.Input((16, 16, 3), batch_size=2, name="pictures")
    x = tf.reshape(L.Conv2D(4, 3, strides=2, name="stem")(inputs), sizes)
    model = k.Model(inputs, L.Dense(3, activation="softmax", name="scores")(x))
    model.save(str(tmp_path / "m.h5"))
    taken = to_canonical_form(load_model(tmp_path / "m.h5", compare=True), tmp_path / "m.h5").model
    pixels = PIXELS / 255
    np.testing.assert_allclose(np.asarray(taken(pixels))[:2], model(pixels[:2]).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (
            lambda x: L.LSTM(3, activation="hard_sigmoid", name="rows_lstm")(rows(x)),
            "LSTM 'rows_lstm' with hard_sigmoid",
        ),
        (lambda x: L.RNN(L.LSTMCell(3), name="cells")(rows(x)), "RNN 'cells' around a cell"),
        (lambda x: L.LocallyConnected2D(2, 2, implementation=2, name="local")(x), "'local' of implementation 2"),
        (lambda x: tf.math.erfc(x), r"tf\.math\.erfc in layer 'tf\.math\.erfc'"),
    ],
)
def test_what_has_no_counterpart_is_named(middle: Middle, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        rebuild(network(middle))


def as_old_keras_wrote_it(path: Path) -> Path:
    """An archive of tf_keras with the module names and the version of Keras 2.13."""
    target = path.with_name("old.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as old:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".json"):
                data = data.replace(b"tf_keras", b"keras").replace(k.__version__.encode(), b"2.13.1")
            old.writestr(name, data)
    return target


@pytest.mark.parametrize("sure", [1.0, 1e4])
def test_an_archive_of_keras_2_is_compared(tmp_path: Path, sure: float, caplog: Any, monkeypatch: Any) -> None:
    """Keras 3 opens it without a word; where the softmax is saturated, answers on a few pictures are equal, too."""
    from pipeline.keras_files import load

    model = k.Sequential(
        [
            k.Input((16, 16, 3)),
            L.Conv2D(4, 3, activation="hard_sigmoid", name="gate"),
            L.GlobalAveragePooling2D(name="pool"),
            L.Dense(3, activation="softmax", name="scores"),
        ]
    )
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * sure, bias + np.float32([0, 0, sure])])
    model.save(str(tmp_path / "m.keras"))
    path = as_old_keras_wrote_it(tmp_path / "m.keras")
    x = PIXELS / 255
    expected = model(x).numpy()
    hidden = k.Model(model.inputs, model.layers[0].output)(x).numpy()
    opened = keras.saving.load_model(path)
    assert np.abs(keras.Model(opened.inputs, opened.layers[0].output)(x) - hidden).max() > 1e-3
    monkeypatch.setattr(load.log, "propagate", True)
    with caplog.at_level("WARNING"):
        taken = load_model(path, compare=True)
    assert "first in layer 'gate'" in caplog.text
    np.testing.assert_allclose(np.asarray(taken(x)), expected, atol=1e-6)
    gate = keras.Model(taken.inputs, taken.get_layer("gate").output)
    np.testing.assert_allclose(np.asarray(gate(x)), hidden, atol=1e-6)


@pytest.mark.parametrize("activation", ["leaky_relu", "relu6", "silu", "gelu", "selu", "exponential", "softsign"])
def test_activations_keep_their_meaning(tmp_path: Path, activation: str) -> None:
    model = network(lambda x: L.Activation(activation, name="looked_at")(x))
    model.save(str(tmp_path / "m.keras"))
    np.testing.assert_allclose(
        np.asarray(load_model(tmp_path / "m.keras", compare=True)(PIXELS)), model(PIXELS).numpy(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["m.h5", "m.keras", "saved"])
def test_half_precision_is_rebuilt_in_single(tmp_path: Path, policy: str, name: str) -> None:
    k.mixed_precision.set_global_policy(policy)
    try:
        inner = k.Sequential([k.Input((7, 7, 4)), L.Conv2D(4, 3, name="a/b"), L.BatchNormalization(name="norm")])
        model = network(lambda x: tf.cast(tf.cast(inner(x), policy.removeprefix("mixed_")), "float32") * 2.0)
    finally:
        k.mixed_precision.set_global_policy("float32")
    half = np.asarray(model(PIXELS), np.float32)
    model.save(str(tmp_path / name), **({} if "." in name else {"save_format": "tf"}))
    assert "in half precision" in half_precision_changes(read_model_file(tmp_path / name))[0]
    taken = load_model(tmp_path / name, ("SavedModel",), compare=True)
    answers = np.asarray(taken(PIXELS))
    off = np.abs(answers - half).max() / np.abs(half).max()
    assert 1e-6 < off < (2e-3 if policy == "mixed_float16" else 2e-2), "rounded to half precision no more"
    assert {layer.compute_dtype for layer in taken.layers} == {"float32"}


def test_the_first_layer_that_differs_is_named() -> None:
    inner = k.Sequential([k.Input((7, 7, 4)), L.ReLU(name="first"), L.Conv2D(2, 3, name="deep/conv")], name="inner")
    original = network(lambda x: L.Activation("sigmoid", name="saturated")(1000.0 * inner(x) + 1e6))
    rebuilt = rebuild(original)
    assert first_difference(original, rebuilt) is None
    layer = rebuilt.get_layer("inner").get_layer("deep_conv")
    layer.kernel.assign(layer.kernel * 1.01)
    found = first_difference(original, rebuilt)
    assert found is not None
    assert found.layer == "inner/deep/conv"
    assert 1e-3 < found.size < 1e-1
    assert "first in layer 'inner/deep/conv'" in str(found)


def test_nothing_but_rounding_is_no_difference() -> None:
    """A network that enlarges its own rounding is held against that."""
    original = network(lambda x: tf.math.sin(1e4 * x))
    rebuilt = rebuild(original)
    stem = rebuilt.get_layer("stem")
    stem.kernel.assign(np.nextafter(np.asarray(stem.kernel), np.float32(np.inf)))
    assert first_difference(original, rebuilt) is None
    stem.kernel.assign(stem.kernel * 1.001)
    assert first_difference(original, rebuilt) is not None


def test_a_frozen_normalization_minds_no_training_mode(tmp_path: Path) -> None:
    def called(frozen: bool, rate: float) -> Any:
        norm = L.BatchNormalization(name="norm", trainable=not frozen)
        model = network(lambda x: L.Dropout(rate, name="drop")(norm(x, training=True), training=True))
        model.save(str(tmp_path / "m.h5"))
        return called_in_training(read_model_file(tmp_path / "m.h5"))

    assert called(frozen=True, rate=0.0) == ()
    assert called(frozen=False, rate=0.5) == ("norm", "drop")
