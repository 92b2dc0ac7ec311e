"""Limits of the sizes, weights and layer calls that an architecture declares, checked before Keras builds it.

Layers allocate tensors as large as the numbers in their settings, and weights before Keras looks for them in the file.
A nested model is described once and may be called twice by the model around it, and so on: twenty levels are a file of
some kilobytes and a million calls. Imports no Keras.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.errors import ModelError
from export.words import count

MOST_CALLS = 20_000  # for one image; each takes a few milliseconds to build, and NASNetLarge has 1,039
_WRAPPED = ("layer", "forward_layer", "backward_layer", "cell", "cells", "layers")


def check_calls(node: Mapping[str, Any], where: str) -> int:
    """Refuse an architecture that calls its layers more often than any network does.

    Args:
        node: the architecture or a layer in it, nested no deeper than ``export.records`` reads.
        where: the file, for the message.

    Returns:
        The number of layer calls that all calls of the node make.

    Raises:
        ModelError: with the innermost layer that makes too many calls, and their number.
    """
    inbound, settings = node.get("inbound_nodes"), node.get("config")
    times = max(1, len(inbound)) if isinstance(inbound, list) else 1
    calls = times * (1 + sum(check_calls(layer, where) for layer in _layers(settings)))
    if calls > MOST_CALLS:
        name = node.get("name") or (settings.get("name") if isinstance(settings, dict) else None)
        raise ModelError(
            f"Expected a model that calls its layers at most {MOST_CALLS:,} times for an image. Received: {where}, in "
            f"layer {name} ({node.get('class_name')}): {count(calls, 'call')}. It would take hours to build; do not "
            "use it."
        )
    return calls


def _layers(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the layers that the settings of a model or of a wrapper describe."""
    # In Keras 1 and 2 a Sequential's config is the list of its layers itself.
    groups = [settings.get(key) for key in _WRAPPED] if isinstance(settings, dict) else [settings]
    for group in groups:
        for layer in group if isinstance(group, list) else [group]:
            if isinstance(layer, dict):
                yield layer


LARGEST_SIDE = 2**14  # pixels of an image or a kernel, images of a fixed batch
LARGEST_TENSOR = 2**27  # values of one image between two layers: half a GiB; EfficientNet-B7's largest has 6 million
LARGEST_CONSTANT = 2**24  # values of a tensor that settings alone make, or repetitions of an input
LARGEST_COUNT = 2**20
LARGEST_MATRIX = 2**12  # rows of a square matrix
MOST_ROUNDS = 2**10  # of a loop in Python
MOST_TILES = 2**7  # on a side of an image, each with a histogram
LONGEST_SHAPE = 8

_MOST: Mapping[str, int] = {
    **dict.fromkeys(
        """
        size padding paddings pad_width output_padding cropping kernel_size pool_size dilation_rate height width nb_row
        nb_col target_height target_width crop_height crop_width num_rows num_columns fft_length num_mel_bins
        frame_length frame_step sequence_length sequence_stride output_sequence_length output_size
        """.split(),  # noqa: SIM905
        LARGEST_SIDE,
    ),
    **dict.fromkeys(
        """
        num_tokens num_bins max_tokens depth num_classes minlength maxlength num num_oov_indices n repeats max_number
        """.split(),  # noqa: SIM905
        LARGEST_COUNT,
    ),
    **dict.fromkeys(("power_iterations", "num_ops", "num_chains", "chain_depth", "ngrams"), MOST_ROUNDS),
    "tile_grid_size": MOST_TILES,
}
_FACTORS = frozenset(("kernel_size", "pool_size", "size", "repeats", "reps", "multiples"))
_TOGETHER: Mapping[tuple[str, str], int] = {
    ("height", "width"): LARGEST_TENSOR,
    ("target_height", "target_width"): LARGEST_TENSOR,
    ("fft_length", "num_mel_bins"): LARGEST_CONSTANT,
    ("num_rows", "num_columns"): LARGEST_CONSTANT,
}
# Numbers that are no sizes (positions, values, identities), and settings of a training that is not resumed.
NO_SIZES = frozenset(
    {"vocabulary", "bin_boundaries", "start", "stop", "end", "step", "value", "mask_value", "max_value", "min_value"}
    | {"seed", "shared_object_id", "compile_config", "training_config"}
)
# Functions of Keras 2 (TFOpLambda) and operations of Keras 3 whose numeric arguments are the size of their result.
_SQUARES = frozenset(("eye", "linalg.eye"))
_RANGES = frozenset(("range", "Arange"))
_MAKERS = frozenset(
    """
    fill linspace one_hot ones zeros repeat tile broadcast_to sequence_mask Bincount BroadcastTo Full Geomspace Linspace
    Logspace MultiHot OneHot Repeat Tile Vander
    """.split()  # noqa: SIM905
)


def check_settings(node: Mapping[str, Any], described: str) -> None:
    """Refuse numbers in a dictionary of an architecture that would take more memory or time than any model does.

    Args:
        node: the dictionary; those nested in it are not checked.
        described: its owner, for the message.

    Raises:
        ModelError: with the key and the number.
    """
    for key, value in node.items():
        if key not in NO_SIZES:
            _check_numbers(key, value, described)
    for keys, most in _TOGETHER.items():
        check_shape([node[key] for key in keys if key in node], f"{described} {' and '.join(keys)}", most)
    if isinstance(node.get("inbound_nodes"), list):
        _check_call(node, described)


def check_shape(shape: Sequence[Any], described: str, most: int = LARGEST_TENSOR) -> None:
    """Refuse a tensor that does not fit in memory.

    Args:
        shape: its dimensions; unknown ones count as 1.
        described: its owner, for the message.
        most: allowed number of values. Defaults to ``LARGEST_TENSOR``.

    Raises:
        ModelError: with the shape.
    """
    if math.prod(abs(n) or 1 for n in shape if isinstance(n, int)) > most:
        raise ModelError(
            f"Expected tensors of at most {most:,} values for an image. Received: {described} "
            f"{list(shape)}. It would fill the memory; do not use it."
        )


def _check_numbers(key: str, value: Any, described: str) -> None:
    if key in ("batch_shape", "batch_input_shape") and isinstance(value, list) and value:
        _check_numbers("size", value[0], f"{described} a fixed batch;")
    most, waiting = _MOST.get(key, LARGEST_TENSOR), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int):
            _check_number(value, most, f"{described} {key}")
        if isinstance(value, list):
            waiting += [item for item in value if isinstance(item, (int, list))]
            if len(value) <= LONGEST_SHAPE and all(n is None or isinstance(n, int) for n in value):
                check_shape(value, f"{described} {key}", LARGEST_CONSTANT if key in _FACTORS else LARGEST_TENSOR)


def _check_call(node: Mapping[str, Any], described: str) -> None:
    """Refuse too large numbers in the calls of a function whose result has their size."""
    settings, name = node.get("config"), node.get("class_name")
    if name == "TFOpLambda" and isinstance(settings, dict):
        name = settings.get("function")
    if not isinstance(name, str) or name not in _SQUARES | _RANGES | _MAKERS:
        return
    most = LARGEST_MATRIX if name in _SQUARES else LARGEST_COUNT
    numbers = list(_numbers(node["inbound_nodes"]))
    for number in numbers:
        if isinstance(number, int) or name in _RANGES:
            _check_number(number, most, f"{described} in a call of {name}")
    sizes = [abs(number) for number in numbers if number]
    if name in _RANGES and sizes and max(sizes) / min(sizes) > LARGEST_CONSTANT:
        raise ModelError(
            f"Expected ranges of at most {LARGEST_CONSTANT:,} values. Received: {described} in a call of {name} from "
            f"{min(sizes):g} to {max(sizes):g}. Do not use it."
        )


def _check_number(value: float, most: int, described: str) -> None:
    if not abs(value) <= most:
        raise ModelError(f"Expected sizes of at most {most:,}. Received: {described} {value:,}. Do not use it.")


def _numbers(value: Any) -> Iterator[float]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict) and value.get("class_name") != "__keras_tensor__":
            waiting += value.values()
        elif isinstance(value, (int, float)):
            yield value


# An architecture may declare no more weights than its file holds, beside a harmless number that files do not hold, such
# as the state of a random generator.
SPARE_VALUES = 2**20
MOST_LAYERS = 10_000  # NASNetLarge has 1,039
_CONSTANTS = ("__numpy__", "__tensor__", "__bytes__")  # their values are in the file itself
_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}  # matrices of weights between a layer's own units


def check_declared_sizes(config: Mapping[str, Any], held: int, where: str) -> None:
    """Refuse an architecture that declares far more weights than its file holds, or tensors that do not fit in memory.

    The count is a lower bound: weights that depend on a layer's input are counted by
    ``pipeline.keras_files.load_guards`` while the layers are built.

    Args:
        config: the architecture.
        held: number of values of all weights in the file.
        where: the file, for the message.

    Raises:
        ModelError: with the layer and the key.
    """
    declared = layers = 0
    for label, kind, node in _nodes(config):
        check_settings(node, f"{where}, whose layer {label} has")
        layers += sum(len(node[key]) for key in ("layers", "config") if isinstance(node.get(key), list))
        least = least_weights(kind, node)
        declared += least
        if declared > held + SPARE_VALUES:
            raise ModelError(
                f"Expected weights for every layer. Received: {where}, whose layer {label} asks for "
                f"{count(least, 'value')} or more, its layers up to there for {declared:,}; the file holds {held:,}. "
                "It would fill the memory; do not use it."
            )
        if layers > MOST_LAYERS:
            raise ModelError(f"Expected at most {MOST_LAYERS:,} layers. Received: {where} with more.")
    check_calls(config, where)


def least_weights(kind: str, settings: Mapping[str, Any]) -> int:
    """Count the weights, in values, that a layer has for any input: a lower bound."""
    units, filters = _count(settings, "units"), _count(settings, "filters", "nb_filter")
    if kind == "Embedding":
        return _count(settings, "input_dim") * _count(settings, "output_dim")
    if kind.endswith("Attention"):
        return _count(settings, "num_heads", "num_query_heads") * _count(settings, "key_dim", "head_dim")
    if kind == "Dense" and not units:
        return _count(settings, "output_dim")  # Keras 1
    if gates := next((matrices for prefix, matrices in _GATES.items() if kind.startswith(prefix)), 0):
        return gates * units * units
    kernel = _kernel(kind, settings)
    if kind.startswith("ConvLSTM"):
        return 4 * kernel * filters * filters
    if kind.startswith("Depthwise"):
        return kernel * max(1, _count(settings, "depth_multiplier"))
    if kind.startswith("Separable"):
        return kernel + filters
    return max(units, kernel * filters)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield every dictionary of an architecture, after the layer that it belongs to and the class it configures."""
    waiting: list[tuple[str, str, Any]] = [("", "", config)]
    while waiting:
        label, kind, node = waiting.pop()
        if isinstance(node, list):
            waiting += [(label, kind, item) for item in node if isinstance(item, (dict, list))]
        elif isinstance(node, dict) and node.get("class_name") not in _CONSTANTS:
            yield label, kind, node
            class_name = node.get("class_name")
            for key, value in node.items():
                if key == "config" and isinstance(class_name, str):
                    name = value.get("name") if isinstance(value, dict) else None
                    waiting.append((f"{name} ({class_name})" if isinstance(name, str) else label, class_name, value))
                elif key not in NO_SIZES and isinstance(value, (dict, list)):
                    waiting.append((label, "", value))


def _kernel(kind: str, settings: Mapping[str, Any]) -> int:
    """Count the positions of a convolution's kernel; 1 for a layer without one."""
    if "nb_row" in settings:  # Keras 1
        return max(1, _count(settings, "nb_row") * _count(settings, "nb_col"))
    size = settings.get("kernel_size")
    if isinstance(size, list):
        return math.prod(n for n in size if isinstance(n, int) and n > 0)
    rank = re.search(r"([123])D", kind)
    return int(max(1, _count(settings, "kernel_size")) ** (int(rank.group(1)) if rank else 1))


def _count(settings: Mapping[str, Any], *keys: str) -> int:
    """Return the first of these settings that is a positive integer, or 0."""
    values = [settings.get(key) for key in keys]
    return next((n for n in values if isinstance(n, int) and n > 0), 0)
