"""What a classifier ends with: its probabilities survive wherever the softmax or sigmoid stands, or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import layers, ops

from export.errors import ModelError
from export.from_keras.convert import export_keras
from export.from_keras.logits import logits_model
from export.from_keras.probes import probe_pixels
from export.preprocessing import PreprocessingSpec
from pipeline.keras_files.load import load_model
from pipeline.models import output_form
from pipeline.models.canonical_form import to_canonical_form
from tests.pipeline.small_models import SIZE, classifier, dense, softmax

WHERE = Path("brought.keras")
PIXELS = probe_pixels(*SIZE, count=10, seed=5)


def shown(model, **options):
    """The probabilities that the chain makes of a model, and what the model itself says."""
    adopted = to_canonical_form(model, WHERE, **options)
    values = PIXELS.astype(np.float32)
    logits = logits_model(adopted.model, adopted.output).predict(values, verbose=0)
    return softmax(logits), model.predict(values, verbose=0)


def of_map(end):
    """An end on a map of 3x7 places."""
    return lambda x: end(layers.Reshape((3, 4, 9), name="map")(x[:, :108]))


def nested(x):
    inputs = keras.Input((x.shape[1],), name="nested_input")
    y = layers.Reshape((1, 1, 5), name="nested_map")(dense(5, "softmax")(inputs))
    head = keras.Model(inputs, layers.Flatten(name="nested_flat")(y), name="nested_head")
    return layers.Dropout(0.2, name="behind")(head(x))


def mean_of_softmaxes(x):
    x = layers.Reshape((-1, 9), name="places")(x)
    return layers.GlobalAveragePooling1D(name="mean")(dense(5, "softmax")(x))


def ensemble(x):
    return layers.Average(name="ensemble")([dense(5, "softmax", name="one")(x), dense(5, "softmax", name="two")(x)])


PROBABILITIES = {
    "softmax, Reshape": lambda x: layers.Reshape((5,), name="flat")(
        layers.Activation("softmax", name="act")(layers.Reshape((1, 1, 5), name="map")(dense(5)(x)))
    ),
    "softmax, Flatten, Dropout": lambda x: layers.Dropout(0.3, name="drop")(
        layers.Flatten(name="flat")(layers.Reshape((1, 5), name="row")(dense(5, "softmax")(x)))
    ),
    "in a nested model, with Reshape and Dropout": nested,
    "EinsumDense": lambda x: layers.EinsumDense("ab,bc->ac", 5, activation="softmax", bias_axes="c", name="e")(x),
    "a mean of softmaxes": mean_of_softmaxes,
    "an ensemble": ensemble,
    "softmax of softmax": lambda x: layers.Softmax(name="again")(dense(5, "softmax")(x)),
}


@pytest.mark.parametrize("end", PROBABILITIES.values(), ids=PROBABILITIES.keys())
@pytest.mark.parametrize("output", ["auto", "softmax"])
def test_probabilities_stay_what_they_are(end, output) -> None:
    received, said = shown(classifier(end), output=output)
    assert np.ptp(said, axis=0).max() > 0.05, "the pictures must be told apart"
    np.testing.assert_allclose(received, said, atol=2e-6)


@pytest.mark.parametrize("end", PROBABILITIES.values(), ids=PROBABILITIES.keys())
def test_probabilities_are_not_taken_for_logits_on_demand(end) -> None:
    with pytest.raises(ModelError, match=r"model\.output: expected softmax or auto.*probabilities.*second softmax"):
        to_canonical_form(classifier(end), WHERE, "logits")


ONE_UNIT = {
    "sigmoid": lambda x: dense(1, "sigmoid")(x),
    "sigmoid, Reshape": lambda x: layers.Reshape((1,), name="flat")(dense(1, "sigmoid")(x)),
    "sigmoid, Dropout": lambda x: layers.Dropout(0.2, name="drop")(dense(1, "sigmoid")(x)),
    "1 - sigmoid": lambda x: 1.0 - dense(1, "sigmoid")(x),
    "hard_sigmoid": lambda x: dense(1, "hard_sigmoid")(x),
    "a mean of sigmoids": lambda x: layers.Average(name="mean")(
        [dense(1, "sigmoid", name="one")(x), dense(1, "sigmoid", name="two")(x)]
    ),
}


@pytest.mark.parametrize("end", ONE_UNIT.values(), ids=ONE_UNIT.keys())
@pytest.mark.parametrize("output", ["auto", "logits"])
def test_one_unit_between_0_and_1_is_the_second_of_two_classes(end, output) -> None:
    received, said = shown(classifier(end), output=output)
    np.testing.assert_allclose(received, np.concatenate([1 - said, said], axis=1), atol=2e-6)


LOGARITHMS = {
    "log_softmax": lambda x: dense(5, "log_softmax")(x),
    "the operation": lambda x: ops.log_softmax(dense(5)(x)),
    "log of softmax": lambda x: ops.log(dense(5, "softmax", 0.1)(x)),
}


@pytest.mark.parametrize("end", LOGARITHMS.values(), ids=LOGARITHMS.keys())
def test_logarithms_of_probabilities_are_logits(end) -> None:
    received, said = shown(classifier(end))
    np.testing.assert_allclose(received, np.exp(said), atol=2e-6)


REFUSED = {
    "clipped": (lambda x: ops.clip(dense(5, "softmax")(x), 0.01, 0.9), "Clip.*softmax, which are probabilities"),
    "percent": (lambda x: layers.Rescaling(100.0, name="percent")(dense(5, "softmax")(x)), "Rescaling 'percent'"),
    "a class alone": (
        lambda x: layers.CategoryEncoding(5, "one_hot", name="one")(ops.argmax(dense(5)(x), axis=-1)),
        "only 0 and 1",
    ),
    "an LSTM's inner softmax": (
        lambda x: layers.LSTM(5, activation="softmax", name="rows")(layers.Reshape((-1, 9), name="places")(x)),
        r"LSTM 'rows' \(say which",
    ),
    "a softmax for each place": (
        lambda x: layers.Flatten(name="flat")(dense(5, "softmax")(layers.Reshape((-1, 9), name="places")(x))),
        r"with axis -1 of \(None, 12, 5\)",
    ),
    "one unit of softmax": (lambda x: dense(1, "softmax")(x), "one unit and 'softmax'"),
    "tanh": (lambda x: dense(1, "tanh")(x), "one unit and 'tanh'"),
}


@pytest.mark.parametrize(("says", "always"), [(1.0, True), (0.99999994, True), (1.0000001, True), (0.9999, False)])
def test_a_softmax_over_one_unit_is_told_by_its_answers_on_every_processor(says: float, always: bool) -> None:
    assert output_form._always_one(np.full((8, 1), says, np.float32)) == always


@pytest.mark.parametrize(("end", "found"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_be_neither_is_named(end, found) -> None:
    with pytest.raises(ModelError, match=f"(?s){found}"):
        to_canonical_form(classifier(end), WHERE)


def gated(x):
    """One sigmoid object: the gate of an excitation and the end."""
    gate = layers.Activation("sigmoid", name="gate")
    x = layers.Multiply(name="gated")([x, gate(dense(x.shape[1], name="excite")(x))])
    return gate(dense(1, stddev=0.3)(x))


def test_the_end_is_a_call_and_not_a_layer() -> None:
    received, said = shown(classifier(gated))
    assert np.ptp(said) > 0.1
    np.testing.assert_allclose(received[:, 1:], said, atol=2e-6)


def test_einsum_dense_keeps_its_weights_when_its_sigmoid_goes() -> None:
    model = classifier(lambda x: layers.EinsumDense("ab,bc->ac", 3, activation="sigmoid", name="end")(x))
    adopted = to_canonical_form(model, WHERE, "sigmoid")
    values = PIXELS.astype(np.float32)
    logits = adopted.model.predict(values, verbose=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), model.predict(values, verbose=0), atol=2e-6)
    with pytest.raises(ModelError, match=r"model\.output: expected to be told what 3 sigmoids mean"):
        to_canonical_form(model, WHERE)


def test_logits_behind_a_gate_are_asked_for_and_then_taken() -> None:
    def end(x):
        return layers.Multiply(name="gated")([dense(5)(x), dense(5, "sigmoid", name="gate")(x)])

    with pytest.raises(ModelError, match=r"Multiply 'gated'.*set output to logits"):
        to_canonical_form(classifier(end), WHERE)
    received, said = shown(classifier(end), output="logits")
    np.testing.assert_allclose(received, softmax(said), atol=2e-6)


@pytest.mark.parametrize("end", [mean_of_softmaxes, ONE_UNIT["1 - sigmoid"]], ids=["mean of softmaxes", "1 - sigmoid"])
def test_logarithms_export(end, tmp_path) -> None:
    import onnxruntime

    model = classifier(end)
    adopted = to_canonical_form(model, WHERE)
    classes = [f"c{i}" for i in range(adopted.model.outputs[0].shape[1])]
    spec = PreprocessingSpec.from_mode("none")
    export_keras(adopted.model, tmp_path / "m.onnx", preprocessing=spec, classes=classes, output=adopted.output)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    said = model.predict(PIXELS.astype(np.float32), verbose=0)
    expected = said if said.shape[1] > 1 else np.concatenate([1 - said, said], axis=1)
    np.testing.assert_allclose(session.run(["probabilities"], {"images": PIXELS})[0], expected, atol=1e-5)


def test_what_looks_like_shares_is_no_logit_on_demand() -> None:
    def percent(x):
        return dense(5, "softmax")(x) * 100.0

    with pytest.raises(ModelError, match=r"no logits: of one sum, by Multiply.*second softmax"):
        to_canonical_form(classifier(percent), WHERE, "logits")


def test_one_unit_of_a_graph_between_0_and_1_is_asked_about(tmp_path) -> None:
    model = classifier(lambda x: 1.0 - dense(1, "sigmoid")(x))
    model.export(tmp_path / "served", verbose=False)
    graph = load_model(tmp_path / "served", ["SavedModel"])
    for output in ("auto", "logits"):
        with pytest.raises(ModelError, match=r"what one unit means.*between 0 and 1.*model\.output=sigmoid"):
            to_canonical_form(graph, WHERE, output)
    adopted = to_canonical_form(graph, WHERE, "sigmoid")
    values = PIXELS.astype(np.float32)
    received = softmax(logits_model(adopted.model, adopted.output).predict(values, verbose=0))
    np.testing.assert_allclose(received[:, 1:], model.predict(values, verbose=0), atol=2e-6)
