"""Layers that computed shapes, groups, steps or scalars and were refused, each in a small classifier."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers, ops

from export.errors import ProjectError
from export.fp16.convert import to_half
from export.from_keras.convert import export_keras
from export.from_keras.tf2onnx_adapter import unroll_recurrent_layers
from export.metrics.distances import relative_error, sqnr_db
from export.onnx_passes import graph
from export.preprocessing import PreprocessingSpec
from tests.export.conftest import run_onnx
from tests.export.keras_models import CLASSES, images, randomize

UNIT = PreprocessingSpec.from_mode("unit")


def classifier(middle, size=8, channels=6):
    """A convolution, what is tried, and a Dense."""
    x = inputs = layers.Input((size, size, 3), name="pixels")
    x = middle(layers.Conv2D(channels, 3, padding="same", use_bias=False, name="stem")(x))
    x = layers.Flatten(name="flat")(x) if len(x.shape) > 2 else x
    model = keras.Model(inputs, layers.Dense(5, name="head")(x), name="small")
    randomize(model)
    return model


def exported(model, path, **options):
    export_keras(model, path / "m.onnx", preprocessing=UNIT, classes=CLASSES, **options)
    return onnx.load(path / "m.onnx")


def right(model, result, size=8):
    """Keras' logits, at several batches."""
    pixels = images(33, size)
    expected = model.predict(UNIT.apply(pixels), verbose=0)
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()  # the images are told apart
    for batch in (1, 2, 7, 33):
        parts = [run_onnx(result, pixels[i : i + batch])[0] for i in range(0, 33 if batch > 2 else batch, batch)]
        received = np.concatenate(parts)
        assert relative_error(expected[: len(received)], received) < 1e-5
    return graph.op_counts(result)


def tokens(x, width=6):
    return layers.Reshape((-1, width), name="tokens")(x)


def attention(x):
    t = tokens(x)
    mixed = layers.MultiHeadAttention(2, 4, name="mha")(t, t)
    return layers.Dot(axes=-1, normalize=True, name="dot")([layers.AdditiveAttention(name="additive")([t, mixed]), t])


def normalised(x):
    x = layers.GroupNormalization(3, name="group")(layers.Dense(6, activation="relu", name="dense")(x))
    x = layers.LayerNormalization(axis=[1, 2, 3], name="layer")(x)
    return layers.BatchNormalization(axis=1, name="rows")(layers.RMSNormalization(name="rms")(x))


def moved(x):
    x = ops.roll(layers.Conv2DTranspose(4, 4, strides=3, output_padding=2, name="transposed")(x), 3, axis=1)
    return layers.AdaptiveAveragePooling2D((5, 3), name="adaptive")(x)


@pytest.mark.parametrize("middle", [attention, normalised, moved])
def test_shapes_that_are_constant_but_for_the_batch(tmp_path, middle):
    model = classifier(middle)
    counts = right(model, exported(model, tmp_path))
    assert "Shape" not in counts


def recurrent(x):
    rows = layers.Reshape((4, 96), name="sequence")(x)
    x = layers.GRU(6, return_sequences=True, name="gru")(layers.LSTM(6, return_sequences=True, name="lstm")(rows))
    return layers.Bidirectional(layers.SimpleRNN(6, name="simple"), name="both")(x)


def recurrent_maps(x):
    frames = layers.Reshape((4, 4, 4, 6), name="frames")(x)
    x = layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True, name="convlstm")(frames)
    return layers.TimeDistributed(layers.Conv2D(2, 3, name="inner"), name="timed")(x)


@pytest.mark.parametrize("middle", [recurrent, recurrent_maps])
def test_recurrent_layers_are_unrolled(tmp_path, middle):
    model = classifier(middle)
    config = model.get_config()
    result = exported(model, tmp_path)
    assert not {"Loop", "Scan", "LSTM", "GRU", "RNN"} & set(right(model, result))
    assert model.get_config() == config  # the model passed in does not stay unrolled
    pixels = images(3, 8)
    assert sqnr_db(run_onnx(result, pixels)[0], run_onnx(to_half(result), pixels)[0]) > 50


def test_a_layer_of_more_steps_stays_a_loop():
    few, many = layers.GRU(2, return_sequences=True, name="few"), layers.GRU(2, name="many")
    x = inputs = layers.Input((40, 3), name="steps")
    model = keras.Model(inputs, many(layers.ZeroPadding1D(10, name="pad")(few(x))))
    with unroll_recurrent_layers(model, most_steps=50):
        assert [layer.unroll for layer in model.layers if isinstance(layer, layers.RNN)] == [True, False]
    assert [layer.unroll for layer in model.layers if isinstance(layer, layers.RNN)] == [False, False]


def test_too_many_steps_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "export.from_keras.tf2onnx_adapter.unroll_recurrent_layers",
        lambda model: unroll_recurrent_layers(model, most_steps=4),
    )
    model = classifier(lambda x: layers.GRU(4, name="long")(layers.Reshape((8, 48), name="sequence")(x)))
    with pytest.raises(ProjectError, match=r"fixed number of steps.*long/Loop"):
        exported(model, tmp_path)


def test_grouped_convolutions(tmp_path):
    def middle(x):
        x = layers.Conv2D(8, 3, groups=2, padding="same", dilation_rate=2, name="two")(x)
        x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
        x = layers.Conv1D(8, 3, groups=4, name="line")(layers.Reshape((-1, 8), name="row")(x))
        return layers.Conv3D(6, 2, groups=2, name="cube")(layers.Reshape((4, 3, 10, 4), name="block")(x[:, :60]))

    model = classifier(middle)
    result = exported(model, tmp_path)
    right(model, result)
    groups = [graph.attribute(node, "group") for node in result.graph.node if node.op_type == "Conv"]
    assert sorted(groups) == [1, 2, 2, 4]


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: layers.Activation("hard_sigmoid", name="hard")(x + 3.0),
        lambda x: layers.Activation("celu", name="celu")(x) + ops.log1p(ops.abs(x)),
        lambda x: layers.Conv2D(4, 1, name="point")(x) + np.arange(4, dtype=np.float32),
    ],
    ids=["sum", "celu and log1p", "second bias"],
)
def test_a_scalar_behind_a_convolution(tmp_path, middle):
    model = classifier(middle)
    right(model, exported(model, tmp_path))


def test_a_constant_for_each_row_is_no_bias(tmp_path):
    """There are as many rows as filters, and the exporter would have made it a bias, without a word."""

    class Rows(layers.Layer):
        def build(self, shape):
            self.rows = self.add_weight(shape=(shape[1], 1, 1), name="rows", initializer="random_normal")

        def call(self, x):
            return x + self.rows

    model = classifier(lambda x: Rows(name="rows")(x), channels=8)
    right(model, exported(model, tmp_path))


def test_a_weight_that_two_convolutions_share_is_scaled_for_one(tmp_path):
    shared = layers.Conv2D(4, 3, use_bias=False, name="shared")
    model = classifier(lambda x: layers.Concatenate(name="join")([shared(x) * 3.0, shared(x[:, ::-1])]))
    right(model, exported(model, tmp_path))


def test_an_operation_in_no_layer_is_not_blamed_on_the_layer_before_it(tmp_path):
    with pytest.raises(ProjectError, match=r"Erfinv in layer 'erfinv\w*' \(replace"):
        exported(classifier(ops.erfinv), tmp_path)


def convnext():
    from keras.src.applications.convnext import ConvNeXt  # the small ones of keras.applications have 28 million weights

    options = {"include_preprocessing": True, "classes": 5, "classifier_activation": None, "weights": None}
    return ConvNeXt(
        depths=[1, 1, 1, 1], projection_dims=[6, 8, 12, 16], input_shape=(32, 32, 3), name="tiny", **options
    )


def vision_transformer():
    class Token(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, shape[2]), name="token", initializer="random_normal")
            self.place = self.add_weight(shape=(1, shape[1] + 1, shape[2]), name="place", initializer="random_normal")

        def call(self, x):
            token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, self.token.shape[2]))
            return ops.concatenate([token, x], axis=1) + self.place

    x = inputs = layers.Input((32, 32, 3), name="pixels")
    x = layers.Conv2D(12, 8, strides=8, name="patches")(x)
    x = Token(name="token")(layers.Reshape((-1, 12), name="tokens")(x))
    for i in range(2):
        y = layers.LayerNormalization(name=f"norm{i}")(x)
        x = x + layers.MultiHeadAttention(3, 4, name=f"mha{i}")(y, y)
        y = layers.Dense(24, activation="gelu", name=f"wide{i}")(layers.LayerNormalization(name=f"second{i}")(x))
        x = x + layers.Dense(12, name=f"narrow{i}")(y)
    return keras.Model(
        inputs, layers.Dense(5, name="head")(layers.LayerNormalization(name="last")(x)[:, 0]), name="vit"
    )


@pytest.mark.parametrize("build", [pytest.param(convnext, marks=pytest.mark.slow), vision_transformer])
def test_networks_that_are_no_resnet_in_float_and_half(tmp_path, build):
    model = build()
    randomize(model)
    result = exported(model, tmp_path)
    right(model, result, 32)
    pixels = images(3, 32)
    assert sqnr_db(run_onnx(result, pixels)[0], run_onnx(to_half(result), pixels)[0]) > 45
