"""Running a Keras 3 model as it was saved, in its own input form, or with some of its operations replaced.

The outputs of the original are what each rewrite is compared with. Operations of nested models can be replaced too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import ModelError
from export.preprocessing import PreprocessingSpec
from export.words import listed

if TYPE_CHECKING:
    import keras


SMALLEST = 8  # pixels; below this a (N, height, width, channels) input is no image
SMALLEST_PLANE = 16  # pixels; the same for (N, height, width), which may be a sequence of short vectors
_CHUNK = 8  # images of 224x224 in one call; fewer of larger ones


@dataclass(frozen=True)
class InputForm:
    """The input form of a model.

    Attributes:
        height: in pixels; None for any.
        width: in pixels; None for any.
        channels: 3, or 1 for greyscale.
        layout: ``"last"`` (N, height, width, channels), ``"first"`` (N, channels, height, width) or ``"plane"``
            (N, height, width), greyscale.
        dtype: of its input.
        batch: fixed batch size; None for any.
    """

    height: int | None
    width: int | None
    channels: int
    layout: str
    dtype: str
    batch: int | None

    @property
    def grey(self) -> bool:
        """Greyscale."""
        return self.channels == 1

    def feed(self, pixels: np.ndarray, spec: PreprocessingSpec) -> np.ndarray:
        """Preprocess uint8 RGB pixels (N, height, width, 3) and convert them to this form.

        Args:
            pixels: of the model's size.
            spec: the preprocessing in training; for a greyscale model one mean and one scale.
        """
        values = replace(spec, grey=self.grey).apply(pixels)[..., : self.channels]
        if self.layout == "first":
            values = values.transpose(0, 3, 1, 2)
        elif self.layout == "plane":
            values = values[..., 0]
        return values.astype(self.dtype)


def input_form_of(model: keras.Model, where: Path) -> InputForm:
    """Return the input form of a model.

    Raises:
        ModelError: its input is not one image.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ModelError(
            f"Expected a Functional or Sequential model with a known input size. Received: {where}, a "
            f"{type(model).__name__} without one. Call it once on an image, and save it again."
        )
    if len(inputs) > 1:
        raise ModelError(f"Expected one input, an image. Received: {where} with {len(inputs)}: {tensor_names(inputs)}.")
    batch, *shape = inputs[0].shape
    received = f"{where} takes {tuple(inputs[0].shape)}"
    layout, reason = layout_of(tuple(shape))
    if layout is None:
        raise ModelError(
            f"Expected an image classifier, input (N, height, width, 3 or 1). Received: {received}: {reason}."
        )
    channels_last = {"last": shape, "first": [*shape[1:], shape[0]], "plane": [*shape, 1]}
    height, width, channels = channels_last[layout]
    form = InputForm(height, width, 3 if channels == 3 else 1, layout, str(inputs[0].dtype), batch)
    not_one_vector = len(model.outputs) == 1 and len(model.outputs[0].shape) > 2  # the error about it is clearer
    if min(form.height or SMALLEST, form.width or SMALLEST) < SMALLEST and not (form.grey and not_one_vector):
        raise ModelError(f"Expected an image classifier. Received: {received}, which is too small for an image.")
    return form


def layout_of(shape: tuple[int | None, ...]) -> tuple[str | None, str]:
    """Return the layout of an input shape without its batch, or None and what it holds instead of images."""
    if len(shape) == 2 and all(side is not None and side >= SMALLEST_PLANE for side in shape):
        return "plane", ""
    if len(shape) != 3:
        kinds = {0: "numbers", 1: "rows of numbers", 2: "sequences", 4: "videos or volumes"}
        return None, kinds.get(len(shape), "no images")
    if shape[2] in (1, 3):
        return "last", ""
    if shape[0] in (1, 3) and (shape[2] is None or shape[2] > 4):
        return "first", ""
    return None, f"{shape[2]} channels" if shape[2] is not None else "any number of channels"


def run_model(model: keras.Model, values: np.ndarray, batch: int | None = None) -> np.ndarray:
    """Run a model at inference, in small batches.

    Args:
        model: of one input and one output.
        values: (N, ...), in the model's input form.
        batch: fixed batch size; a last smaller batch is filled up with copies of its last row. Defaults to None: by
            the size of the images.

    Returns:
        float64 (N, ...).
    """
    pixels = max(1, int(np.prod(values.shape[1:])) // 3)
    size = batch or max(1, min(_CHUNK, _CHUNK * 224 * 224 // pixels))
    parts = []
    for start in range(0, len(values), size):
        chunk = values[start : start + size]
        padding = np.repeat(chunk[-1:], size - len(chunk) if batch is not None else 0, axis=0)
        parts.append(_call(model, np.concatenate([chunk, padding]))[: len(chunk)])
    return np.concatenate(parts).astype(np.float64)


def _call(model: Any, values: np.ndarray) -> np.ndarray:
    from keras import ops, tree

    form = getattr(getattr(model, "_functional", model), "_inputs_struct", None)
    inputs: Any = ops.convert_to_tensor(values)
    if isinstance(form, (Mapping, list, tuple)):
        inputs = tree.pack_sequence_as(form, [inputs])
    (result,) = tree.flatten(model(inputs, training=False))
    return np.asarray(ops.convert_to_numpy(ops.cast(result, "float32")))


def tensor_names(tensors: Any) -> str:
    """List names and shapes of Keras tensors for a message."""
    return listed(f"{t.name.split(':')[0]} {tuple(t.shape)}" for t in tensors)


def all_layers(model: Any) -> list[Any]:
    """Return all layers, including nested models and their layers."""
    return [
        inner for layer in model.layers for inner in (layer, *(all_layers(layer) if hasattr(layer, "layers") else ()))
    ]


def run_graph(model: Any, x: Any, swaps: dict[int, Any]) -> Any:
    """Call a model on a tensor, symbolic or not, with some of its operations replaced.

    Args:
        model: Functional or Sequential.
        x: its input.
        swaps: replacements by the id of an operation, also of a nested model's; None passes the input through. All
            other operations are shared with the model, including their weights.
    """
    import keras
    from keras import tree

    def operation(layer: Any) -> Any:
        if id(layer) in swaps:
            replacement = swaps[id(layer)]
            return (lambda x, *args, **options: x) if replacement is None else replacement
        if isinstance(layer, keras.Model) and any(id(inner) in swaps for inner in _operations(layer)):
            return _nested(layer, swaps)
        return layer if isinstance(x, keras.KerasTensor) else at_inference(layer)

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = operation(layer)(x)
        return x
    return model._run_through_graph(tree.pack_sequence_as(model._inputs_struct, [x]), operation_fn=operation)


def at_inference(operation: Any) -> Any:
    """Wrap an operation to run at inference: called on its own, an augmentation layer is in training mode."""

    def call(*args: Any, **options: Any) -> Any:
        if "training" in getattr(operation, "_call_context_args", ()):
            options["training"] = False
        return operation(*args, **options)

    return call


def _operations(model: Any) -> list[Any]:
    """Return all operations, including nested models and their operations."""
    return [
        inner
        for operation in getattr(getattr(model, "_functional", model), "operations", None) or model.layers
        for inner in (operation, *(_operations(operation) if hasattr(operation, "layers") else ()))
    ]


def _nested(model: Any, swaps: dict[int, Any]) -> Any:
    """Return the call that stands for a nested model with replaced operations."""
    import keras

    def call(x: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            return single_tensor(run_graph(model, x, swaps))
        if id(model) not in swaps:
            if len(model.inputs) != 1:
                raise ModelError(
                    f"Expected nested models of one input. Received: {model.name!r} of {len(model.inputs)}."
                )
            inner = keras.Input(tuple(model.inputs[0].shape)[1:], name=f"{model.name}_input")
            swaps[id(model)] = keras.Model(inner, single_tensor(run_graph(model, inner, swaps)), name=model.name)
        return swaps[id(model)](x)

    return call


def free_name(model: Any, name: str) -> str:
    """Return the name, with a number appended where the model has an operation of that name."""
    taken = {operation.name for operation in _operations(model)}
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)


def single_tensor(value: Any) -> Any:
    """Return the tensor of a structure that holds only one, or else the structure."""
    from keras import tree

    tensors = tree.flatten(value)
    return tensors[0] if len(tensors) == 1 else value
