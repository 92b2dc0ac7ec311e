"""Counts the weights that Keras makes while it builds a stranger's model, and stops before they fill the memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ModelError
from pipeline.model_promises import SPARE_VALUES
from pipeline.setting_limits import check_shape

BUILDS = 3  # a model of Keras 2 is built by Keras 3, which fails, by tf_keras, and once more by Keras 3


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

    classes: list[Any] = [keras.Layer]
    if keras2:
        with contextlib.suppress(ImportError):
            import tf_keras

            classes.append(tf_keras.layers.Layer)
    most, made = BUILDS * held + SPARE_VALUES, 0
    originals = [one.add_weight for one in classes]

    def counted(original: Any) -> Any:
        def add_weight(layer: Any, *args: Any, **options: Any) -> Any:
            nonlocal made
            given = next((a for a in args if not isinstance(a, str)), None)  # tf_keras takes a name before the shape
            values = _values(options.get("shape", given))
            if made + values > most:
                raise ModelError(
                    f"Expected weights for every layer. Received: {where}, whose layer {layer.name} asks for "
                    f"{values:,} values; the file holds {held:,}. It would fill the memory; do not use it."
                )
            made += values
            return original(layer, *args, **options)

        return add_weight

    for one, original in zip(classes, originals):
        one.add_weight = counted(original)
    try:
        yield
    finally:
        for one, original in zip(classes, originals):
            one.add_weight = original


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


def _values(shape: Any) -> int:
    sizes = (shape,) if isinstance(shape, int) else () if shape is None else tuple(shape)
    return math.prod(int(n) for n in sizes if n is not None)
