"""Makes any Keras 3 image classifier one that the rest of the chain takes as it is.

What people save differs in its outside: a dictionary of one input, any image size, uint8 or greyscale input, half
precision, augmentation layers, a single sigmoid unit. Here all that becomes: float32 (N, height, width, 3) in,
one float32 (N, classes) out, at least two classes. The layers in between stay, with their names and weights, and
after each step the answers are compared with those of the model as it was loaded.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export.errors import ModelError, cause
from export.from_keras.check import probe_pixels
from export.from_keras.logits import before_activation, end_of, remade
from export.preprocessing import PreprocessingSpec
from export.words import count, listed
from pipeline.models.original import (
    Form,
    all_layers,
    answers,
    at_inference,
    flat,
    form_of,
    free_name,
    run_graph,
    tensor_names,
)
from pipeline.models.output_form import BFLOAT16, EXACT, HALF, refuse_batch_dependence, refuse_other_answers, to_logits

log = logging.getLogger(__name__)

_NONE = PreprocessingSpec.from_mode("none")
_AUGMENTING = "keras.src.layers.preprocessing.image_preprocessing."  # the module of Keras' layers for pictures
_PROBES, _FEWEST = 12, 4  # made pictures: for 224x224 and less, and at least
_ALONE = 3  # pictures that are answered one at a time as well


@dataclass(frozen=True)
class CanonicalModel:
    """A classifier in the form that every later stage takes.

    Attributes:
        model: float32 (N, height, width, 3) in, (N, classes) out.
        output: what it ends with, "logits" or "softmax".
        changes: what was done to it, for people.
        preprocessing: what is done to pixels before it.
    """

    model: keras.Model
    output: str
    changes: tuple[str, ...]
    preprocessing: PreprocessingSpec = _NONE


def to_canonical_form(
    model: keras.Model,
    where: Path,
    output: str = "auto",
    free_size: int = 224,
    preprocessing: PreprocessingSpec = _NONE,
    photographs: np.ndarray | None = None,
) -> CanonicalModel:
    """Bring a model into the form that every later stage takes, its answers unchanged.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        output: what the recipe says of its end: "auto", "logits", "softmax" or "sigmoid".
        free_size: height and width for a model that takes any size.
        preprocessing: what its author did to pictures.
        photographs: uint8 (N, height, width, 3), compared on besides made pictures. Defaults to None.

    Raises:
        ModelError: it is no image classifier, its end must be named, or a step changed its answers.
    """
    form = form_of(model, where)
    _check_output(model, where)
    _refuse_layers(model, where)
    size = form.height or free_size, form.width or free_size
    changes: list[str] = []
    if None in (form.height, form.width):
        changes.append(f"takes any size, and {size[0]}x{size[1]} from now on (model.input_size)")
    if form.grey:
        _check_grey(preprocessing, where)
    pixels = probe_pixels(*size, count=max(_FEWEST, min(_PROBES, _PROBES * 224 * 224 // (size[0] * size[1]))))
    if photographs is not None and len(photographs):
        pixels = np.concatenate([photographs, pixels])
    given = form.feed(pixels, preprocessing)
    outer = replace(preprocessing, grey=form.grey)
    plain = _is_plain(model, size)
    end = end_of(model)
    values: Callable[[Any], Any] = before_activation if end.removable else lambda m: m
    expected, said = _own_answers(model, values(model), given, form, where)

    tolerance = EXACT
    swaps: dict[int, Any] = {}
    current, received = model, expected  # values before a final activation that can be taken off
    for step, more in _steps(model, given[: form.batch or 4], form):
        swaps |= more
        tolerance = half_tolerance(model) if "half precision" in step else tolerance
        current = _outside(model, form, size, swaps, where)
        received = _rewritten(values(current), outer.apply(pixels), step, where)
        refuse_other_answers(step, expected, received, where, tolerance)
        changes.append(step)
    if not plain and not swaps:
        current = _outside(model, form, size, swaps, where)
        step = "its input and output brought into the usual form"
        received = _rewritten(values(current), outer.apply(pixels), step, where)
        refuse_other_answers(step, expected, received, where)
    if current is not model:
        changes += _said_of_form(form)
    alone = _rewritten(values(current), outer.apply(pixels[:_ALONE]), "pictures one at a time", where, 1)
    refuse_batch_dependence(received[:_ALONE], alone, where, max(tolerance, 1e-3))
    ended = to_logits(current, where, output, said, received, outer.apply(pixels), tolerance)
    return CanonicalModel(ended.model, ended.output, (*changes, *ended.changes), outer)


def _steps(model: Any, given: np.ndarray, form: Form) -> list[tuple[str, dict[int, Any]]]:
    """What is done to layers inside, one step after the other: in words, and what stands in for which layer."""
    steps: list[tuple[str, dict[int, Any]]] = []
    idle = _idle_layers(model, given)
    if idle:
        names = listed(layer.name for layer in idle)
        steps.append((f"augmentation left out: {names}", dict.fromkeys(map(id, idle))))
    left = [layer for layer in all_layers(model) if layer not in idle]
    if half := [layer for layer in left if _computes_in_half(layer)]:
        swaps = {id(layer): remade(layer, {"dtype": "float32"}) for layer in half}
        steps.append(
            (f"{count(len(half), 'layer computes', 'layers compute')} in float32 instead of half precision", swaps)
        )
    if form.batch is not None and (reshapes := _reshapes_of_batch(model, form.batch)):
        names = listed(reshape.name for reshape in reshapes)
        steps.append((f"takes any number of pictures, not {form.batch} at once ({names})", _freed(reshapes)))
    return steps


def _said_of_form(form: Form) -> list[str]:
    said = []
    if form.grey:
        said.append("takes greyscale: RGB becomes whole grey levels first, as Pillow makes them")
    if form.layout == "first":
        said.append("takes channels first: pictures are transposed for it")
    return said


def _check_grey(spec: PreprocessingSpec, where: Path) -> None:
    one = len(set(spec.mean)) == len(set(spec.scale)) == 1 and spec.mean_image is None
    if not one:
        raise ModelError(
            f"model.preprocessing: expected one mean and one scale for a greyscale model, such as none, unit or tf. "
            f"Received: {where}, which takes one channel, with {spec.mode} (mean {spec.mean}, scale {spec.scale})."
        )


def _own_answers(
    model: keras.Model, inner: keras.Model, given: np.ndarray, form: Form, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The values before its final activation and the answers of a model as it was loaded.

    Raises:
        ModelError: it does not run, or its answers are not finite: it is broken.
    """
    try:
        said = answers(model, given, form.batch)
        expected = said if inner is model else answers(inner, given, form.batch)
    except Exception as error:  # Keras and TensorFlow raise many types
        raise ModelError(
            f"Expected a model that Keras itself can run. Received: {where}, which fails on a picture of shape "
            f"{given.shape[1:]}: {cause(error)}"
        ) from error
    if not (np.isfinite(said).all() and np.isfinite(expected).all()):
        raise ModelError(f"Expected finite answers. Received: NaN or infinity from {where}; its weights are broken.")
    return expected, said


def _rewritten(model: keras.Model, given: np.ndarray, step: str, where: Path, batch: int | None = None) -> np.ndarray:
    """What a model answers after a step; one that does not run any more is refused by the step's name."""
    try:
        return answers(model, given, batch)
    except Exception as error:  # Keras and TensorFlow raise many types
        raise ModelError(
            f"Expected a model that runs on any number of pictures. Received: {where}, which fails after this step: "
            f"{step}: {cause(error)}"
        ) from error


def _refuse_layers(model: Any, where: Path) -> None:
    """Refuse layers that no step can bring into the usual form, by name."""
    if found := [layer.name for layer in all_layers(model) if getattr(layer, "quantization_mode", None)]:
        raise ModelError(
            f"Expected layers in floating point. Received: {where} with {listed(found)}, which Keras quantized "
            "(model.quantize). Save the model before that step; the quantize stage does its own."
        )
    if found := [layer.name for layer in all_layers(model) if getattr(layer, "stateful", False)]:
        raise ModelError(
            f"Expected layers that answer for each picture anew. Received: {where} with {listed(found)}, which "
            "remember the pictures before (stateful=True). Rebuild them with stateful=False and load the weights."
        )


def _is_plain(model: Any, size: tuple[int, int]) -> bool:
    functional = getattr(model, "_functional", model)  # of a Sequential
    return (
        tuple(model.inputs[0].shape) == (None, *size, 3)
        and model.inputs[0].dtype == "float32"
        and all(_is_tensor(getattr(functional, f"_{side}_struct", None)) for side in ("inputs", "outputs"))
    )


def _outside(model: keras.Model, form: Form, size: tuple[int, int], swaps: dict[int, Any], where: Path) -> keras.Model:
    """The model with another outside, and some of its layers replaced."""
    inputs = keras.Input((*size, 3), name=free_name(model, "pixels"))
    x: Any = inputs[..., :1] if form.grey else inputs  # of grey all three channels are equal
    if form.dtype.startswith(("int", "uint")):
        x = keras.ops.cast(x, form.dtype)
    if form.layout == "first":
        x = keras.ops.transpose(x, (0, 3, 1, 2))
    elif form.layout == "plane":
        x = keras.layers.Reshape(size, name=free_name(model, "plane"))(x)
    try:
        return keras.Model(inputs, flat(run_graph(model, x, swaps)), name=model.name)
    except Exception as error:  # Keras raises many types on shapes that do not fit
        fixed = (
            "" if form.batch is None else f" It was saved for {count(form.batch, 'picture')} at once; save it for any."
        )
        raise ModelError(
            f"Expected a model that takes (N, {size[0]}, {size[1]}, 3). Received: {where}: {error}{fixed}"
        ) from error


def _check_output(model: keras.Model, where: Path) -> None:
    taken, given = tensor_names(model.inputs), tensor_names(model.outputs)
    if len(model.outputs) > 1:
        raise ModelError(f"Expected one output of shape (N, classes). Received: {where} gives {given}.")
    shape, what = tuple(model.outputs[0].shape), ""
    if len(shape) == 4:
        features = shape[1] is None or (model.inputs[0].shape[1] or 10**9) > 4 * shape[1]
        headless = features and (shape[3] or 0) > 4
        same = "a picture or a map for each input, as in denoising or segmentation"
        what = f": {'a feature map: a backbone without its head' if headless else same}"
    if len(shape) != 2 or shape[1] is None:
        raise ModelError(
            f"Expected an image classifier, output (N, classes). Received: {where} takes {taken} and gives {given}"
            f"{what}."
        )


def _idle_layers(model: Any, given: np.ndarray) -> list[Any]:
    """Layers of Keras' picture augmentation that hand on their input at inference, found by running them."""
    from keras import ops

    idle: dict[int, bool] = {}

    def watched(layer: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = at_inference(layer)(*args, **options)
            before, after = ops.convert_to_numpy(ops.cast(args[0], result.dtype)), ops.convert_to_numpy(result)
            idle[id(layer)] = idle.get(id(layer), True) and np.array_equal(before, after)
            return result

        return call

    candidates = {id(layer): layer for layer in all_layers(model) if type(layer).__module__.startswith(_AUGMENTING)}
    if candidates:
        run_graph(model, ops.convert_to_tensor(given), {key: watched(layer) for key, layer in candidates.items()})
    return [layer for key, layer in candidates.items() if idle.get(key)]


def half_tolerance(model: Any) -> float:
    """How far the float32 model may be from one that computes in half precision."""
    kinds = {str(getattr(layer, "compute_dtype", "")) for layer in all_layers(model)}
    return BFLOAT16 if "bfloat16" in kinds else HALF if "float16" in kinds else EXACT


def _computes_in_half(layer: Any) -> bool:
    compute = getattr(layer, "compute_dtype", "float32")
    if compute in ("float32", None) or hasattr(layer, "layers") or isinstance(layer, keras.layers.InputLayer):
        return False
    return str(compute).startswith(("float", "bfloat"))


def _reshapes_of_batch(model: Any, batch: int) -> list[Any]:
    """Reshape operations with the batch that the model was saved for in them, the rest of their shape known."""
    return [
        operation
        for operation in getattr(getattr(model, "_functional", model), "operations", ())
        if type(operation).__name__ == "Reshape"
        and (getattr(operation, "newshape", None) or (None,))[0] == batch
        and None not in operation.output.shape[1:]
    ]


def _freed(reshapes: list[Any]) -> dict[int, Any]:
    return {id(old): keras.layers.Reshape(tuple(old.output.shape[1:]), name=old.name) for old in reshapes}


def _is_tensor(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list, tuple))
