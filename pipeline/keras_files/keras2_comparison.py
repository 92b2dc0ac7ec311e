"""Comparison of a Keras 3 model with the Keras 2 model that it was built from, layer by layer on probe images.

Predictions alone would not suffice: a wrong function before a saturated softmax or gate shows no difference until an
image comes that does not saturate it.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from export.from_keras.probes import probe_pixels
from pipeline.keras_files.keras2_layers import plain_name

TOLERANCE = 1e-4  # relative to the largest value of a tensor; another order of summation gives 1e-6
NOISE = 32  # times the effect of rounding in the original, where a network amplifies it
ANY_SIZE = 96  # pixels of a side, for a model without a fixed size; Inception takes at least 75
BYTES = 2**27  # of the tensors in memory at a time, for each of the two models
RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))  # for any preprocessing, one of them excites the layers
COUNT = 3  # images


@dataclass(frozen=True)
class Difference:
    """The first tensor that differs; ``size`` is relative to the largest value, NaN if only one of them is finite."""

    layer: str
    size: float

    def __str__(self) -> str:
        by = "NaN" if math.isnan(self.size) else f"{self.size:.1e}"
        return f"off by {by} of the largest value, first in layer {self.layer!r}"


@dataclass(frozen=True)
class _Pair:
    name: str
    before: Any
    after: Any


def first_difference(original: Any, model: keras.Model) -> Difference | None:
    """Find the first layer whose values differ from those of Keras 2 by more than rounding.

    Args:
        original: tf_keras model from ``load_tf_keras``.
        model: Keras 3 model with the same names, but for slashes.
    """
    shape = original.inputs[0].shape
    height, width = shape[1:3] if len(shape) > 2 else (None, None)
    pixels = probe_pixels(height or ANY_SIZE, width or ANY_SIZE, count=COUNT)
    for low, high in RANGES:
        images = (pixels / 255.0 * (high - low) + low).astype(np.float32)
        pair, single = ([_fitted(part, t) for t in original.inputs] for part in (images[:2], images[2:]))
        # All layers once, then the outputs alone for another batch size and another image.
        difference = _compare(original, model, _pairs(original, model), pair)
        difference = difference or _compare(original, model, _outputs(original, model), single)
        if difference is not None:
            return difference
    return None


def _fitted(images: np.ndarray, tensor: Any) -> np.ndarray:
    """Fit images to the shape and dtype of an input, which may have other channels, a fixed batch or another rank."""
    batch, *sides = tensor.shape
    shape = [batch or len(images), *(ANY_SIZE if n is None else n for n in sides)]
    if shape[1:] != list(images.shape[1:]) or shape[0] != len(images):
        images = np.resize(images, shape)  # repeats the values as needed
    dtype = np.dtype(tensor.dtype.as_numpy_dtype)
    return np.rint(np.maximum(images, 0)).astype(dtype) if dtype.kind in "iu" else images.astype(dtype)


def _compare(
    original: Any, model: Any, pairs: list[_Pair], feed: list[np.ndarray], within: str = ""
) -> Difference | None:
    """Find the first pair whose values differ, or the first difference in a nested model."""
    moved = [x if x.dtype.kind in "iu" else np.nextafter(x, np.float32(np.inf)) for x in feed]
    for group in _groups(pairs, feed):
        before = _run(original, [p.before for p in group], feed)
        after = _run(model, [p.after for p in group], feed)
        sizes = [_difference(b, a) for b, a in zip(before, after)]
        if any(not size <= TOLERANCE for size in sizes):
            again = _run(original, [p.before for p in group], moved)
            noise = [_difference(b, a) for b, a in zip(before, again)]
            for pair, size, rounding in zip(group, sizes, noise):
                if not size <= max(TOLERANCE, NOISE * rounding):
                    inner = _inside(original, model, feed, within, pair.name)
                    return inner or Difference(within + pair.name, size)
    return _inside(original, model, feed, within) if len(pairs) > len(original.outputs) else None


def _inside(original: Any, model: Any, feed: list[np.ndarray], within: str, only: str = "") -> Difference | None:
    """Find the first difference inside the nested models, each fed with the original's values."""
    for node in _nodes(original):
        name, nested = node.layer.name, node.layer
        if not hasattr(nested, "_nodes_by_depth") or (only and name != only):
            continue
        counterpart = next((layer for layer in model.layers if layer.name == plain_name(name)), None)
        if counterpart is None or not hasattr(counterpart, "inputs"):
            continue
        inputs = _run(original, list(node.keras_inputs), feed)
        difference = _compare(nested, counterpart, _pairs(nested, counterpart), inputs, f"{within}{name}/")
        if difference is not None:
            return difference
    return None


def _pairs(original: Any, model: Any) -> list[_Pair]:
    """Pair the outputs of layers with the same name, in the original's order, then the outputs of both models."""
    before = [(node.layer.name, node.outputs) for node in _nodes(original) if not node.is_input]
    after = [(node.operation.name, node.outputs) for node in _nodes(model) if not node.is_input]
    calls, counterparts = Counter(plain_name(name) for name, _ in before), Counter(name for name, _ in after)
    counterpart = dict(after)
    pairs = []
    for name, outputs in before:
        new = plain_name(name)
        if calls[new] == counterparts[new] == 1:
            flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            pairs += [_Pair(name, b, a) for b, a in zip(flat, counterpart[new]) if len(b.shape) == len(a.shape)]
    return [*pairs, *_outputs(original, model)]


def _outputs(original: Any, model: Any) -> list[_Pair]:
    names = [t._keras_history.layer.name for t in original.outputs]
    return [_Pair(name, b, a) for name, b, a in zip(names, original.outputs, model.outputs)]


def _nodes(model: Any) -> list[Any]:
    functional = getattr(model, "_functional", None) or model
    by_depth: Mapping[int, list[Any]] = functional._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _groups(pairs: list[_Pair], feed: list[np.ndarray]) -> Iterator[list[_Pair]]:
    """Yield the pairs in the same order, in groups that fit in ``BYTES``."""
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
    """Compute the values of symbolic tensors of a model of either Keras."""
    import tf_keras

    build = keras.Model if isinstance(model, keras.Model) else tf_keras.Model
    inputs, values = (model.inputs, feed) if len(feed) > 1 else (model.inputs[0], feed[0])
    result = build(inputs, tensors)(values, training=False)
    return [np.asarray(value) for value in (result if isinstance(result, (list, tuple)) else [result])]


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; NaN if shapes or non-finite positions differ."""
    if before.shape != after.shape:
        return math.nan
    finite = np.isfinite(before)
    if not np.array_equal(finite, np.isfinite(after)):
        return math.nan
    before, after = before[finite], after[finite]
    if not before.size:
        return 0.0
    off = np.abs(before.astype(np.float32) - after.astype(np.float32)).max()
    return float(off / max(np.abs(before).max(), 1e-30))
