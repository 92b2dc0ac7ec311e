import keras
import numpy as np
import pytest
from keras import layers

from export.errors import ProjectError
from export.from_keras.logits import logits_model
from tests.export import keras_models


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


X = np.random.default_rng(0).normal(0, 1, (3, 8, 8, 3)).astype(np.float32)


def body():
    return [layers.Conv2D(4, 3, name="conv"), layers.GlobalAveragePooling2D(name="pool")]


def sequential(*end):
    model = keras.Sequential([layers.Input((8, 8, 3)), *body(), *end])
    keras_models.randomize(model)
    return model


def functional(*end):
    x = inputs = layers.Input((8, 8, 3))
    for layer in (*body(), *end):
        x = layer(x)
    model = keras.Model(inputs, x)
    keras_models.randomize(model)
    return model


def tf_softmax():
    import tensorflow as tf

    return layers.Dense(5, activation=tf.nn.softmax)


ENDS = {
    "dense": lambda: [layers.Dense(5, activation="softmax")],
    "dense without bias": lambda: [layers.Dense(5, activation="softmax", use_bias=False)],
    "dense with tf.nn.softmax": lambda: [tf_softmax()],
    "activation": lambda: [layers.Dense(5), layers.Activation("softmax")],
    "softmax layer": lambda: [layers.Dense(5), layers.Softmax()],
    "a nested head": lambda: [
        keras.Sequential([layers.Input((4,)), layers.Dense(5, activation="softmax")], name="head")
    ],
}


@pytest.mark.parametrize("build", [functional, sequential])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_softmax_is_taken_off(build, end):
    model = build(*end())
    before, weights = model.predict(X, verbose=0), [w.numpy() for w in model.weights]
    logits = logits_model(model)
    values = logits.predict(X, verbose=0)
    assert np.abs(values.sum(axis=1) - 1).min() > 1e-3  # these are no probabilities any more
    np.testing.assert_allclose(softmax(values), before, atol=1e-6)
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    for a, b in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_layers_are_shared():
    model = functional(layers.Dense(5, activation="softmax", name="head"))
    logits = logits_model(model)
    assert logits.get_layer("conv") is model.get_layer("conv")
    assert logits.get_layer("head").activation is keras.activations.linear
    assert model.get_layer("head").activation is keras.activations.softmax


@pytest.mark.parametrize("end", [[layers.Dense(5)], [layers.Dense(5), layers.Activation("linear")]])
def test_logits_stay_as_they_are(end):
    model = functional(*end)
    assert logits_model(model) is model


def test_a_linear_sequential_becomes_functional():
    model = sequential(layers.Dense(5))
    result = logits_model(model)
    assert not isinstance(result, keras.Sequential)
    np.testing.assert_array_equal(result.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ([layers.Dense(5, activation="sigmoid")], "sigmoid"),
        ([layers.Dense(5), layers.Activation("tanh")], "tanh"),
        ([layers.Dense(5), layers.ReLU()], "ReLU"),
        ([layers.Dense(5), layers.UnitNormalization()], "UnitNormalization.*set output to logits"),
        ([layers.Dense(5, activation="swish")], "silu.*set output to logits"),
        ([layers.Dense(5), layers.Reshape((5,)), layers.Activation("sigmoid")], "sigmoid"),
    ],
)
def test_other_ends_are_named(end, found):
    with pytest.raises(ProjectError, match=f"(?s)Received.*{found}"):
        logits_model(functional(*end))


def test_the_caller_can_decide():
    model = functional(layers.Dense(5), layers.UnitNormalization())
    assert logits_model(model, output="logits") is model
    with pytest.raises(ProjectError, match="taken off"):
        logits_model(model, output="softmax")
    with pytest.raises(ProjectError, match="taken off"):
        logits_model(functional(layers.Dense(5)), output="softmax")
    with pytest.raises(ProjectError, match="auto, logits or softmax"):
        logits_model(model, output="probabilities")


def test_a_softmax_over_something_else_is_refused():
    with pytest.raises(ProjectError, match="axis 0"):
        logits_model(functional(layers.Dense(5), layers.Softmax(axis=0)))


def test_models_of_another_shape_are_refused():
    inputs = layers.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(inputs)
    two = keras.Model(inputs, [layers.Dense(5)(x), layers.Dense(4)(x)])
    with pytest.raises(ProjectError, match="one output"):
        logits_model(two)
    with pytest.raises(ProjectError, match="batch, classes"):
        logits_model(keras.Model(inputs, layers.Conv2D(2, 1)(inputs)))
    with pytest.raises(ProjectError, match="built"):
        logits_model(keras.Sequential([layers.Dense(5)]))


def test_a_softmax_operation_is_taken_off():
    x = inputs = layers.Input((8, 8, 3))
    for layer in (*body(), layers.Dense(5)):
        x = layer(x)
    linear, model = keras.Model(inputs, x), keras.Model(inputs, keras.ops.softmax(x))
    np.testing.assert_array_equal(logits_model(model).predict(X, verbose=0), linear.predict(X, verbose=0))
