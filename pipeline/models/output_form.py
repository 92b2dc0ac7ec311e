"""The output form of a classifier: logits, or a softmax that the export can remove; and checks of each rewrite.

The kind of output follows from the layers and from the predictions: values between 0 and 1 with the sum 1 on every
image are probabilities. Where no single softmax or sigmoid computes them (a mean of several, ``1 - sigmoid``, a
sparsemax), their logarithms become the logits: the softmax of these is the probabilities again.

Later stages take the rewritten model as their reference, so they could not detect a fault made here. Outputs before
and after each rewrite are therefore compared, and a difference is an error that names the step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export.errors import ModelError, ProjectError
from export.from_keras.logits import BOUNDED, activations_at_the_end, before_activation, end_of, logits_model
from export.metrics.difference import relative_difference
from export.words import count
from pipeline.models.original import free_name, run_model

EXACT = 1e-4  # of the largest value; the same operations in another order differ by 1e-6
HALF, BFLOAT16 = 3e-2, 0.2  # where one of the two computes in float16 and in bfloat16, of eight times the ulp

OutputsFromLogits = Callable[[np.ndarray], np.ndarray]  # from the logits to the original model's outputs
_FEW = 4  # images on which a rewritten output is checked
_FLOOR = 1e-7  # of a probability before its logarithm: about the resolution of float32 near 1
_SUM, _SUM_HALF = 1e-5, 1e-2  # how far from 1 the sum of probabilities may be, in float32 and in half precision

_REMOVED = "its final sigmoid was removed: the values before it are the logits"
_TWO_CLASSES = "one unit, two classes: logits 0 and z, whose softmax is 1 - sigmoid(z) and sigmoid(z)"


def refuse_changed_outputs(
    step: str, expected: np.ndarray, received: np.ndarray, where: Path, tolerance: float = EXACT
) -> None:
    """Refuse a rewrite that changed the outputs of the model.

    Args:
        step: description of the rewrite.
        expected: the values before, (N, ...).
        received: the values after.
        where: the model's file.
        tolerance: relative to the largest value. Defaults to 1e-4.

    Raises:
        ModelError: with the step and the difference.
    """
    difference = relative_difference(expected, received)
    if difference > tolerance:
        raise ModelError(
            f"Expected the same answers before and after this step: {step}. Received: {where}, off by "
            f"{_share(difference)} of the largest on {count(len(expected), 'image')}. The model cannot be imported "
            "as it is; rebuild it without that part, or report the fault with the model's architecture."
        )


def refuse_batch_dependence(whole: np.ndarray, alone: np.ndarray, where: Path, tolerance: float) -> None:
    """Refuse a model whose output for an image depends on the other images of the batch.

    Args:
        whole: values of several images in one batch, (N, ...).
        alone: of the same images, one at a time.
        where: the model's file.
        tolerance: relative to the largest value.

    Raises:
        ModelError: with the difference.
    """
    difference = relative_difference(whole, alone)
    if difference > tolerance:
        raise ModelError(
            f"Expected a model whose answer for an image does not depend on other images. Received: {where}: "
            f"answers for an image alone and in a batch differ by {_share(difference)} of the largest. Something in "
            "it computes over the batch (a mean over axis 0, batch statistics); an engine could not reproduce that."
        )


def _share(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else "NaN or another shape"


@dataclass(frozen=True)
class OutputForm:
    """A classifier with an output form that later stages handle.

    Attributes:
        model: float32 (N, height, width, 3) in, (N, classes) out.
        output: the kind of its output, "logits" or "softmax".
        changes: the rewrites, as sentences.
    """

    model: keras.Model
    output: str
    changes: tuple[str, ...] = ()


def to_logits(
    model: keras.Model,
    where: Path,
    output: str,
    predictions: np.ndarray,
    before: np.ndarray,
    inputs: np.ndarray,
    tolerance: float,
) -> OutputForm:
    """Determine the kind of output of a classifier, and rewrite it where later stages could not handle it.

    Args:
        model: float32 (N, height, width, 3) in, (N, units) out.
        where: its file, for messages.
        output: the recipe's ``model.output``: "auto", "logits", "softmax" or "sigmoid".
        predictions: (N, units), outputs of the model as it was loaded.
        before: (N, units), values of ``model`` for the same images, before a removable final activation.
        inputs: (N, height, width, 3), those images as ``model`` takes them.
        tolerance: of the outputs, relative to the largest; higher where the model computed in half precision.

    Raises:
        ModelError: ``model.output`` must name the kind of output or is wrong, or the rewrite changed the outputs.
    """
    end = end_of(model)
    sigmoid = end.activation == "sigmoid" and end.removable
    bounded = bool(activations_at_the_end(model) & set(BOUNDED)) and _within_unit(predictions)
    # Where the layers leave it open (a TensorFlow graph, a division), the recipe decides: a unit between 0 and 1 is p.
    stated = output == "sigmoid" and end.activation is None and predictions.shape[1] == 1 and _within_unit(predictions)
    if output == "sigmoid" and not (sigmoid or stated):
        raise ModelError(
            f"model.output: expected logits, softmax or auto, because {where} ends with "
            f"{end.activation or 'no activation'}. Received: sigmoid."
        )
    if predictions.shape[1] == 1:
        probability = (bounded or stated) and not _always_one(predictions)
        form, read = _one_unit(model, where, output, predictions, sigmoid, probability)
    elif output == "sigmoid":
        form, read = OutputForm(before_activation(model), "logits", (_REMOVED,)), _sigmoid
    else:
        sum_tolerance = _SUM_HALF if tolerance > EXACT else _SUM
        sums_to_one = _within_unit(predictions) and np.abs(predictions.sum(axis=1) - 1).max() < sum_tolerance
        form, read = _several(model, where, output, predictions, sigmoid, bounded, bool(sums_to_one))
    difference = (
        relative_difference(predictions, read(before))
        if form.model is model
        else relative_difference(predictions[:_FEW], read(run_model(form.model, inputs[:_FEW])))
    )
    if difference > tolerance:
        raise ModelError(
            f"model.output: expected the model's own answers once its end ({end}) is made logits. Received: {where}, "
            f"off by {difference:.2g} of the largest. Name its kind of output: --set model.output=logits, softmax or "
            "sigmoid."
        )
    return form


def _always_one(predictions: np.ndarray) -> bool:
    """Whether a unit is constantly 1, as a softmax over one unit is; on some processors the last digit differs."""
    return bool((np.abs(predictions - 1) <= 4 * np.finfo(np.float32).eps).all())


def _one_unit(
    model: keras.Model, where: Path, output: str, predictions: np.ndarray, sigmoid: bool, probability: bool
) -> tuple[OutputForm, OutputsFromLogits]:
    """Rewrite one unit to two classes: logits 0 and z, or the logarithms of 1 - p and p."""
    end = end_of(model)
    if sigmoid:
        return OutputForm(_two_classes(before_activation(model)), "logits", (_REMOVED, _TWO_CLASSES)), _second
    if probability:
        change = f"one unit, two classes: it gives p between 0 and 1 ({end}), and the logarithms of 1 - p and p are"
        return OutputForm(_append(model, _two_logarithms), "logits", (f"{change} the logits",)), _second
    if end.activation is None and _within_unit(predictions):
        raise ModelError(
            "model.output: expected to be told what one unit means, whose answers on "
            f"{count(len(predictions), 'image')} all lie between 0 and 1. Received: {output} for {where}, which ends "
            f"with {end}. If it is the probability of the second of two classes, say so: --set model.output=sigmoid; a "
            "regression is no classifier."
        )
    if end.activation in (None, "linear") and output == "logits":
        return OutputForm(_two_classes(model), "logits", (_TWO_CLASSES,)), lambda z: z[:, 1:]
    raise ModelError(
        f"Expected at least two outputs, or one with a sigmoid. Received: {where} with one unit and "
        f"{end.activation or type(end.operation).__name__!r}. If it is the logit of the second of two classes, say "
        "so: --set model.output=logits; a regression is no classifier."
    )


def _several(
    model: keras.Model,
    where: Path,
    output: str,
    predictions: np.ndarray,
    sigmoid: bool,
    bounded: bool,
    probabilities: bool,
) -> tuple[OutputForm, OutputsFromLogits]:
    """Rewrite the output of two or more exclusive classes."""
    end = end_of(model)
    images = count(len(predictions), "image")
    if sigmoid:
        raise ModelError(
            f"model.output: expected to be told what {predictions.shape[1]} sigmoids mean, in {where}. Received: "
            f"{output}. If exactly one class is right for each image: --set model.output=sigmoid (the order of the "
            "classes stays, the probabilities become a softmax). A model that gives several labels to one image is not "
            "supported."
        )
    total = predictions.sum(axis=1)
    shares = end.activation != "linear" and (_within_unit(predictions) or np.ptp(total) < _SUM * np.abs(total).max())
    if output == "logits" and (probabilities or bounded or shares):
        kind = (
            "probabilities: between 0 and 1, with the sum 1"
            if probabilities
            else f"no logits: {'between 0 and 1' if _within_unit(predictions) else 'of one sum'}, by {end}"
        )
        raise ModelError(
            f"model.output: expected softmax or auto, because on {images} the answers of {where} are {kind}. Received: "
            "logits. A second softmax would be put on them. Where softmax and auto are refused as well, end the model "
            "with the layer before."
        )
    if end.activation == "softmax" and end.removable and output != "logits":
        return OutputForm(model, "softmax"), _softmax
    if probabilities and not np.logical_and(predictions > 0, predictions < 1).any():
        raise ModelError(
            f"Expected probabilities or logits. Received: {where}, whose answers on {images} are only 0 and 1, by "
            f"{end}: they name a class and give no value for the others. End it before that step."
        )
    if probabilities:
        change = f"its probabilities are made by {end} from others: their logarithms are the logits"
        return OutputForm(_append(model, _logarithm), "logits", (change,)), _softmax
    log_softmax = bool((predictions <= 1e-6).all()) and (
        float(np.abs(np.log(np.exp(predictions).sum(axis=1))).max()) < _SUM
    )
    linear = output == "auto" and end.activation == "linear" and not bounded
    if output == "softmax" or not (log_softmax or linear):
        try:
            logits_model(model, output)
        except ProjectError as error:
            raise ModelError(f"model.output: {where}: {error}") from error
    return OutputForm(model, "logits"), lambda z: z


def _within_unit(values: np.ndarray) -> bool:
    return bool((values >= -1e-6).all() and (values <= 1 + 1e-6).all())


def _second(logits: np.ndarray) -> np.ndarray:
    return _softmax(logits)[:, 1:]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _logarithm(x: Any) -> Any:
    return keras.ops.log(keras.ops.maximum(x, _FLOOR))


def _two_logarithms(p: Any) -> Any:
    return keras.ops.concatenate([_logarithm(keras.ops.subtract(1.0, p)), _logarithm(p)], axis=-1)


def _two_classes(model: keras.Model) -> keras.Model:
    layer = keras.layers.Dense(
        2, use_bias=False, trainable=False, name=free_name(model, "two_classes"), dtype="float32"
    )
    result = _append(model, layer)
    layer.set_weights([np.asarray([[0.0, 1.0]], np.float32)])
    return result


def _append(model: keras.Model, operation: Any) -> keras.Model:
    return keras.Model(model.inputs[0], operation(model.outputs[0]), name=model.name)
