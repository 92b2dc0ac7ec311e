"""Holds a Keras 3 model against the Keras 2 model that it was made of: every layer, on pictures that move them.

Answers alone would not do: where a softmax or a gate is saturated, another function before it changes nothing, until a
photograph comes that it is not sure of.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from export.from_keras.check import probe_pixels
from pipeline.keras_files.keras2_layers import plain_name

TOLERANCE = 1e-4  # relative to the largest value of a tensor; another order of summation gives 1e-6
NOISE = 32  # times what the original's own rounding does, where a network enlarges that
ANY_SIZE = 96  # pixels, for a model that takes any; Inception takes no fewer than 75
BYTES = 2**27  # of the tensors that are held at a time, for each of the two models
RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))  # whatever the preprocessing, one of them moves the layers
COUNT = 3


@dataclass(frozen=True)
class Difference:
    """The first tensor that differs; as text, for a message."""

    layer: str
    size: float  # relative to the largest value; NaN where one of them is not finite

    def __str__(self) -> str:
        by = "NaN" if math.isnan(self.size) else f"{self.size:.1e}"
        return f"off by {by} of the largest value, first in layer {self.layer!r}"


@dataclass(frozen=True)
class _Pair:
    name: str
    before: Any
    after: Any


def first_difference(original: Any, model: keras.Model) -> Difference | None:
    """The first layer whose values differ from those of Keras 2; None where all are equal but for rounding.

    Args:
        original: of tf_keras, as ``load_tf_keras`` gives it.
        model: of Keras 3, with the same names but for slashes.
    """
    pixels = probe_pixels(*_size(original), count=COUNT)
    for low, high in RANGES:
        images = (pixels / 255.0 * (high - low) + low).astype(np.float32)
        found = _compare(original, model, _pairs(original, model), [_fitted(images[:2], t) for t in original.inputs])
        if found is None:  # another batch size, and another picture; what every layer gives was seen
            alone = [_fitted(images[2:3], t) for t in original.inputs]
            found = _compare(original, model, _outputs(original, model), alone)
        if found is not None:
            return found
    return None


def _size(original: Any) -> tuple[int, int]:
    shape = tuple(original.inputs[0].shape)
    height, width = (shape[1:3] if len(shape) >= 3 else (None, None)) if len(shape) > 2 else (None, None)
    return height or ANY_SIZE, width or ANY_SIZE


def _fitted(images: np.ndarray, tensor: Any) -> np.ndarray:
    """The pictures in the shape and type of an input: of other channels, of a fixed batch, or of no picture at all."""
    shape = [len(images) if n is None and axis == 0 else n for axis, n in enumerate(tensor.shape)]
    shape = [ANY_SIZE if n is None else n for n in shape]
    shape[0] = tensor.shape[0] or len(images)
    if shape[1:] != list(images.shape[1:]) or shape[0] != len(images):
        images = np.resize(images, shape)  # repeats the values as often as it takes
    dtype = np.dtype(tensor.dtype.as_numpy_dtype)
    return np.rint(np.maximum(images, 0)).astype(dtype) if dtype.kind in "iu" else images.astype(dtype)


def _compare(
    original: Any, model: Any, pairs: list[_Pair], feed: list[np.ndarray], within: str = ""
) -> Difference | None:
    """The first of the pairs whose values differ, or the first difference in a model among the layers."""
    moved = [x if x.dtype.kind in "iu" else np.nextafter(x, np.float32(np.inf)) for x in feed]
    for some in _groups(pairs, feed):
        before = _run(original, [p.before for p in some], feed)
        after = _run(model, [p.after for p in some], feed)
        sizes = [_difference(b, a) for b, a in zip(before, after)]
        if any(not size <= TOLERANCE for size in sizes):
            again = _run(original, [p.before for p in some], moved)
            noise = [_difference(b, a) for b, a in zip(before, again)]
            for pair, size, own in zip(some, sizes, noise):
                if not size <= max(TOLERANCE, NOISE * own):
                    inner = _inside(original, model, feed, within, pair.name)
                    return inner or Difference(within + pair.name, size)
    return _inside(original, model, feed, within) if len(pairs) > len(original.outputs) else None


def _inside(original: Any, model: Any, feed: list[np.ndarray], within: str, only: str = "") -> Difference | None:
    """The first difference inside the models among the layers, each fed with what the original gives it."""
    for node in _nodes(original):
        name, nested = node.layer.name, node.layer
        if not hasattr(nested, "_nodes_by_depth") or (only and name != only):
            continue
        counterpart = next((one for one in model.layers if one.name == plain_name(name)), None)
        if counterpart is None or not hasattr(counterpart, "inputs"):
            continue
        given = _run(original, list(node.keras_inputs), feed)
        found = _compare(nested, counterpart, _pairs(nested, counterpart), given, f"{within}{name}/")
        if found is not None:
            return found
    return None


def _pairs(original: Any, model: Any) -> list[_Pair]:
    """What layers of one name give, in the original's order, and the outputs of both models."""
    before = [(node.layer.name, node.outputs) for node in _nodes(original) if not node.is_input]
    after = [(node.operation.name, node.outputs) for node in _nodes(model) if not node.is_input]
    calls, counterparts = Counter(plain_name(name) for name, _ in before), Counter(name for name, _ in after)
    made = dict(after)
    pairs = []
    for name, outputs in before:
        new = plain_name(name)
        if calls[new] == counterparts[new] == 1:
            flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            pairs += [_Pair(name, b, a) for b, a in zip(flat, made[new]) if len(b.shape) == len(a.shape)]
    return [*pairs, *_outputs(original, model)]


def _outputs(original: Any, model: Any) -> list[_Pair]:
    names = [t._keras_history.layer.name for t in original.outputs]
    return [_Pair(name, b, a) for name, b, a in zip(names, original.outputs, model.outputs)]


def _nodes(model: Any) -> list[Any]:
    functional = getattr(model, "_functional", None) or model
    by_depth: Mapping[int, list[Any]] = functional._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _groups(pairs: list[_Pair], feed: list[np.ndarray]) -> Iterator[list[_Pair]]:
    """Pairs in the same order, as many at a time as fit ``BYTES``."""
    group: list[_Pair] = []
    held = 0
    for pair in pairs:
        size = 4 * len(feed[0]) * math.prod(n or ANY_SIZE for n in pair.before.shape[1:])
        if group and held + size > BYTES:
            yield group
            group, held = [], 0
        group.append(pair)
        held += size
    yield group


def _run(model: Any, tensors: list[Any], feed: list[np.ndarray]) -> list[np.ndarray]:
    """The values of symbolic tensors of a model of either Keras."""
    import tf_keras

    build = keras.Model if isinstance(model, keras.Model) else tf_keras.Model
    inputs, given = (model.inputs, feed) if len(feed) > 1 else (model.inputs[0], feed[0])
    result = build(inputs, tensors)(given, training=False)
    return [np.asarray(value) for value in (result if isinstance(result, (list, tuple)) else [result])]


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    """The largest difference, relative to the largest value; NaN where the shapes or what is not finite differ."""
    if before.shape != after.shape:
        return math.nan
    finite = np.isfinite(before)
    if not np.array_equal(finite, np.isfinite(after)):
        return math.nan
    if not finite.all():
        before, after = before[finite], after[finite]
    if not before.size:
        return 0.0
    off = np.abs(before.astype(np.float32) - after.astype(np.float32)).max()
    return float(off / max(np.abs(before).max(), 1e-30))
