"""SavedModels without layers: what is made of their graph answers as they do, or they are refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from export.errors import ModelError
from pipeline.keras_files.graph_rewriting import cast_graph_to_float32, free_batch, has_half, interpret_end
from pipeline.keras_files.load import load_classifier, load_model

ALLOW = ("SavedModel",)
PIXELS = np.random.default_rng(3).uniform(0, 255, (5, 16, 16, 3)).astype(np.float32)
KERNEL = np.random.default_rng(0).normal(0, 0.05, (768, 5)).astype(np.float32)


def features(x: Any) -> Any:
    """Logits of five classes, written in plain TensorFlow."""
    return tf.matmul(tf.reshape(x / 255.0, [-1, 768]), KERNEL)


def saved(
    folder: Path, body: Callable[[Any], Any], shape: Any = (None, 16, 16, 3), name: str = "serving_default"
) -> Path:
    """A SavedModel of one function."""
    function = tf.function(body, input_signature=[tf.TensorSpec(shape, tf.float32, name="pictures")])
    tf.saved_model.save(tf.Module(), str(folder), signatures={name: function})
    return folder


def end(model: keras.Model) -> str | None:
    """The activation that a model of a graph ends with, by name; None where it was not told."""
    last = model.layers[-1]
    return last.activation.__name__ if isinstance(last, layers.Activation) else None


@pytest.mark.parametrize(
    "behind",
    [
        lambda p: p,
        lambda p: tf.reshape(p, [-1, 5]),
        lambda p: tf.squeeze(tf.expand_dims(p, 1), 1),
        lambda p: tf.identity(tf.reduce_mean(tf.reshape(p, [-1, 1, 1, 5]), [1, 2])),
        lambda p: tf.cast(tf.reshape(p, [-1, 5]), tf.float32),
    ],
    ids=["last", "reshape", "squeeze", "mean", "cast"],
)
@pytest.mark.parametrize("kind", ["softmax", "written out", "four axes"])
def test_a_softmax_is_found_behind_what_leaves_its_values(tmp_path: Path, kind: str, behind: Any) -> None:
    def body(x: Any) -> Any:
        z = features(x)
        if kind == "written out":
            e = tf.exp(z - tf.reduce_max(z, -1, keepdims=True))
            p = e / tf.reduce_sum(e, -1, keepdims=True)
        else:
            p = tf.nn.softmax(tf.reshape(z, [-1, 1, 1, 5])) if kind == "four axes" else tf.nn.softmax(z)
            p = tf.reshape(p, [-1, 5]) if kind == "four axes" else p
        return {"scores": behind(p)}

    model = load_model(saved(tmp_path / "sm", body), ALLOW)
    assert end(model) == "softmax"
    logits = keras.Model(model.inputs, model.layers[-1].input)
    np.testing.assert_allclose(np.ptp(np.asarray(logits(PIXELS)), axis=1), np.ptp(features(PIXELS), axis=1), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(model(PIXELS)), tf.nn.softmax(features(PIXELS)), atol=1e-6)


@pytest.mark.parametrize(
    ("behind", "name"),
    [
        (lambda z: z, "linear"),
        (lambda z: tf.reshape(z, [-1, 5]), "linear"),
        (lambda z: (tf.nn.softmax(z) + tf.nn.softmax(2 * z)) / 2, None),  # probabilities, of no softmax
        (lambda z: tf.nn.softmax(z) + 0.0, None),
        (lambda z: tf.reduce_mean(tf.nn.softmax(tf.stack([z, 2 * z], 1)), 1), None),  # of two positions, not one
        (lambda z: 1 - tf.nn.sigmoid(z), None),
    ],
    ids=["logits", "reshaped", "two softmaxes", "added to", "mean of two", "one minus"],
)
def test_what_is_no_plain_end_is_not_named(tmp_path: Path, behind: Any, name: str | None) -> None:
    model = load_model(saved(tmp_path / "sm", lambda x: {"scores": behind(features(x))}), ALLOW)
    assert end(model) == name
    np.testing.assert_allclose(np.asarray(model(PIXELS)), behind(features(PIXELS)), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_becomes_free(tmp_path: Path, batch: int) -> None:
    def body(x: Any) -> Any:
        z = tf.matmul(tf.reshape(x / 255.0, [batch, 768]), KERNEL)
        return {"scores": tf.reshape(tf.nn.softmax(tf.reshape(z, [batch, 1, -1])), [batch, 5])}

    model = load_model(saved(tmp_path / "sm", body, (batch, 16, 16, 3)), ALLOW)
    assert model.inputs[0].shape == (None, 16, 16, 3)
    for count in (1, 3, 5):
        expected = tf.nn.softmax(features(PIXELS[:count]))
        np.testing.assert_allclose(np.asarray(model(PIXELS[:count])), expected, atol=1e-6)


def test_a_fixed_batch_that_stays_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sm", lambda x: {"scores": tf.reshape(features(x), [5])[None]}, (1, 16, 16, 3))
    with pytest.raises(ModelError, match=r"for exactly 1, whose graph takes no other batch.*shape \(None, 16, 16, 3\)"):
        load_model(folder, ALLOW)


def test_answers_by_chance_or_by_the_batch_are_refused(tmp_path: Path) -> None:
    dropped = saved(tmp_path / "a", lambda x: {"scores": tf.nn.dropout(features(x), 0.5)})
    with pytest.raises(ModelError, match="predicts differently for the same images each time"):
        load_model(dropped, ALLOW)
    together = saved(tmp_path / "b", lambda x: {"scores": features(x - tf.reduce_mean(x, 0, keepdims=True))})
    with pytest.raises(ModelError, match="depends on the other images of the batch"):
        load_model(together, ALLOW)
    fixed = saved(
        tmp_path / "c", lambda x: {"scores": features(x - tf.reduce_mean(x, 0, keepdims=True))}, (2, 16, 16, 3)
    )
    with pytest.raises(ModelError, match="depends on the other images of the batch"):
        load_model(fixed, ALLOW)


def test_the_signature_for_training_is_not_taken(tmp_path: Path) -> None:
    kind = [tf.TensorSpec((None, 16, 16, 3), tf.float32, name="pictures")]
    functions = {
        "classify": tf.function(lambda x: {"scores": features(x)}, input_signature=kind),
        "train": tf.function(lambda x: {"loss": x}, input_signature=kind),
    }
    tf.saved_model.save(tf.Module(), str(tmp_path / "sm"), signatures=functions)
    assert load_model(tmp_path / "sm", ALLOW).outputs[0].shape == (None, 5)
    saved(tmp_path / "train", lambda x: {"scores": features(x)}, name="train_step")
    with pytest.raises(ModelError, match=r"signature serving_default\. Received: .* with train_step"):
        load_model(tmp_path / "train", ALLOW)
    saved(tmp_path / "two", lambda x: {"scores": features(x), "best": tf.argmax(features(x), -1)})
    with pytest.raises(ModelError, match=r"gives best: int64 \(None,\), scores.*gives the scores alone"):
        load_model(tmp_path / "two", ALLOW)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        half = tf.cast(x / 255.0, tf.float16)
        z = tf.matmul(tf.reshape(half, [-1, 768]), tf.constant(KERNEL, tf.float16)) + tf.constant(0.5, tf.float16)
        return {"scores": tf.cast(tf.nn.softmax(z), tf.float32)}

    model = load_model(saved(tmp_path / "sm", body), ALLOW)
    assert not has_half(model.layers[1]._definition)
    np.testing.assert_allclose(np.asarray(model(PIXELS)), tf.nn.softmax(features(PIXELS)), atol=2e-3)
    np.testing.assert_allclose(np.asarray(model(PIXELS)), body(PIXELS)["scores"], atol=1e-2)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-6), ("mixed_float16", 2e-3)])
def test_a_recurrent_model_is_taken_and_saved(tmp_path: Path, policy: str, tolerance: float) -> None:
    inputs = layers.Input((16, 16, 3), name="pictures")
    x = layers.Reshape((16, 48), name="rows")(layers.Rescaling(1 / 255, name="unit")(inputs))
    x = layers.LSTM(6, name="lstm", dtype=policy)(x)
    x = layers.Dense(4, activation="softmax", name="scores")(x)
    model = keras.Model(inputs, x)
    model.export(tmp_path / "sm", verbose=False)
    taken = load_model(tmp_path / "sm", ALLOW)
    taken.save(tmp_path / "m.keras")
    again = load_classifier(tmp_path / "m.keras", ALLOW)
    for count in (1, 5):
        np.testing.assert_allclose(np.asarray(again(PIXELS[:count])), model(PIXELS[:count]), atol=tolerance)


def frozen(body: Any, shape: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(body, input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
    return convert_variables_to_constants_v2(function.get_concrete_function())


def test_a_graph_is_not_changed_by_its_rewriting() -> None:
    found = frozen(lambda x: tf.reshape(tf.nn.softmax(tf.reshape(x, [2, 6])), [2, 3, 2]), (2, 3, 2))
    definition = found.graph.as_graph_def()
    before = definition.SerializeToString(deterministic=True)
    free_batch(definition, found.inputs[0].name, 2, lambda t: found.graph.get_tensor_by_name(t).shape.as_list())
    cast_graph_to_float32(definition)
    assert [end.activation for end in interpret_end(definition, found.outputs[0].name)] == ["softmax", None]
    assert definition.SerializeToString(deterministic=True) == before


def test_reshapes_of_constants_keep_their_sizes() -> None:
    table = tf.constant(np.arange(12, dtype=np.float32))
    # 2 is the batch, and the first size of a constant too.
    found = frozen(lambda x: tf.reshape(x, [2, 6]) @ tf.transpose(tf.reshape(tf.sin(table), [2, 6])), (2, 3, 2))
    definition = found.graph.as_graph_def()
    free = free_batch(definition, found.inputs[0].name, 2, lambda t: found.graph.get_tensor_by_name(t).shape.as_list())
    added = [node.name for node in free.node if node.name.endswith("/any_batch")]
    assert len(added) == 1


def test_a_signature_that_answers_otherwise_than_the_layers_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import tf_keras

    inputs = tf_keras.Input((16, 16, 3), name="pictures")
    x = tf_keras.layers.Flatten(name="flat")(tf_keras.layers.Conv2D(4, 3, strides=4, name="conv")(inputs))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="scores")(x))
    signature = tf.function(lambda x: model(255.0 - x)).get_concrete_function(tf.TensorSpec((None, 16, 16, 3)))
    for name, given in (("plain", None), ("inverted", signature)):
        model.save(str(tmp_path / name), save_format="tf", signatures=given)
        caplog.clear()
        load_model(tmp_path / name, ["SavedModel"])
        assert ("predicts differently from its layers" in caplog.text) is (given is not None)
