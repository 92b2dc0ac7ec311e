"""Taking a model over: whatever is done to its outside and its layers, it gives the answers it gave before."""

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
from export.from_keras.logits import logits_model, rebuild_layer
from export.from_keras.probes import probe_pixels
from export.preprocessing import PreprocessingSpec
from pipeline.models import canonical_form
from pipeline.models.canonical_form import to_canonical_form
from tests.pipeline.small_models import SIZE, classifier, dense, pillow_grey, softmax

WHERE = Path("brought.keras")
PIXELS = probe_pixels(*SIZE, count=10, seed=5)
NONE = PreprocessingSpec.from_mode("none")


def ends_in_softmax(x):
    return dense(5, "softmax")(x)


def probabilities(adopted) -> np.ndarray:
    """What the chain makes of the model's logits."""
    values = adopted.preprocessing.apply(PIXELS)
    return softmax(logits_model(adopted.model, adopted.output).predict(values, verbose=0))


FORMS = {
    "greyscale": ({"shape": (*SIZE, 1)}, lambda grey: grey),
    "a plane": ({"shape": SIZE, "into": lambda x: layers.Reshape((*SIZE, 1), name="c")(x)}, lambda grey: grey[..., 0]),
    "greyscale, channels first": (
        {"shape": (1, *SIZE), "into": lambda x: layers.Permute((2, 3, 1), name="last")(x)},
        lambda grey: grey.transpose(0, 3, 1, 2),
    ),
    "greyscale bytes": ({"shape": (*SIZE, 1), "dtype": "uint8"}, lambda grey: grey),
}


@pytest.mark.parametrize(("options", "form"), FORMS.values(), ids=FORMS.keys())
def test_a_greyscale_model_sees_the_grey_levels_that_pillow_makes(options, form, tmp_path) -> None:
    import onnxruntime

    model = classifier(ends_in_softmax, **options)
    adopted = to_canonical_form(model, WHERE)
    grey = form(pillow_grey(PIXELS))
    said = model.predict(grey if "dtype" in options else grey.astype(np.float32), verbose=0)
    assert np.ptp(said, axis=0).max() > 0.05
    assert adopted.preprocessing.grey
    np.testing.assert_allclose(probabilities(adopted), said, atol=2e-6)
    classes = list("abcde")
    file = tmp_path / "m.onnx"
    export_keras(adopted.model, file, preprocessing=adopted.preprocessing, classes=classes, output=adopted.output)
    received = onnxruntime.InferenceSession(file).run(["probabilities"], {"images": PIXELS})[0]
    np.testing.assert_allclose(received, said, atol=1e-5)


@pytest.mark.parametrize("mode", ["unit", "tf", "none"])
def test_greyscale_goes_with_one_mean_and_one_scale(mode) -> None:
    spec = PreprocessingSpec.from_mode(mode)
    model = classifier(ends_in_softmax, first=(), shape=(*SIZE, 1))
    adopted = to_canonical_form(model, WHERE, preprocessing=spec)
    expected = (pillow_grey(PIXELS).astype(np.float32) - spec.mean[0]) * np.float32(spec.scale[0])
    np.testing.assert_allclose(probabilities(adopted), model.predict(expected, verbose=0), atol=1e-5)
    with pytest.raises(ModelError, match=r"one mean and one scale for a greyscale model.*caffe"):
        to_canonical_form(model, WHERE, preprocessing=PreprocessingSpec.from_mode("caffe"))


def test_grey_levels_are_pillows_for_every_colour() -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 52, 3)
    spec = PreprocessingSpec("RGB", (0, 0, 0), (1, 1, 1), grey=True)
    np.testing.assert_array_equal(spec.apply(colours)[..., :1], pillow_grey(colours))
    assert PreprocessingSpec.from_dict(spec.to_dict()) == spec


def test_channels_first_is_transposed_for() -> None:
    model = classifier(
        ends_in_softmax, shape=(3, *SIZE), into=lambda x: layers.Permute((2, 3, 1), name="channels_last")(x)
    )
    adopted = to_canonical_form(model, WHERE)
    said = model.predict(PIXELS.transpose(0, 3, 1, 2).astype(np.float32), verbose=0)
    np.testing.assert_allclose(probabilities(adopted), said, atol=2e-6)
    assert adopted.model.inputs[0].shape == (None, *SIZE, 3)


def test_layers_that_are_idle_at_inference_go_and_the_others_stay() -> None:
    first = (
        layers.RandomFlip(name="flip"),
        layers.RandomCrop(12, 12, name="crop"),  # which hands on the whole picture at inference
        layers.AutoContrast((0, 255), name="stretch"),
        layers.RandAugment(name="augment"),
        layers.Rescaling,
    )
    model = classifier(lambda x: dense(5, "softmax")(x[:, :9]), first=first)
    said = model.predict(PIXELS.astype(np.float32), verbose=0)
    adopted = to_canonical_form(model, WHERE)
    assert adopted.changes == ("augmentation left out: flip, crop, augment",)
    assert [layer.name for layer in adopted.model.layers].count("stretch") == 1
    np.testing.assert_allclose(probabilities(adopted), said, atol=2e-6)


def test_a_batch_that_was_saved_with_the_model_is_freed() -> None:
    model = classifier(ends_in_softmax, batch=2, into=lambda x: ops.reshape(x, (2, SIZE[0], -1, 3)))
    adopted = to_canonical_form(model, WHERE)
    said = [model.predict(PIXELS[i : i + 2].astype(np.float32), verbose=0) for i in range(0, 10, 2)]
    np.testing.assert_allclose(probabilities(adopted), np.concatenate(said), atol=2e-6)
    assert any("any number of images" in change for change in adopted.changes)


def test_what_depends_on_the_others_of_its_batch_is_refused() -> None:
    model = classifier(lambda x: dense(5, "softmax")(x - ops.mean(x, axis=0, keepdims=True)))
    with pytest.raises(ModelError, match=r"does not depend on other images.*alone and in a batch"):
        to_canonical_form(model, WHERE)


def test_a_model_that_keras_cannot_run_is_named() -> None:
    model = classifier(ends_in_softmax, first=(layers.RandomCrop(11, 11, name="crop"), layers.Rescaling))
    with pytest.raises(ModelError, match=r"a model that Keras itself can run.*\(16, 20, 3\)"):
        to_canonical_form(model, WHERE)


def test_a_step_that_changes_the_answers_is_refused_by_its_name(monkeypatch) -> None:
    model = classifier(ends_in_softmax)
    monkeypatch.setattr(canonical_form, "_idle_layers", lambda model, given: [model.get_layer("to_unit")])
    with pytest.raises(ModelError, match=r"before and after this step: augmentation left out: to_unit.*off by"):
        to_canonical_form(model, WHERE)


@pytest.mark.parametrize("gain", [1.0, 3000.0])
def test_a_fault_shows_where_probabilities_are_saturated(monkeypatch, gain) -> None:
    model = classifier(lambda x: dense(5, "softmax", stddev=gain)(x))
    said = model.predict(PIXELS.astype(np.float32), verbose=0)
    assert (said.max() == 1.0) == (gain > 1)

    def faulty(layer, changes):
        new = rebuild_layer(layer, changes)
        new.set_weights([weight * 1.05 for weight in layer.get_weights()])
        return new

    monkeypatch.setattr(canonical_form, "rebuild_layer", faulty)
    monkeypatch.setattr(canonical_form, "_computes_in_half", lambda layer: layer.name == "conv")
    with pytest.raises(ModelError, match=r"1 layer computes in float32.*off by"):
        to_canonical_form(model, WHERE)


def test_photographs_are_compared_on_as_well(monkeypatch) -> None:
    seen = []
    whole = canonical_form.run_model

    def watched(model, values, batch=None):
        seen.append(len(values))
        return whole(model, values, batch)

    monkeypatch.setattr(canonical_form, "run_model", watched)
    to_canonical_form(classifier(ends_in_softmax, shape=(*SIZE, 1)), WHERE, photographs=PIXELS[:3])
    assert max(seen) == canonical_form._PROBES + 3


def test_half_precision_is_compared_before_its_softmax(monkeypatch) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = classifier(lambda x: layers.Dense(5, activation="softmax", dtype="float32", name="head")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    adopted = to_canonical_form(model, WHERE)
    said = model.predict(PIXELS.astype(np.float32), verbose=0)
    np.testing.assert_allclose(probabilities(adopted), said, atol=1e-2)
    assert adopted.model.get_layer("conv").compute_dtype == "float32"


def test_a_masked_class_hides_no_fault() -> None:
    def end(x):
        return dense(5)(x - ops.mean(x, axis=0, keepdims=True)) + np.float32([0, 0, 0, 0, -1e9])

    with pytest.raises(ModelError, match="alone and in a batch"):
        to_canonical_form(classifier(end), WHERE)


def test_layers_with_a_memory_are_named() -> None:
    rows = layers.LSTM(4, stateful=True, name="remembering")
    model = classifier(lambda x: dense(5, "softmax")(rows(layers.Reshape((-1, 9), name="rows")(x))), batch=2)
    with pytest.raises(ModelError, match=r"with remembering, which remember the images before"):
        to_canonical_form(model, WHERE)


def test_layers_that_keras_quantized_are_named() -> None:
    model = classifier(ends_in_softmax)
    model.quantize("int8")
    with pytest.raises(ModelError, match=r"layers in floating point.*with head, which Keras quantized"):
        to_canonical_form(model, WHERE)


def test_names_that_are_taken_get_a_number() -> None:
    first = (lambda x: layers.Activation("linear", name="pixels")(x), layers.Rescaling)
    model = classifier(lambda x: dense(1, "sigmoid", name="two_classes")(x), first=first, shape=(*SIZE, 1))
    adopted = to_canonical_form(model, WHERE)
    said = model.predict(pillow_grey(PIXELS).astype(np.float32), verbose=0)
    np.testing.assert_allclose(probabilities(adopted)[:, 1:], said, atol=2e-6)


def test_whole_numbers_stay_whole_in_the_model() -> None:
    first = (lambda x: ops.cast(ops.right_shift(x, 4), "float32"),)
    model = classifier(ends_in_softmax, first=first, dtype="uint8")
    np.testing.assert_allclose(
        probabilities(to_canonical_form(model, WHERE)), model.predict(PIXELS, verbose=0), atol=2e-6
    )


def test_layers_inside_others_leave_half_precision_too() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        rows = layers.Bidirectional(layers.LSTM(4, name="inner"), name="both")
        model = classifier(lambda x: dense(5, "softmax")(rows(layers.Reshape((-1, 9), name="rows")(x))))
    finally:
        keras.config.set_dtype_policy("float32")
    both = to_canonical_form(model, WHERE).model.get_layer("both")
    assert {both.compute_dtype, both.forward_layer.compute_dtype, both.backward_layer.cell.compute_dtype} == {"float32"}
