"""Every layer of a Keras model is run once, under its name, and named with what it reads."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from export.preprocessing import PreprocessingSpec
from pipeline.verification.layers.keras_layers import KerasLayers

UNIT = PreprocessingSpec.from_mode("unit")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)


def nested() -> keras.Model:
    """A body with a block inside it, a layer that is called twice, one that is random in training, two outputs."""
    block_in = keras.Input((12, 12, 4), name="block_input")
    block_out = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="conv")(block_in))
    block = keras.Model(block_in, block_out, name="block")
    x = inputs = keras.Input((12, 12, 3), name="picture")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(layers.RandomFlip(name="flip")(x))
    y = block(x)
    shared = layers.ReLU(name="again")
    x = layers.Add(name="add")([shared(y), shared(x)])
    x = keras.Sequential([layers.AveragePooling2D(2, name="pool"), layers.Dropout(0.5, name="drop")], name="end")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(layers.Flatten(name="flat")(x)), name="whole")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return nested()


def test_layers_of_nested_models_and_second_calls_have_names(model: keras.Model) -> None:
    found = KerasLayers(model, UNIT).layers
    assert {name: layer.inputs for name, layer in found.items()} == {
        "input": (),
        "flip": ("input",),
        "conv": ("input",),  # at inference the flip passes its input on
        "block/conv": ("conv",),
        "bn": ("block/conv",),
        "again": ("bn",),
        "again (call 2)": ("conv",),
        "add": ("again", "again (call 2)"),
        "pool": ("add",),
        "drop": ("pool",),
        "flat": ("pool",),
        "head": ("flat",),
    }
    assert found["bn"].kind == "BatchNormalization"
    assert found["pool"].shape == (6, 6, 4)


def test_outputs_are_those_of_the_model_at_inference(model: keras.Model) -> None:
    keras_layers = KerasLayers(model, UNIT)
    outputs = keras_layers.outputs(PIXELS)
    prepared = UNIT.apply(PIXELS)
    np.testing.assert_array_equal(outputs["input"], prepared)
    np.testing.assert_allclose(outputs["head"], model(prepared, training=False), rtol=1e-5, atol=1e-6)
    block = model.get_layer("block")
    np.testing.assert_allclose(outputs["bn"], block(outputs["conv"], training=False), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["again (call 2)"], np.maximum(outputs["conv"], 0))
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}
    assert keras_layers.bytes_per_image == sum(value[0].nbytes for value in outputs.values())


def test_a_layer_of_the_name_of_the_pixels_is_told_from_them() -> None:
    x = keras.Input((4, 4, 3))
    found = KerasLayers(keras.Model(x, layers.Flatten(name="input")(x)), UNIT).layers
    assert [*found] == ["input", "input (layer)"]


def test_every_output_of_a_layer_is_one_of_the_layers() -> None:
    x = inputs = keras.Input((4, 4, 3))
    sequence = layers.Reshape((16, 3), name="rows")(x)
    whole, state = layers.GRU(2, return_sequences=True, return_state=True, name="gru")(sequence)
    end = layers.Concatenate(name="both")([layers.Flatten(name="flat")(whole), state])
    found = KerasLayers(keras.Model(inputs, end), UNIT).layers
    assert found["gru (output 2)"].shape == (2,)
    assert found["both"].inputs == ("flat", "gru (output 2)")
