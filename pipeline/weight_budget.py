"""Counts the weights that Keras makes while it builds a stranger's model, and stops before they fill the memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ModelError
from pipeline.loop_budget import keras2_layers, loop_budget, replaced
from pipeline.model_promises import SPARE_VALUES
from pipeline.setting_limits import check_shape
from pipeline.words import count

BUILDS = 3  # a model of Keras 2 is built by Keras 3, which fails, by tf_keras, and once more by Keras 3
LARGEST_INSIDE = 2**29  # values inside a layer, such as attention with 4,096 positions and 32 heads


@contextlib.contextmanager
def weight_budget(held: int, where: str, keras2: bool) -> Iterator[None]:
    """Within it, no model is built whose weights are far more than the file holds.

    How large a layer's weights are depends on its input, which only Keras knows. So it is asked as it makes them; what
    would be too much is refused before it is allocated.

    Args:
        held: values of all weights in the file.
        where: the file, for the message.
        keras2: whether tf_keras may build the model too.

    Raises:
        ModelError: by the layer's method; Keras passes it on.
    """
    import keras

    most, made = BUILDS * held + SPARE_VALUES, 0

    def counted(original: Any) -> Any:
        def add_weight(layer: Any, *args: Any, **options: Any) -> Any:
            nonlocal made
            given = next((a for a in args if not isinstance(a, str)), None)  # tf_keras takes a name before the shape
            values = _values(options.get("shape", given))
            if made + values > most:
                raise ModelError(
                    f"Expected weights for every layer. Received: {where}, whose layer {layer.name} asks for "
                    f"{count(values, 'value')}; the file holds {held:,}. It would fill the memory; do not use it."
                )
            made += values
            return original(layer, *args, **options)

        return add_weight

    classes = [keras.Layer, *(keras2_layers("Layer") if keras2 else ())]
    with replaced(classes, "add_weight", counted), loop_budget(where, keras2):
        yield


def check_tensors(model: Any, where: str) -> None:
    """Refuse a model that makes a tensor out of one image that fits no memory.

    Raises:
        ModelError: with the layer.
    """
    waiting = [model]
    while waiting:
        layer = waiting.pop()
        waiting += getattr(layer, "operations", getattr(layer, "layers", ()))  # of a Sequential, layers alone
        for node in getattr(layer, "_inbound_nodes", ()):
            for tensor in node.output_tensors:
                check_shape(tensor.shape[1:], f"{where}, whose layer {layer.name} makes")
            _check_inside(layer, node.input_tensors, where)


def _check_inside(layer: Any, tensors: Any, where: str) -> None:
    """The tensors that a layer makes on the way to its output."""
    described, kind = f"{where}, whose layer {layer.name} makes", type(layer).__name__
    if kind.endswith("Attention"):
        check_shape(_scores(layer, tensors), f"{described} scores of", LARGEST_INSIDE)
    elif kind == "ContrastLimitedAdaptiveHistogramEqualization":
        *sides, channels = tensors[0].shape[1:]  # padded to whole tiles, and one of 256 is 1 for each value
        padded = [(side or 1) + tiles for side, tiles in zip(sides, layer.tile_grid_size)]
        check_shape([*padded, channels, 256], f"{described} histograms of", LARGEST_INSIDE)
    elif kind == "Pipeline":  # its layers are called inside its call, where Keras keeps no record
        import keras

        inner = tensors[0]
        for step in layer.layers:
            _check_inside(step, [inner], where)
            inner = keras.KerasTensor(step.compute_output_spec(inner).shape)
            check_shape(inner.shape[1:], f"{where}, whose layer {step.name} makes")


def _scores(layer: Any, tensors: Any) -> list[int]:
    """The largest tensor in a layer of attention: what every position of the query is to every one of the value."""
    query, value = tensors[0].shape, tensors[min(1, len(tensors) - 1)].shape
    heads = getattr(layer, "num_query_heads", getattr(layer, "num_heads", 1))
    each = query[-1] if type(layer).__name__ == "AdditiveAttention" else heads
    axes = getattr(layer, "_attention_axes", None) or range(1, len(value) - 1)
    return [each or 1, math.prod(n or 1 for n in query[1:-1]), math.prod(value[axis] or 1 for axis in axes)]


def _values(shape: Any) -> int:
    sizes = (shape,) if isinstance(shape, int) else () if shape is None else tuple(shape)
    return math.prod(int(n) for n in sizes if n is not None)
