"""A model as its author runs it, and calls of it with some operations replaced.

A model as its author runs it: fed in its own form, it gives the answers that the rewritten one must give.

Calls a Keras 3 model with some of its operations replaced, those of nested models too.
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
SMALLEST_PLANE = 16  # the same of (N, height, width), which may be a sequence of a few numbers each
_CHUNK = 8  # pictures at once, of 224x224; larger ones fewer


@dataclass(frozen=True)
class Form:
    """How a model takes a picture.

    Attributes:
        height: in pixels; None for any.
        width: in pixels; None for any.
        channels: 3, or 1 for greyscale.
        layout: ``"last"`` (N, height, width, channels), ``"first"`` (N, channels, height, width) or ``"plane"``
            (N, height, width), greyscale.
        dtype: of its input.
        batch: how many pictures at once; None for any number.
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
        """uint8 RGB pixels (N, height, width, 3) as the model takes them.

        Args:
            pixels: of the model's size.
            spec: what the author's pictures went through; for a greyscale model one mean and one scale.
        """
        values = replace(spec, grey=self.grey).apply(pixels)[..., : self.channels]
        if self.layout == "first":
            values = values.transpose(0, 3, 1, 2)
        elif self.layout == "plane":
            values = values[..., 0]
        return values.astype(self.dtype)


def form_of(model: keras.Model, where: Path) -> Form:
    """How a model takes a picture.

    Raises:
        ModelError: it takes something else than one picture.
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
    found = f"{where} takes {tuple(inputs[0].shape)}"
    layout, why = layout_of(tuple(shape))
    if layout is None:
        raise ModelError(f"Expected an image classifier, input (N, height, width, 3 or 1). Received: {found}: {why}.")
    form = Form(*_sides(tuple(shape), layout), layout, str(inputs[0].dtype), batch)
    if form.grey and len(model.outputs) == 1 and len(model.outputs[0].shape) > 2:
        return form  # its output says better what it is
    if min(form.height or SMALLEST, form.width or SMALLEST) < SMALLEST:
        raise ModelError(f"Expected an image classifier. Received: {found}, which is too small for an image.")
    return form


def layout_of(shape: tuple[int | None, ...]) -> tuple[str | None, str]:
    """How a model of this input shape, without the batch, takes pictures: its layout, or None and why it takes none."""
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


def _sides(shape: tuple[int | None, ...], layout: str) -> tuple[int | None, int | None, int]:
    """Height, width and channels."""
    if layout == "plane":
        return shape[0], shape[1], 1
    channels, height, width = shape if layout == "first" else (shape[2], shape[0], shape[1])
    return height, width, 3 if channels == 3 else 1


def answers(model: keras.Model, values: np.ndarray, batch: int | None = None) -> np.ndarray:
    """What a model answers at inference, a few pictures at a time.

    Args:
        model: of one input and one output.
        values: (N, ...), as it takes them.
        batch: how many at once; with fewer left, the last one is repeated. Defaults to None: as memory allows.

    Returns:
        float64 (N, ...).
    """
    pixels = max(1, int(np.prod(values.shape[1:])) // 3)
    size = batch or max(1, min(_CHUNK, _CHUNK * 224 * 224 // pixels))
    parts = []
    for start in range(0, len(values), size):
        chunk = values[start : start + size]
        count = len(chunk)
        if batch is not None and count < batch:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - count, axis=0)])
        parts.append(_call(model, chunk)[:count])
    return np.concatenate(parts).astype(np.float64)


def _call(model: Any, values: np.ndarray) -> np.ndarray:
    from keras import ops, tree

    form = getattr(getattr(model, "_functional", model), "_inputs_struct", None)
    given: Any = ops.convert_to_tensor(values)
    if isinstance(form, (Mapping, list, tuple)):
        given = tree.pack_sequence_as(form, [given])
    (result,) = tree.flatten(model(given, training=False))
    return np.asarray(ops.convert_to_numpy(ops.cast(result, "float32")))


def tensor_names(tensors: Any) -> str:
    """Names and shapes of Keras tensors, for a message."""
    return listed(f"{t.name.split(':')[0]} {tuple(t.shape)}" for t in tensors)


def all_layers(model: Any) -> list[Any]:
    """All layers, those of nested models included."""
    found = []
    for layer in model.layers:
        found += [layer, *(all_layers(layer) if hasattr(layer, "layers") else [])]
    return found


def run_graph(model: Any, x: Any, swaps: dict[int, Any]) -> Any:
    """Call a model on a tensor, symbolic or not, with some of its operations replaced.

    Args:
        model: Functional or Sequential.
        x: what it takes.
        swaps: id of an operation, also of a nested model, to what is called in its place; None hands on the input.
            The others are shared, weights and all.
    """
    import keras
    from keras import tree

    def operation(layer: Any) -> Any:
        if id(layer) in swaps:
            new = swaps[id(layer)]
            return (lambda x, *args, **options: x) if new is None else new
        if isinstance(layer, keras.Model) and any(id(inner) in swaps for inner in _operations(layer)):
            return _nested(layer, swaps)
        return layer if isinstance(x, keras.KerasTensor) else at_inference(layer)

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = operation(layer)(x)
        return x
    given = tree.pack_sequence_as(model._inputs_struct, [x])
    return model._run_through_graph(given, operation_fn=operation)


def at_inference(operation: Any) -> Any:
    """The operation as a model calls it at inference; by itself an augmentation layer is in training."""

    def call(*args: Any, **options: Any) -> Any:
        if "training" in getattr(operation, "_call_context_args", ()):
            options["training"] = False
        return operation(*args, **options)

    return call


def _operations(model: Any) -> list[Any]:
    """All operations, those of nested models included."""
    found: list[Any] = []
    for operation in getattr(getattr(model, "_functional", model), "operations", None) or model.layers:
        found += [operation, *(_operations(operation) if hasattr(operation, "layers") else [])]
    return found


def _nested(model: Any, swaps: dict[int, Any]) -> Any:
    """What is called in the place of a nested model in which something is replaced."""
    import keras

    def call(x: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            return flat(run_graph(model, x, swaps))
        if id(model) not in swaps:
            if len(model.inputs) != 1:
                raise ModelError(
                    f"Expected nested models of one input. Received: {model.name!r} of {len(model.inputs)}."
                )
            inner = keras.Input(tuple(model.inputs[0].shape)[1:], name=f"{model.name}_input")
            swaps[id(model)] = keras.Model(inner, flat(run_graph(model, inner, swaps)), name=model.name)
        return swaps[id(model)](x)

    return call


def free_name(model: Any, name: str) -> str:
    """The name, or one with a number behind it where the model has an operation of that name."""
    taken = {operation.name for operation in _operations(model)}
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)


def flat(value: Any) -> Any:
    """The tensor in a structure of one."""
    from keras import tree

    flat = tree.flatten(value)
    return flat[0] if len(flat) == 1 else value
