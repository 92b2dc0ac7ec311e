"""Calls a Keras 3 model with some of its operations replaced, those of nested models too."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ModelError


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
