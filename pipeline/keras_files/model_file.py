"""A model file as a record, and walks over its architecture in the form of any Keras version. Imports no Keras.

An architecture is a tree of dictionaries. A node is the dictionary of a layer or a model, with ``class_name`` and
``config``. The content of a file is untrusted, so nothing is assumed about it.
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
    """Return the configuration of a node; empty if that is no dictionary."""
    inner = node.get("config")
    return inner if isinstance(inner, dict) else {}


def name_of(node: Node) -> str:
    """Return the name of a layer."""
    return str(node.get("name") or settings_of(node).get("name") or "unnamed")


def is_model(node: Node) -> bool:
    """Whether a node describes layers; the config of a Sequential of Keras 1 and early Keras 2 is their list."""
    return isinstance(node.get("config"), list) or "layers" in settings_of(node)


def inner_layers(node: Any) -> list[dict[str, Any]]:
    """List the direct layers of a model's node, in their order."""
    inner = node.get("config") if isinstance(node, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def by_name(node: Any) -> dict[str, dict[str, Any]]:
    """Return the direct layers of a model's node by name."""
    return {name_of(layer): layer for layer in inner_layers(node)}


def layers_of(config: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield every layer of an architecture as (name, class name, config), nested models before their layers."""
    for layer in inner_layers(config if isinstance(config, dict) and "config" in config else {"config": config}):
        yield name_of(layer), str(layer.get("class_name")), settings_of(layer)
        if is_model(layer):
            yield from layers_of(layer)


def names_at(node: Node, end: str) -> list[str]:
    """List the names of a model's input or output layers.

    Args:
        node: the model.
        end: "input_layers" or "output_layers".
    """
    return _names(settings_of(node).get(end))


def _names(entries: Any) -> list[str]:
    """List the names in ["a", 0, 0], [["a", 0, 0], ...] or a dictionary of these."""
    if isinstance(entries, list) and entries and isinstance(entries[0], str):
        return [entries[0]]
    inner = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
    return [name for entry in inner for name in _names(entry)]


def batch_shape(settings: Node) -> Any:
    """Return the shape of an input with its batch, as the file has it; None if it has none."""
    shape = settings.get("batch_shape") or settings.get("batch_input_shape")
    return shape.get("items") if isinstance(shape, dict) else shape  # in a SavedModel


def config_to_float32(config: Any) -> Any:
    """Copy an architecture, or a part of one, with float32 in place of half precision."""
    if isinstance(config, (list, tuple)):
        return type(config)(config_to_float32(item) for item in config)
    if not isinstance(config, dict):
        return config
    changed = {}
    for key, value in config.items():
        policy = value.get("config") if isinstance(value, dict) else None
        name = policy.get("name") if isinstance(policy, dict) else getattr(value, "name", value)
        half = key in ("dtype", "Tout", "DstT") and isinstance(name, str) and name.removeprefix("mixed_") in HALF
        changed[key] = "float32" if half else config_to_float32(value)
    return changed


ARCHIVE, HDF5, SAVED_MODEL_FOLDER = ".keras archive", "HDF5 file", "SavedModel folder"


@dataclass(frozen=True)
class Weight:
    """One weight of the file."""

    layer: str
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFile:
    """Content of a model file.

    Attributes:
        path: file or folder.
        kind: ``ARCHIVE``, ``HDF5`` or ``SAVED_MODEL_FOLDER``.
        written_by: writer and version, such as "Keras 2.2.5".
        config: the architecture as Keras wrote it; None without one (a SavedModel by ``model.export``).
        weights: all weights of the model.
        findings: parts that would run code or cannot be built.
        facts: further facts of this kind of file, for display.
        held: number of values of all weights, those of an optimizer included.
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
        """Whether Keras 1 or 2 wrote the file."""
        return not self.written_by.startswith("Keras 3")

    @property
    def signature(self) -> tuple[str, dict[str, dict[str, str]]]:
        """A SavedModel's signature: its name, its inputs and outputs by name, as ``float32 (None, 32, 32, 3)``."""
        signatures = self.facts.get("signatures", {})
        name = "serving_default" if "serving_default" in signatures else next(iter(signatures), "")
        return name, signatures.get(name, {})
