"""While a stranger's model is built: which modules Keras may import, how many weights and rounds it may take.

While a model is loaded, Keras may import its own modules and no others, whatever the file names.

An architecture names a module for each of its classes, and Keras 2 imports it: any file of that name in the working
directory would run. ``model_safety`` refuses such files before; this holds even where it overlooks one.

Counts the rounds of loops that Keras writes out while it builds a stranger's model; stops before they are many.

Counts the weights that Keras makes while it builds a stranger's model, and stops before they fill the memory.
"""

import contextlib
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
# Activation functions that Keras 2 takes from TensorFlow, and then imports from where they are; nothing beside them.
_ACTIVATIONS = {
    "tensorflow.python.ops.nn_ops": ("leaky_relu", "log_softmax_v2", "relu6"),
    "tensorflow.python.ops.nn_impl": ("swish",),
}
_OWN = re.compile(r"((tf_)?keras|tensorflow\.(python\.)?keras)(\.\w+)*|tensorflow\.python\.ops\.init_ops(_v2)?")


class _OwnModules:
    """What stands for ``importlib`` in the modules of Keras that read architectures."""

    @staticmethod
    def import_module(name: str) -> ModuleType | SimpleNamespace:
        """Import a module of Keras.

        Raises:
            ModelError: of anybody else.
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
def only_kerass_modules() -> Iterator[None]:
    """Within it, reading an architecture imports nothing but modules of Keras."""
    readers = [vars(sys.modules[name]) for name in _READERS if name in sys.modules]
    former = [reader["importlib"] for reader in readers]  # a Keras without it would import by other ways: not opened
    for reader in readers:
        reader["importlib"] = _OwnModules
    try:
        yield
    finally:
        for reader, module in zip(readers, former):
            reader["importlib"] = module


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
