"""Compares what an architecture asks for with what its file holds, before anything is built. Imports no Keras."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import ModelError
from pipeline.model_calls import check_calls
from pipeline.setting_limits import NO_SIZES, check_settings
from pipeline.words import count

# Keras makes a layer's weights before it looks for them in the file. So a file may ask for no more than it holds,
# up to what harms nobody: weights that files do not hold, such as the state of a random generator.
SPARE_VALUES = 2**20
MOST_LAYERS = 10_000  # NASNetLarge has 1,039
_CONSTANTS = ("__numpy__", "__tensor__", "__bytes__")  # what they hold is in the file itself
_RECURRENT = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}  # weights between a layer's own units, in squares of them
_RANK = re.compile(r"([123])D")


def check_promises(config: Mapping[str, Any], held: int, where: str) -> None:
    """Refuse an architecture that asks for far more than its file holds, or for tensors that fit no memory.

    It is a lower bound: what depends on a layer's input, ``pipeline.weight_budget`` counts while the layers are built.

    Args:
        config: the architecture.
        held: values of all weights in the file.
        where: the file, for the message.

    Raises:
        ModelError: with the layer and the key.
    """
    promised, layers = 0, 0
    for label, kind, node in _nodes(config):
        described = f"{where}, whose layer {label} has"
        check_settings(node, described)
        for key, value in node.items():
            layers += len(value) if isinstance(value, list) and key in ("layers", "config") else 0
        least = least_weights(kind, node)
        promised += least
        if promised > held + SPARE_VALUES:
            raise ModelError(
                f"Expected weights for every layer. Received: {where}, whose layer {label} asks for "
                f"{count(least, 'value')} "
                f"or more, its layers up to there for {promised:,}; the file holds {held:,}. It would fill the "
                "memory; do not use it."
            )
        if layers > MOST_LAYERS:
            raise ModelError(f"Expected at most {MOST_LAYERS:,} layers. Received: {where} with more.")
    check_calls(config, where)


def least_weights(kind: str, settings: Mapping[str, Any]) -> int:
    """Values of the weights that a layer has whatever its input is, or fewer."""
    units, filters = _count(settings, "units"), _count(settings, "filters", "nb_filter")
    if kind == "Embedding":
        return _count(settings, "input_dim") * _count(settings, "output_dim")
    if kind.endswith("Attention"):
        return _count(settings, "num_heads", "num_query_heads") * _count(settings, "key_dim", "head_dim")
    if kind == "Dense" and not units:
        return _count(settings, "output_dim")  # Keras 1
    for start, times in _RECURRENT.items():
        if kind.startswith(start):
            return times * units * units
    kernel = _kernel(kind, settings)
    if kind.startswith("ConvLSTM"):
        return 4 * kernel * filters * filters
    if kind.startswith("Depthwise"):
        return kernel * max(1, _count(settings, "depth_multiplier"))
    if kind.startswith("Separable"):
        return kernel + filters
    return max(units, kernel * filters)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every dictionary of an architecture: the layer that it belongs to, the class that it configures, itself."""
    waiting: list[tuple[str, str, Any]] = [("", "", config)]
    while waiting:
        label, kind, node = waiting.pop()
        if isinstance(node, list):
            waiting += [(label, kind, item) for item in node if isinstance(item, (dict, list))]
        elif isinstance(node, dict) and node.get("class_name") not in _CONSTANTS:
            yield label, kind, node
            inner, named = node.get("config"), node.get("class_name")
            for key, value in node.items():
                if key == "config" and isinstance(named, str):
                    name = inner.get("name") if isinstance(inner, dict) else None
                    waiting.append((f"{name} ({named})" if isinstance(name, str) else label, named, value))
                elif key not in NO_SIZES and isinstance(value, (dict, list)):
                    waiting.append((label, "", value))


def _kernel(kind: str, settings: Mapping[str, Any]) -> int:
    """Positions of a convolution's kernel, 1 where it has none."""
    if "nb_row" in settings:  # Keras 1
        return max(1, _count(settings, "nb_row") * _count(settings, "nb_col"))
    size = settings.get("kernel_size")
    if isinstance(size, list):
        return math.prod(n for n in size if isinstance(n, int) and n > 0)
    rank = _RANK.search(kind)
    return int(max(1, _count(settings, "kernel_size")) ** (int(rank.group(1)) if rank else 1))


def _count(settings: Mapping[str, Any], *keys: str) -> int:
    """The first of the keys that is a positive whole number, 0 where none is."""
    values = [settings.get(key) for key in keys]
    return next((n for n in values if isinstance(n, int) and n > 0), 0)
