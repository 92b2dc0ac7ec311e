"""Limits while Keras builds an untrusted model: modules that it imports, weights and unrolled loops that it makes.

An architecture names a module for each of its classes, and Keras 2 imports it: any file of that name in the working
directory would run. ``code_scan`` refuses such files before; this is the second line of defence. Weights and loops are
counted as Keras makes them, because their size depends on a layer's input.
"""

import functools
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from export.errors import ModelError
from export.words import count
from pipeline.keras_files.declared_sizes import MOST_CALLS, SPARE_VALUES, check_shape

_READERS = ("keras.src.saving.serialization_lib", "tf_keras.src.saving.serialization_lib")
# Activation functions of Keras 2 that it imports from TensorFlow; nothing else of these modules is available.
_ACTIVATIONS = {
    "tensorflow.python.ops.nn_ops": ("leaky_relu", "log_softmax_v2", "relu6"),
    "tensorflow.python.ops.nn_impl": ("swish",),
}
_OWN = re.compile(r"((tf_)?keras|tensorflow\.(python\.)?keras)(\.\w+)*|tensorflow\.python\.ops\.init_ops(_v2)?")


class _OwnModules:
    """Replaces ``importlib`` in the modules of Keras that read architectures."""

    @staticmethod
    def import_module(name: str) -> ModuleType | SimpleNamespace:
        """Import a module of Keras.

        Raises:
            ModelError: it is no module of Keras.
        """
        if name in _ACTIVATIONS:
            module = importlib.import_module(name)
            return SimpleNamespace(**{function: getattr(module, function) for function in _ACTIVATIONS[name]})
        if _OWN.fullmatch(name) is None:
            raise ModelError(
                f"Expected a model of Keras' own modules. Received: one that imports {name[:80]!r}. Don't use the file."
            )
        return importlib.import_module(name)


@contextmanager
def keras_modules_only() -> Iterator[None]:
    """Let Keras import only its own modules while it reads an architecture.

    Raises:
        AttributeError: a version of Keras that imports modules by other means.
    """
    readers = [sys.modules[name] for name in _READERS if name in sys.modules]
    with replaced(readers, "importlib", lambda _: _OwnModules):
        yield


@contextmanager
def loop_budget(where: str, keras2: bool) -> Iterator[None]:
    """Refuse layers that unroll a loop over more steps than a model has calls, while they are built.

    ``TimeDistributed`` calls its inner layer once for each step of its input, and so does a recurrent layer with
    ``unroll``; only Keras knows the number of steps, when it builds the layer.

    Args:
        where: the file, for the message.
        keras2: whether tf_keras may build the model too.

    Raises:
        ModelError: from the layer's method; Keras passes it on.
    """
    import keras

    classes = [keras.layers.TimeDistributed, keras.layers.RNN, *(keras2_layer_classes("RNN") if keras2 else ())]
    known: dict[int, tuple[Any, int]] = {}  # with the layer, so that its id is not reused

    def calls(layer: Any) -> int:
        """Count the calls that one call of a layer makes."""
        if id(layer) in known:
            return known[id(layer)][1]
        return 1 + sum(map(calls, _inner(layer)))

    def counted(original: Any) -> Any:
        @functools.wraps(original)
        def build(layer: Any, *shapes: Any, **named: Any) -> Any:
            result = original(layer, *shapes, **named)
            shape = next(iter((*shapes, *named.values())))
            if isinstance(shape, (list, tuple)) and not isinstance(shape[0], (int, type(None))):
                shape = shape[0]  # the shape of the sequence; those of the states follow
            steps = tuple(shape)[1]
            if isinstance(steps, int) and getattr(layer, "unroll", True):
                rounds = steps * calls(layer.cell if hasattr(layer, "cell") else layer.layer)
                if rounds > MOST_CALLS:
                    raise ModelError(
                        f"Expected a model that calls its layers at most {MOST_CALLS:,} times for an image. Received: "
                        f"{where}, whose layer {layer.name} makes {count(rounds, 'call')} in {count(steps, 'step')}. "
                        "It would take hours to build; do not use it."
                    )
                known[id(layer)] = layer, rounds
            return result

        return build

    with replaced(classes, "build", counted):
        yield


def keras2_layer_classes(name: str) -> list[Any]:
    """List the layer class of this name in Keras 2; none if it is not installed."""
    try:
        import tf_keras
    except ImportError:
        return []
    return [getattr(tf_keras.layers, name)]


@contextmanager
def replaced(owners: Sequence[Any], name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute of classes or modules by the result of ``change``, and restore it at the end.

    Raises:
        AttributeError: an owner has no such attribute.
    """
    originals = [getattr(owner, name) for owner in owners]
    for owner, original in zip(owners, originals):
        setattr(owner, name, change(original))
    try:
        yield
    finally:
        for owner, original in zip(owners, originals):
            setattr(owner, name, original)


BUILDS = 3  # a Keras 2 model is built by Keras 3, which fails, then by tf_keras, then by Keras 3 again
LARGEST_INSIDE = 2**29  # values inside a layer, such as attention with 4,096 positions and 32 heads


@contextmanager
def weight_budget(held: int, where: str, keras2: bool) -> Iterator[None]:
    """Refuse a model with far more weights than the file holds, while it is built.

    The size of a layer's weights depends on its input, which only Keras knows. So they are counted as Keras makes them,
    and refused before they are allocated.

    Args:
        held: number of values of all weights in the file.
        where: the file, for the message.
        keras2: whether tf_keras may build the model too.

    Raises:
        ModelError: from the layer's method; Keras passes it on.
    """
    import keras

    allocated = 0

    def counted(original: Any) -> Any:
        def add_weight(layer: Any, *args: Any, **options: Any) -> Any:
            nonlocal allocated
            shape = options.get("shape", next((a for a in args if not isinstance(a, str)), None))  # after a name
            sizes = (shape,) if shape is None or isinstance(shape, int) else shape
            values = math.prod(int(n) for n in sizes if n is not None)
            if allocated + values > BUILDS * held + SPARE_VALUES:
                raise ModelError(
                    f"Expected weights for every layer. Received: {where}, whose layer {layer.name} asks for "
                    f"{count(values, 'value')}; the file holds {held:,}. It would fill the memory; do not use it."
                )
            allocated += values
            return original(layer, *args, **options)

        return add_weight

    classes = [keras.Layer, *(keras2_layer_classes("Layer") if keras2 else ())]
    with replaced(classes, "add_weight", counted), loop_budget(where, keras2):
        yield


def check_tensors(model: Any, where: str) -> None:
    """Refuse a model with a tensor for one image that does not fit in memory.

    Raises:
        ModelError: with the layer.
    """
    waiting = [model]
    while waiting:
        layer = waiting.pop()
        waiting += _inner(layer)
        for node in getattr(layer, "_inbound_nodes", ()):
            for tensor in node.output_tensors:
                check_shape(tensor.shape[1:], f"{where}, whose layer {layer.name} makes")
            _check_inside(layer, node.input_tensors, where)


def _inner(layer: Any) -> Any:
    return getattr(layer, "operations", getattr(layer, "layers", ()))  # a Sequential has layers only


def _check_inside(layer: Any, tensors: Any, where: str) -> None:
    """Refuse too large tensors inside a layer's call."""
    described, kind = f"{where}, whose layer {layer.name} makes", type(layer).__name__
    if kind.endswith("Attention"):
        check_shape(_scores(layer, tensors), f"{described} scores of", LARGEST_INSIDE)
    elif kind == "ContrastLimitedAdaptiveHistogramEqualization":
        *sides, channels = tensors[0].shape[1:]  # padded to whole tiles, each value one-hot in 256 bins
        padded = [(side or 1) + tiles for side, tiles in zip(sides, layer.tile_grid_size)]
        check_shape([*padded, channels, 256], f"{described} histograms of", LARGEST_INSIDE)
    elif kind == "Pipeline":  # Keras does not record the calls of its layers
        import keras

        inner = tensors[0]
        for step in layer.layers:
            _check_inside(step, [inner], where)
            inner = keras.KerasTensor(step.compute_output_spec(inner).shape)
            check_shape(inner.shape[1:], f"{where}, whose layer {step.name} makes")


def _scores(layer: Any, tensors: Any) -> list[int]:
    """Return the shape of an attention layer's largest tensor: a score for each pair of query and value positions."""
    query, value = tensors[0].shape, tensors[min(1, len(tensors) - 1)].shape
    heads = getattr(layer, "num_query_heads", getattr(layer, "num_heads", 1))
    depth = query[-1] if type(layer).__name__ == "AdditiveAttention" else heads
    axes = getattr(layer, "_attention_axes", None) or range(1, len(value) - 1)
    return [depth or 1, math.prod(n or 1 for n in query[1:-1]), math.prod(value[axis] or 1 for axis in axes)]
