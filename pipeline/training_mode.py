"""Layers that Keras 2 calls in training mode for ever, and what is said where they are taken at inference.

``layer(x, training=True)`` holds in Keras 2's ``predict`` too: a BatchNormalization goes on using the statistics of the
batch, a Dropout goes on dropping. Keras 3's ``predict`` overrides it. Imports no Keras.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pipeline.architecture import inner_layers, settings_of
from pipeline.errors import ModelError
from pipeline.model_file import ModelFile
from pipeline.words import count, listed

_NORMALISING = "BatchNormalization"
_RATES = ("rate", "dropout", "recurrent_dropout", "stddev", "factor")


def taken_at_inference(file: ModelFile, choice: Literal["refuse", "inference"]) -> tuple[str, ...]:
    """How the model that is taken over differs from its file, as sentences; empty where it does not.

    Args:
        file: the model's.
        choice: ``model.called_in_training`` of the recipe.

    Raises:
        ModelError: layers were called in training mode, and the recipe does not take them at inference.
    """
    called = _called(file)
    if not called:
        return ()
    names = [name for name, _ in called]
    named = listed(names)
    why = " and ".join(dict.fromkeys(reason for _, reason in called))
    if choice == "refuse":
        raise ModelError(
            f"Expected layers that answer as at inference. Received: {file.path}, with training=True in the calls of "
            f"{count(len(names), 'layer')} ({named}). Keras 2 keeps to that, so that the answer for a picture depends "
            f"on {why}, which no engine can follow. To take these layers at inference, as Keras 3 does, with other "
            "answers than the file's: --set model.called_in_training=inference"
        )
    were = "was" if len(names) == 1 else "were"
    return (
        f"The model does not answer as {file.path.name} does in Keras 2: {len(names):,} of its layers ({named}) {were} "
        f"called with training=True, so that an answer depends on {why}. Here it answers as at inference, as "
        "model.called_in_training asks. Parity is to the model so taken, not to the file.",
    )


def called_in_training(file: ModelFile) -> tuple[str, ...]:
    """Names of the layers that Keras 2 calls with ``training=True`` and that mind it, nested models' included."""
    return tuple(name for name, _ in _called(file))


def _called(file: ModelFile) -> list[tuple[str, str]]:
    return list(dict(_search(file.config)).items()) if file.legacy else []


def _search(config: Any) -> Iterator[tuple[str, str]]:
    for layer in inner_layers(config):
        if any(options.get("training") in (True, 1) for options in _call_options(layer.get("inbound_nodes"))):
            yield from ((str(layer.get("name")), reason) for reason in _minds(layer))
        yield from _search(layer)


def _minds(layer: dict[str, Any]) -> list[str]:
    """What a layer's answer depends on in training mode; empty where the mode makes no difference."""
    kind, settings = str(layer.get("class_name")), settings_of(layer)
    inner = [*inner_layers(layer), *(part for part in (settings.get("layer"),) if isinstance(part, dict))]
    if inner:
        return sorted({reason for part in inner for reason in _minds(part)}, reverse=True)[:1]
    if _NORMALISING in kind:  # a frozen one keeps to what it has learned, in either mode
        return [] if settings.get("trainable") is False else ["the other pictures of its batch"]
    given = [settings[key] for key in _RATES if key in settings]
    return ["chance"] if kind.startswith("Random") or any(given) else []


def _call_options(nodes: Any) -> Iterator[dict[str, Any]]:
    """The named arguments of every call: ``{"kwargs": {...}}`` in Keras 3, ``[name, node, tensor, {...}]`` before."""
    if isinstance(nodes, dict):
        if isinstance(nodes.get("kwargs"), dict):
            yield nodes["kwargs"]
    elif isinstance(nodes, list):
        if len(nodes) == 4 and isinstance(nodes[3], dict):
            yield nodes[3]
        for node in nodes:
            if isinstance(node, (dict, list)):
                yield from _call_options(node)
