"""Counts how often a model calls its layers, from its architecture alone. Imports no Keras.

A model in a model is described once and may be called twice by the next, and so on: twenty of them are a file of some
kilobytes and a million calls, each of which Keras makes while it builds the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import ModelError
from pipeline.words import count

MOST_CALLS = 20_000  # for one image, each a few milliseconds to build; NASNetLarge makes 1,039
_WRAPPED = ("layer", "forward_layer", "backward_layer", "cell", "cells", "layers")


def check_calls(config: Mapping[str, Any], where: str) -> None:
    """Refuse an architecture that calls its layers more often than any network does.

    Args:
        config: the architecture, nested no deeper than ``export.bounded_json`` reads.
        where: the file, for the message.

    Raises:
        ModelError: with the layer that is called most often, and the number.
    """
    _, calls = _calls(config, where)
    if calls > MOST_CALLS:
        raise _too_many(where, "all", calls)


def _calls(node: Mapping[str, Any], where: str) -> tuple[int, int]:
    """How often a layer is called in the model that it is in, and how many calls one such call makes."""
    inbound = node.get("inbound_nodes")
    times = max(1, len(inbound)) if isinstance(inbound, list) else 1
    total = 1
    for layer in _layers(node.get("config")):
        inner_times, inner = _calls(layer, where)
        total += inner_times * inner
    if times * total > MOST_CALLS:
        settings = node.get("config")
        name = node.get("name") or (settings.get("name") if isinstance(settings, dict) else None)
        raise _too_many(where, f"layer {name} ({node.get('class_name')})", times * total)
    return times, total


def _layers(settings: Any) -> Iterator[Mapping[str, Any]]:
    """The layers that a layer's settings describe: of a model, and of one that wraps others."""
    # In Keras 1 and 2 a Sequential's config is the list of its layers itself.
    groups = [settings.get(key) for key in _WRAPPED] if isinstance(settings, dict) else [settings]
    for group in groups:
        for layer in group if isinstance(group, list) else [group]:
            if isinstance(layer, dict):
                yield layer


def _too_many(where: str, what: str, calls: int) -> ModelError:
    return ModelError(
        f"Expected a model that calls its layers at most {MOST_CALLS:,} times for an image. Received: {where}, in "
        f"{what}: {count(calls, 'call')}. It would hardly ever be built; do not use it."
    )
