"""Counts the rounds of loops that Keras writes out while it builds a stranger's model; stops before they are many."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.errors import ModelError
from pipeline.model_calls import MOST_CALLS
from pipeline.words import count


@contextlib.contextmanager
def loop_budget(where: str, keras2: bool) -> Iterator[None]:
    """Within it, no layer is built that writes out a loop over more steps than a model has calls.

    ``TimeDistributed`` calls what it wraps once for each step of its input, and so does a recurrent layer with
    ``unroll``; how many these are, only Keras knows, when it builds the layer.

    Args:
        where: the file, for the message.
        keras2: whether tf_keras may build the model too.

    Raises:
        ModelError: by the layer's method; Keras passes it on.
    """
    import keras

    classes: list[Any] = [keras.layers.TimeDistributed, keras.layers.RNN]
    if keras2:
        classes += keras2_layers("RNN")
    known: dict[int, tuple[Any, int]] = {}  # the layer too, so that its identity stays its own

    def calls(layer: Any) -> int:
        """How many calls one call of a layer makes."""
        if id(layer) in known:
            return known[id(layer)][1]
        inner = getattr(layer, "operations", getattr(layer, "layers", ()))
        return 1 + sum(map(calls, inner))

    def counted(original: Any) -> Any:
        @functools.wraps(original)
        def build(layer: Any, *shapes: Any, **named: Any) -> Any:
            result = original(layer, *shapes, **named)
            shape = next(iter((*shapes, *named.values())))
            if isinstance(shape, (list, tuple)) and not isinstance(shape[0], (int, type(None))):
                shape = shape[0]  # a state comes with the sequence
            steps = tuple(shape)[1]
            if isinstance(steps, int) and getattr(layer, "unroll", True):
                rounds = steps * calls(layer.cell if hasattr(layer, "cell") else layer.layer)
                if rounds > MOST_CALLS:
                    raise ModelError(
                        f"Expected a model that calls its layers at most {MOST_CALLS:,} times for an image. Received: "
                        f"{where}, whose layer {layer.name} makes {count(rounds, 'call')} in {count(steps, 'step')}. "
                        "It would hardly "
                        "ever be built; do not use it."
                    )
                known[id(layer)] = layer, rounds
            return result

        return build

    with replaced(classes, "build", counted):
        yield


def keras2_layers(name: str) -> list[Any]:
    """The layer class of a name in Keras 2; none where that is not installed."""
    try:
        import tf_keras
    except ImportError:
        return []
    return [getattr(tf_keras.layers, name)]


@contextlib.contextmanager
def replaced(classes: Sequence[Any], method: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, a method of some classes is what ``change`` makes of it."""
    originals = [getattr(one, method) for one in classes]
    for one, original in zip(classes, originals):
        setattr(one, method, change(original))
    try:
        yield
    finally:
        for one, original in zip(classes, originals):
            setattr(one, method, original)
