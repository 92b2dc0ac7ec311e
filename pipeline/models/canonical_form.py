"""The canonical form of a Keras 3 image classifier: float32 (N, height, width, 3) in, float32 (N, classes) out.

Saved models differ in their inputs and outputs: a dictionary of one input, any image size, uint8 or greyscale input,
half precision, augmentation layers, a single sigmoid unit. All of them are rewritten to the canonical form, with at
least two classes. The layers in between keep their names and weights, and after each step the outputs are compared
with those of the model as it was loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export.errors import ModelError, cause
from export.from_keras.logits import before_activation, end_of, rebuild_layer
from export.from_keras.probes import probe_pixels
from export.preprocessing import PreprocessingSpec
from export.words import count, listed
from pipeline.models.original import (
    InputForm,
    all_layers,
    at_inference,
    free_name,
    input_form_of,
    run_graph,
    run_model,
    single_tensor,
    tensor_names,
)
from pipeline.models.output_form import (
    BFLOAT16,
    EXACT,
    HALF,
    OutputForm,
    refuse_batch_dependence,
    refuse_changed_outputs,
    to_logits,
)
from pipeline.terminal.command_line import pipeline_command

_NONE = PreprocessingSpec.from_mode("none")
_AUGMENTING = "keras.src.layers.preprocessing.image_preprocessing."  # the package of Keras' augmentation layers
_PROBES, _FEWEST = 12, 4  # synthetic images: up to 224x224, and the minimum for larger ones
_ALONE = 3  # images that are also classified one at a time


@dataclass(frozen=True)
class CanonicalModel(OutputForm):
    """A classifier in canonical form.

    Attributes:
        preprocessing: applied to pixels before the model.
    """

    preprocessing: PreprocessingSpec = _NONE


def to_canonical_form(
    model: keras.Model,
    where: Path,
    output: str = "auto",
    free_size: int = 224,
    preprocessing: PreprocessingSpec = _NONE,
    photographs: np.ndarray | None = None,
) -> CanonicalModel:
    """Rewrite a model to the canonical form without changing its outputs.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        output: the recipe's ``model.output``: "auto", "logits", "softmax" or "sigmoid". Defaults to "auto".
        free_size: height and width in pixels for a model that takes any size. Defaults to 224.
        preprocessing: that the model was trained with. Defaults to none.
        photographs: uint8 (N, height, width, 3); outputs are compared on them and on synthetic images. Defaults to
            None.

    Raises:
        ModelError: not an image classifier, an output that ``model.output`` must name, or a step that changed the
            outputs.
    """
    form = input_form_of(model, where)
    _check_output(model, where)
    _refuse_layers(model, where)
    _check_grey(form, preprocessing, where)
    size = form.height or free_size, form.width or free_size
    changes: list[str] = []
    if None in (form.height, form.width):
        changes.append(f"takes any size, and {size[0]}x{size[1]} from now on (model.input_size)")
    pixels = probe_pixels(*size, count=max(_FEWEST, min(_PROBES, _PROBES * 224 * 224 // (size[0] * size[1]))))
    if photographs is not None and len(photographs):
        pixels = np.concatenate([photographs, pixels])
    inputs = form.feed(pixels, preprocessing)
    outer = replace(preprocessing, grey=form.grey)
    inner: Callable[[Any], Any] = before_activation if end_of(model).removable else lambda m: m
    expected, predictions = _original_outputs(model, inner(model), inputs, form, where)

    tolerance = EXACT
    swaps: dict[int, Any] = {}
    current, received = model, expected  # values before a removable final activation
    steps = _steps(model, inputs[: form.batch or 4], form)
    if not steps and not _is_plain(model, size):
        steps = [("its input and output rewritten to canonical form", {})]
    for step, replacements in steps:
        swaps |= replacements
        tolerance = half_tolerance(model) if "half precision" in step else tolerance
        current = _with_canonical_input(model, form, size, swaps, where)
        received = _outputs_after(inner(current), outer.apply(pixels), step, where)
        refuse_changed_outputs(step, expected, received, where, tolerance)
    changes += [step for step, replacements in steps if replacements]
    if steps and form.grey:
        changes.append("takes greyscale: RGB becomes whole grey levels first, as Pillow makes them")
    if steps and form.layout == "first":
        changes.append("takes channels first: images are transposed for it")
    alone = _outputs_after(inner(current), outer.apply(pixels[:_ALONE]), "images one at a time", where, 1)
    refuse_batch_dependence(received[:_ALONE], alone, where, max(tolerance, 1e-3))
    end = to_logits(current, where, output, predictions, received, outer.apply(pixels), tolerance)
    return CanonicalModel(end.model, end.output, (*changes, *end.changes), outer)


def _steps(model: Any, inputs: np.ndarray, form: InputForm) -> list[tuple[str, dict[int, Any]]]:
    """Plan the rewrites of layers, in order: a description, and the replacements by the layers' ids."""
    steps: list[tuple[str, dict[int, Any]]] = []
    if idle := _idle_layers(model, inputs):
        names = listed(layer.name for layer in idle)
        steps.append((f"augmentation left out: {names}", dict.fromkeys(map(id, idle))))
    if half := [layer for layer in all_layers(model) if layer not in idle and _computes_in_half(layer)]:
        swaps = {id(layer): rebuild_layer(layer, {"dtype": "float32"}) for layer in half}
        steps.append(
            (f"{count(len(half), 'layer computes', 'layers compute')} in float32 instead of half precision", swaps)
        )
    if form.batch is not None and (reshapes := _reshapes_of_batch(model, form.batch)):
        names = listed(reshape.name for reshape in reshapes)
        swaps = {id(old): keras.layers.Reshape(tuple(old.output.shape[1:]), name=old.name) for old in reshapes}
        steps.append((f"takes any number of images, not {form.batch} at once ({names})", swaps))
    return steps


def _check_grey(form: InputForm, spec: PreprocessingSpec, where: Path) -> None:
    if form.grey and not (len(set(spec.mean)) == len(set(spec.scale)) == 1 and spec.mean_image is None):
        raise ModelError(
            f"model.preprocessing: expected one mean and one scale for a greyscale model, such as none, unit or tf. "
            f"Received: {where}, which takes one channel, with {spec.mode} (mean {spec.mean}, scale {spec.scale})."
        )


def _original_outputs(
    model: keras.Model, inner: keras.Model, inputs: np.ndarray, form: InputForm, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Run a model as it was loaded: the values before its final activation, and its outputs.

    Raises:
        ModelError: it does not run, or its outputs are not finite.
    """
    try:
        predictions = run_model(model, inputs, form.batch)
        expected = predictions if inner is model else run_model(inner, inputs, form.batch)
    except Exception as error:  # Keras and TensorFlow raise many types
        raise ModelError(
            f"Expected a model that Keras itself can run. Received: {where}, which fails on an image of shape "
            f"{inputs.shape[1:]}: {cause(error)}"
        ) from error
    if not (np.isfinite(predictions).all() and np.isfinite(expected).all()):
        raise ModelError(f"Expected finite answers. Received: NaN or infinity from {where}; its weights are broken.")
    return expected, predictions


def _outputs_after(
    model: keras.Model, inputs: np.ndarray, step: str, where: Path, batch: int | None = None
) -> np.ndarray:
    """Run a rewritten model; if it does not run, the error names the step."""
    try:
        return run_model(model, inputs, batch)
    except Exception as error:  # Keras and TensorFlow raise many types
        raise ModelError(
            f"Expected a model that runs on any number of images. Received: {where}, which fails after this step: "
            f"{step}: {cause(error)}"
        ) from error


def _refuse_layers(model: Any, where: Path) -> None:
    """Refuse layers that no step can rewrite, by name."""
    for attribute, expected, problem in (
        (
            "quantization_mode",
            "layers in floating point",
            "Keras quantized (model.quantize). Save the model before that step; the quantize stage does its own.",
        ),
        (
            "stateful",
            "layers without state from one image to the next",
            "remember the images before (stateful=True). Rebuild them with stateful=False and load the weights.",
        ),
    ):
        if names := [layer.name for layer in all_layers(model) if getattr(layer, attribute, None)]:
            raise ModelError(f"Expected {expected}. Received: {where} with {listed(names)}, which {problem}")


def _is_plain(model: Any, size: tuple[int, int]) -> bool:
    functional = getattr(model, "_functional", model)  # of a Sequential
    return (
        tuple(model.inputs[0].shape) == (None, *size, 3)
        and model.inputs[0].dtype == "float32"
        and not any(
            isinstance(getattr(functional, f"_{side}_struct", None), (dict, list, tuple, type(None)))
            for side in ("inputs", "outputs")
        )
    )


def _with_canonical_input(
    model: keras.Model, form: InputForm, size: tuple[int, int], swaps: dict[int, Any], where: Path
) -> keras.Model:
    """Rebuild the model on a canonical input, with some of its layers replaced."""
    inputs = keras.Input((*size, 3), name=free_name(model, "pixels"))
    x: Any = inputs[..., :1] if form.grey else inputs  # of grey all three channels are equal
    if form.dtype.startswith(("int", "uint")):
        x = keras.ops.cast(x, form.dtype)
    if form.layout == "first":
        x = keras.ops.transpose(x, (0, 3, 1, 2))
    elif form.layout == "plane":
        x = keras.layers.Reshape(size, name=free_name(model, "plane"))(x)
    try:
        return keras.Model(inputs, single_tensor(run_graph(model, x, swaps)), name=model.name)
    except Exception as error:  # Keras raises many types on shapes that do not fit
        fixed = (
            "" if form.batch is None else f" It was saved for {count(form.batch, 'image')} at once; save it for any."
        )
        raise ModelError(
            f"Expected a model that takes (N, {size[0]}, {size[1]}, 3). Received: {where}: {error}{fixed}"
        ) from error


def _check_output(model: keras.Model, where: Path) -> None:
    outputs = tensor_names(model.outputs)
    if len(model.outputs) > 1:
        raise ModelError(
            f"Expected one output of shape (N, classes). Received: {where} gives {outputs}. "
            f"Cut it to its classifier; this says how, where it is known: {pipeline_command('inspect', where)}"
        )
    shape, hint = tuple(model.outputs[0].shape), ""
    if len(shape) == 4:
        downsampled = shape[1] is None or (model.inputs[0].shape[1] or 10**9) > 4 * shape[1]
        hint = (
            ": a feature map: a backbone without its head"
            if downsampled and (shape[3] or 0) > 4
            else ": an image or a map for each input, as in denoising or segmentation"
        )
    if len(shape) != 2 or shape[1] is None:
        raise ModelError(
            f"Expected an image classifier, output (N, classes). Received: {where} takes "
            f"{tensor_names(model.inputs)} and gives {outputs}{hint}."
        )


def _idle_layers(model: Any, inputs: np.ndarray) -> list[Any]:
    """Run the model to find Keras' augmentation layers that return their input unchanged at inference."""
    ops = keras.ops
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
        run_graph(model, ops.convert_to_tensor(inputs), {key: watched(layer) for key, layer in candidates.items()})
    return [layer for key, layer in candidates.items() if idle.get(key)]


def half_tolerance(model: Any) -> float:
    """Return how far the float32 model may be from the original, relative to the largest value."""
    kinds = {str(getattr(layer, "compute_dtype", "")) for layer in all_layers(model)}
    return BFLOAT16 if "bfloat16" in kinds else HALF if "float16" in kinds else EXACT


def _computes_in_half(layer: Any) -> bool:
    compute = str(getattr(layer, "compute_dtype", "float32"))
    return (
        compute != "float32"
        and compute.startswith(("float", "bfloat"))
        and not hasattr(layer, "layers")
        and not isinstance(layer, keras.layers.InputLayer)
    )


def _reshapes_of_batch(model: Any, batch: int) -> list[Any]:
    """Find Reshape operations whose target contains the fixed batch size, with the rest of the shape known."""
    return [
        operation
        for operation in getattr(getattr(model, "_functional", model), "operations", ())
        if type(operation).__name__ == "Reshape"
        and (getattr(operation, "newshape", None) or (None,))[0] == batch
        and None not in operation.output.shape[1:]
    ]
