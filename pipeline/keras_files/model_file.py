"""Walks over a model's architecture as the ages of Keras wrote it, a tree of dictionaries. Imports no Keras.

A node is what Keras writes of a layer or a model: its ``class_name`` and its ``config``. Nothing is taken for granted
of what a stranger's file holds.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.keras_files.code_scan import Finding

Node = Mapping[str, Any]
HALF = ("float16", "bfloat16")


def settings_of(node: Node) -> dict[str, Any]:
    """What configures a node; empty where that is no dictionary."""
    inner = node.get("config")
    return inner if isinstance(inner, dict) else {}


def name_of(node: Node) -> str:
    """The name of a layer."""
    return str(node.get("name") or settings_of(node).get("name") or "unnamed")


def is_model(node: Node) -> bool:
    """Whether a node describes layers of its own; a Sequential of Keras 1 and early 2 is configured by their list."""
    return isinstance(node.get("config"), list) or "layers" in settings_of(node)


def inner_layers(node: Any) -> list[dict[str, Any]]:
    """The layers right below a model's node, in their order."""
    inner = node.get("config") if isinstance(node, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def by_name(node: Any) -> dict[str, dict[str, Any]]:
    """The same by their names."""
    return {name_of(layer): layer for layer in inner_layers(node)}


def layers_of(config: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every layer of an architecture as (name, class name, config), nested models before their layers."""
    for layer in inner_layers(config if isinstance(config, dict) and "config" in config else {"config": config}):
        yield name_of(layer), str(layer.get("class_name")), settings_of(layer)
        if is_model(layer):
            yield from layers_of(layer)


def names_at(node: Node, end: str) -> list[str]:
    """Names of the layers at an end of a model.

    Args:
        node: the model's.
        end: "input_layers" or "output_layers".
    """
    return _names(settings_of(node).get(end))


def _names(entries: Any) -> list[str]:
    """Names in ["a", 0, 0], [["a", 0, 0], ...] or a dictionary of these."""
    if isinstance(entries, list) and entries and isinstance(entries[0], str):
        return [entries[0]]
    inner = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
    return [name for entry in inner for name in _names(entry)]


def batch_shape(settings: Node) -> Any:
    """The shape of an input with its batch, as it is written down; None where it is not."""
    shape = settings.get("batch_shape") or settings.get("batch_input_shape")
    return shape.get("items") if isinstance(shape, dict) else shape  # in a SavedModel


def in_single(config: Any) -> Any:
    """An architecture, or a part of one, with float32 in the place of half precision."""
    if isinstance(config, (list, tuple)):
        return type(config)(in_single(item) for item in config)
    if not isinstance(config, dict):
        return config
    changed = {}
    for key, value in config.items():
        policy = value.get("config") if isinstance(value, dict) else None
        name = policy.get("name") if isinstance(policy, dict) else getattr(value, "name", value)
        half = key in ("dtype", "Tout", "DstT") and isinstance(name, str) and name.removeprefix("mixed_") in HALF
        changed[key] = "float32" if half else in_single(value)
    return changed


ARCHIVE, HDF5, SAVED_MODEL_FOLDER = ".keras archive", "HDF5 file", "SavedModel folder"


@dataclass(frozen=True)
class Weight:
    """One weight as the file holds it."""

    layer: str
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFile:
    """What a file says of the model in it.

    Attributes:
        path: file or folder.
        kind: ``ARCHIVE``, ``HDF5`` or ``SAVED_MODEL_FOLDER``.
        written_by: such as "Keras 2.2.5".
        config: the architecture as Keras wrote it; None where there is none (a SavedModel by ``model.export``).
        weights: all of them.
        findings: what would run, or cannot be built.
        facts: kind-specific, for people.
        held: values of all weights, those of an optimizer too.
    """

    path: Path
    kind: str
    written_by: str
    config: dict[str, Any] | None
    weights: tuple[Weight, ...]
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    held: int = 0

    @property
    def legacy(self) -> bool:
        """Written by Keras 1 or 2."""
        return not self.written_by.startswith("Keras 3")

    @property
    def signature(self) -> tuple[str, dict[str, dict[str, str]]]:
        """Name of a SavedModel's signature, and its inputs and outputs by name, as ``float32 (None, 32, 32, 3)``."""
        signatures = self.facts.get("signatures", {})
        name = "serving_default" if "serving_default" in signatures else next(iter(signatures), "")
        return name, signatures.get(name, {})
