"""Recurrent layers as the plain steps they are made of, for an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

# A step is some ten to twenty nodes; 128 are more rows of features than a classifier of pictures usually reads.
MOST_STEPS = 128


@contextlib.contextmanager
def unrolled(model: keras.Model, most_steps: int = MOST_STEPS) -> Iterator[None]:
    """Makes the recurrent layers of a model of few steps run unrolled while it is traced, and puts them back.

    An unrolled layer is MatMuls and sums that each runtime has, in each precision. A loop instead is a node of its
    own that only some parse, that FP16 conversion does not look into, and whose shapes nobody infers.

    Args:
        model: Functional; layers whose number of steps is not fixed, or larger, stay as they are.
        most_steps: Defaults to `MOST_STEPS`.
    """
    import keras

    changed = []
    try:
        for layer in model._flatten_layers():  # wrappers such as Bidirectional keep theirs in no public list
            if isinstance(layer, keras.layers.RNN) and not layer.unroll and 0 < _steps(layer) <= most_steps:
                changed.append(layer)
                layer.unroll = True
        yield
    finally:
        for layer in changed:
            layer.unroll = False


def _steps(layer: Any) -> int:
    """Returns how many steps a built recurrent layer takes, 0 where that is not fixed."""
    config: dict[str, Any] = layer.get_build_config() or {}
    for key in ("input_shape", "sequences_shape", "sequence_shape"):
        shape: Sequence[int | None] = config.get(key) or ()
        if len(shape) > 2:
            return shape[1] or 0
    return 0
