"""Brings the end of a classifier to logits or a softmax, and refuses a rewrite that changes its answers.

Compares what a model answers before and after a rewrite, and refuses what changed them, by the name of the step.

The reference of every later stage is the rewritten model, so a fault here would be in the reference and in what is
compared with it, and every verdict would be a pass.

Brings the end of a classifier into one of two forms: logits, or a softmax that the export can take off.

What a model ends with is told by its layers and by what it answers: values between 0 and 1 whose sum is 1 on every
picture are probabilities, however they came about. Where no single softmax or sigmoid made them (a mean of several,
``1 - sigmoid``, a sparsemax), their logarithms are logits: the softmax of those gives the probabilities back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export.errors import ModelError, ProjectError
from export.from_keras.logits import BOUNDED, activations_at_the_end, before_activation, end_of, logits_model
from export.metrics.distances import relative_difference
from export.words import count
from pipeline.models.original import answers, free_name

EXACT = 1e-4  # of the largest value; the same operations in another order differ by 1e-6
HALF, BFLOAT16 = 3e-2, 0.2  # where one of the two computes in float16 and in bfloat16, of eight times the ulp


def refuse_other_answers(
    step: str, expected: np.ndarray, received: np.ndarray, where: Path, tolerance: float = EXACT
) -> None:
    """Refuse a rewrite that changed what the model answers.

    Args:
        step: what was done to the model, in words.
        expected: the values before, (N, ...).
        received: the values after.
        where: the model's file.
        tolerance: relative to the largest value.

    Raises:
        ModelError: with the step, and by how much.
    """
    found = relative_difference(expected, received)
    if found > tolerance:
        raise ModelError(
            f"Expected the same answers before and after this step: {step}. Received: {where}, off by "
            f"{_share(found)} of the largest on {count(len(expected), 'picture')}. The model cannot be taken over as "
            "it is; "
            "rebuild it without that part, or report the fault with the model's architecture."
        )


def refuse_batch_dependence(whole: np.ndarray, alone: np.ndarray, where: Path, tolerance: float) -> None:
    """Refuse a model whose answer for a picture depends on the others of its batch.

    Args:
        whole: values of several pictures at once.
        alone: of the same pictures, one at a time.
        where: the model's file.
        tolerance: relative to the largest value.

    Raises:
        ModelError: by how much they differ.
    """
    found = relative_difference(whole, alone)
    if found > tolerance:
        raise ModelError(
            f"Expected a model whose answer for a picture is its own. Received: {where}: answers for a picture alone "
            f"and in a batch differ by {_share(found)} of the largest. Something in it computes over the batch (a "
            "mean over axis 0, batch statistics); no engine could promise such answers."
        )


def _share(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else "NaN or another shape"


Read = Callable[[np.ndarray], np.ndarray]  # what the model as it was loaded says, of the logits
_FEW = 4  # pictures on which a changed end is run
_FLOOR = 1e-7  # of a probability before its logarithm: what float32 can tell beside 1
_SUM, _SUM_HALF = 1e-5, 1e-2  # how far from 1 the sum of probabilities may be, in float32 and in half precision

_TAKEN_OFF = "its sigmoid was taken off, what is before it are the logits"
_TWO_CLASSES = "one unit, two classes: logits 0 and z, whose softmax is 1 - sigmoid(z) and sigmoid(z)"


@dataclass(frozen=True)
class OutputForm:
    """A classifier whose end later stages know.

    Attributes:
        model: float32 (N, classes) out.
        output: "logits" or "softmax".
        changes: what was done, for people.
    """

    model: keras.Model
    output: str
    changes: tuple[str, ...] = ()


def to_logits(
    model: keras.Model,
    where: Path,
    output: str,
    said: np.ndarray,
    before: np.ndarray,
    values: np.ndarray,
    tolerance: float,
) -> OutputForm:
    """Find out what a classifier ends with, and change it where later stages could not.

    Args:
        model: float32 (N, height, width, 3) in, (N, units) out.
        where: its file, for messages.
        output: what the recipe says of its end: "auto", "logits", "softmax" or "sigmoid".
        said: (N, units), what the model as it was loaded answers to some pictures.
        before: (N, units), what `model` answers to them, before a final activation that can be taken off.
        values: (N, height, width, 3), those pictures as `model` takes them.
        tolerance: how far the answers may be off, relative to the largest: more where it computed in half precision.

    Raises:
        ModelError: what it ends with must be told, or is not what the recipe says, or its answers changed.
    """
    end = end_of(model)
    sigmoid = end.activation == "sigmoid" and end.removable
    bounded = activations_at_the_end(model) & set(BOUNDED)
    unit = bool(bounded) and _within_unit(said)
    # Where the layers do not tell (a TensorFlow graph, a division), the recipe may: one unit between 0 and 1 is p.
    told = output == "sigmoid" and end.activation is None and said.shape[1] == 1 and _within_unit(said)
    if output == "sigmoid" and not (sigmoid or told):
        raise ModelError(
            f"model.output: expected logits, softmax or auto, because {where} ends with "
            f"{end.activation or 'no activation'}. Received: sigmoid."
        )
    if said.shape[1] == 1:
        ended, read = _one_unit(model, where, output, said, sigmoid, (unit or told) and not _always_one(said))
    elif output == "sigmoid":
        ended, read = OutputForm(before_activation(model), "logits", (_TAKEN_OFF,)), _sigmoid
    else:
        sums_to_one = _within_unit(said) and np.abs(said.sum(axis=1) - 1).max() < (
            _SUM_HALF if tolerance > EXACT else _SUM
        )
        ended, read = _several(model, where, output, said, sigmoid, unit, bool(sums_to_one))
    if ended.model is model:
        off = relative_difference(said, read(before))
    else:
        off = relative_difference(said[:_FEW], read(answers(ended.model, values[:_FEW])))
    if off > tolerance:
        raise ModelError(
            f"model.output: expected the model's own answers once its end ({end}) is made logits. Received: {where}, "
            f"off by {off:.2g} of the largest. Say what it ends with: --set model.output=logits, softmax or sigmoid."
        )
    return ended


def _always_one(said: np.ndarray) -> bool:
    """Whether a unit only ever says 1, as a softmax over one unit does; some processors miss it by the last place."""
    return bool((np.abs(said - 1) <= 4 * np.finfo(np.float32).eps).all())


def _one_unit(
    model: keras.Model, where: Path, output: str, said: np.ndarray, sigmoid: bool, probability: bool
) -> tuple[OutputForm, Read]:
    """One unit, two classes: logits 0 and z, or the logarithms of 1 - p and p."""
    end = end_of(model)
    if sigmoid:
        return OutputForm(_two_classes(before_activation(model)), "logits", (_TAKEN_OFF, _TWO_CLASSES)), _second
    if probability:
        change = f"one unit, two classes: it gives p between 0 and 1 ({end}), and the logarithms of 1 - p and p are"
        return OutputForm(_behind(model, _two_logarithms), "logits", (f"{change} the logits",)), _second
    if end.activation is None and _within_unit(said):
        raise ModelError(
            f"model.output: expected to be told what one unit means, whose answers on {count(len(said), 'picture')} "
            "all lie "
            f"between 0 and 1. Received: {output} for {where}, which ends with {end}. If it is the probability of the "
            "second of two classes, say so: --set model.output=sigmoid; a regression is no classifier."
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
    said: np.ndarray,
    sigmoid: bool,
    unit: bool,
    probabilities: bool,
) -> tuple[OutputForm, Read]:
    """Two units or more, of which one is right."""
    end = end_of(model)
    units = said.shape[1]
    if sigmoid:
        raise ModelError(
            f"model.output: expected to be told what {units} sigmoids mean, in {where}. Received: {output}. If "
            "exactly one class is right for each image: --set model.output=sigmoid (the order of the classes "
            "stays, the probabilities become a softmax). A model that gives several labels to one image is not "
            "supported."
        )
    total = said.sum(axis=1)
    shares = end.activation != "linear" and (_within_unit(said) or np.ptp(total) < _SUM * np.abs(total).max())
    if output == "logits" and (probabilities or unit or shares):
        what = f"no logits: {'between 0 and 1' if _within_unit(said) else 'of one sum'}, by {end}"
        what = "probabilities: between 0 and 1, with the sum 1" if probabilities else what
        raise ModelError(
            f"model.output: expected softmax or auto, because on {count(len(said), 'picture')} the answers of {where} "
            "are "
            f"{what}. Received: logits. A second softmax would be put on them. Where softmax and auto are refused as "
            "well, end the model with the layer before."
        )
    if end.activation == "softmax" and end.removable and output != "logits":
        return OutputForm(model, "softmax"), _softmax
    if probabilities and not np.logical_and(said > 0, said < 1).any():
        raise ModelError(
            f"Expected probabilities or logits. Received: {where}, whose answers on {count(len(said), 'picture')} are "
            "only 0 "
            f"and 1, by {end}: they name a class and say nothing of the others. End it before that step."
        )
    if probabilities:
        change = f"its probabilities are made by {end} from others: their logarithms are the logits"
        return OutputForm(_behind(model, _logarithm), "logits", (change,)), _softmax
    logarithms = bool((said <= 1e-6).all()) and float(np.abs(np.log(np.exp(said).sum(axis=1))).max()) < _SUM
    if output != "softmax" and (logarithms or (output == "auto" and end.activation == "linear" and not unit)):
        return OutputForm(model, "logits"), lambda z: z
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
    from keras import ops

    return ops.log(ops.maximum(x, _FLOOR))


def _two_logarithms(p: Any) -> Any:
    from keras import ops

    return ops.concatenate([_logarithm(ops.subtract(1.0, p)), _logarithm(p)], axis=-1)


def _two_classes(model: keras.Model) -> keras.Model:
    layer = keras.layers.Dense(
        2, use_bias=False, trainable=False, name=free_name(model, "two_classes"), dtype="float32"
    )
    result = _behind(model, layer)
    layer.set_weights([np.asarray([[0.0, 1.0]], np.float32)])
    return result


def _behind(model: keras.Model, operation: Any) -> keras.Model:
    return keras.Model(model.inputs[0], operation(model.outputs[0]), name=model.name)
