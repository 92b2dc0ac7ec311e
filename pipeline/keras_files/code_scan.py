"""Finds code that would run, and files that would be read, when Keras builds a model. Imports no Keras.

Keras has had several vulnerabilities of one kind (CVE-2025-1550, -8747, -9905, -9906): the architecture names a
function or class, and Keras calls it. So everything that Keras would build or look up by name must be on a closed list
(``allowed_names``) before Keras sees it; any other name is refused, wherever it stands.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from export.errors import ModelError
from export.words import listed
from pipeline.keras_files.allowed_names import (
    ACTIVATIONS,
    APPLICATION_LAYERS,
    CLASS_FUNCTIONS,
    CONSTRAINTS,
    FOREIGN_LAYERS,
    INITIALIZERS,
    KNOWN_LAYERS,
    OPERATIONS,
    OPTIMIZERS,
    PARTS,
    REGULARIZERS,
    is_defined_in,
    only_computes,
)

_WHOLE_MODEL = ("compile_config", "training_config")
# Values that Keras writes as dictionaries with a class name; nothing is looked up for them.
_VALUES = frozenset(
    """
    __tensor__ __numpy__ __keras_tensor__ __ellipsis__ __slice__ __tuple__ __bytes__ slice TensorShape InputSpec
    """.split()  # noqa: SIM905
)
# Settings whose text Keras looks up as the name of a function or class, and the names that are allowed.
_LOOKED_UP = {
    "activation": ACTIVATIONS,
    "initializer": INITIALIZERS,
    "regularizer": REGULARIZERS,
    "constraint": CONSTRAINTS,
    "cell": frozenset(),  # cells and layers are always dictionaries, never names
    "layer": frozenset(),
    "standardize": frozenset(("lower_and_strip_punctuation", "lower", "strip_punctuation")),
    "split": frozenset(("whitespace", "character")),
}
# Settings whose text is a path that the layer reads.
_PATH = re.compile(r"vocabulary|idf_weights|(.*_)?(file(name|path)?|path|dir(ectory)?|ur[il])")
_REGISTERED = "Custom>"  # the prefix of some of Keras' own classes
_COMPOSITE = "_COMPOSITE_TYPE"  # Keras 2 decodes the text after it by code that bypasses this scan

SAVED_MODEL = "SavedModel"  # its name in model.allow
FROZEN_GRAPH = "keras_resnet_to_tensorrt>FrozenGraph"  # our own layer, see pipeline.keras_files.frozen_graph
# Where the layer is, and where it was when older models were saved.
_FROZEN_GRAPH_MODULES = ("pipeline.keras_files.frozen_graph", "pipeline.frozen_graph")


@dataclass(frozen=True)
class Finding:
    """A part of a model file that runs code, or that no installed code can build.

    Attributes:
        kind: "Lambda", "SavedModel", "operation", "custom", "file" or "code".
        name: name of the layer, class or operation.
        why: what it does, for messages.
        allowable: whether the recipe can allow it by name.
    """

    kind: str
    name: str
    why: str
    allowable: bool


def scan_config(config: Any) -> list[Finding]:
    """Find everything in an architecture that is not one of Keras' own parts, each name once.

    The settings that the model was compiled with are left out, because it is loaded with ``compile=False``; those of
    nested models are not.
    """
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _WHOLE_MODEL}
    return scan_part(config, is_layer=True)


def scan_part(node: Any, is_layer: bool) -> list[Finding]:
    """Find the same in a part that Keras builds by itself.

    Args:
        node: a dictionary of ``class_name`` and ``config``, or a list or dictionary of such.
        is_layer: whether only a layer may stand here; otherwise an initializer, a metric and so on may too.
    """
    return list({(f.kind, f.name): f for f in _scan(node, is_layer, "the model")}.values())


def refuse_unsafe(findings: Sequence[Finding], allow: Sequence[str], where: str) -> None:
    """Refuse every finding that the recipe does not allow by name.

    Args:
        findings: result of ``scan_config``.
        allow: names that the recipe allows to run (``model.allow``).
        where: the file, for the message.

    Raises:
        ModelError: a finding is not allowed, or cannot be.
    """
    if final := [f for f in findings if not f.allowable]:
        named = listed((f"{f.name}: {f.why}" for f in final), most=4, separator="; ")
        raise ModelError(
            f"Expected a model of Keras' own layers. Received: {where} with {named}. Its author can rebuild it "
            "from Keras' layers, or save it whole with model.export('folder') and name that folder as model.path."
        )
    if refused := [f for f in findings if f.name not in allow]:
        names = list(dict.fromkeys([*allow, *(f.name for f in refused)]))
        named = listed((f"{f.name}: {f.why}" for f in refused), most=4, separator="; ")
        lambdas = "a Lambda layer" if len(refused) == 1 else "Lambda layers"
        raise ModelError(
            f"Expected a model without code in it. Received: {where} with "
            f"{lambdas if all(f.kind == 'Lambda' for f in refused) else 'code:'} {named}. "
            f"If you trust its author: --set 'model.allow=[{', '.join(names)}]'."
        )


def _scan(node: Any, is_layer: bool, owner: str) -> Iterator[Finding]:
    """Yield the findings in a node; ``owner`` is the part that it belongs to, for the messages."""
    if isinstance(node, (list, tuple)):
        if _COMPOSITE in node:
            yield Finding("code", _COMPOSITE, f"{owner} has a constant that is decoded past every check", False)
        for item in node:
            yield from _scan(item, is_layer, owner)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class_name")
    inner = node.get("config")
    findings: list[Finding] = []
    if isinstance(kind, str):
        if kind.removeprefix(_REGISTERED) in APPLICATION_LAYERS:
            kind = kind.removeprefix(_REGISTERED)
        owner = f"{kind} {inner['name']!r}" if isinstance(inner, dict) and "name" in inner else kind
        findings = list(_check_object(node, kind, inner, is_layer))
        yield from findings
    elif "class_name" in node or any(node.get(key) is not None for key in ("module", "registered_name")):
        yield Finding("code", str(kind)[:80], f"{owner} names a class by a value that is no name", False)
    for key, value in node.items():
        if key == "config" and any(f.kind == "Lambda" for f in findings):
            continue  # the function in it is the finding itself
        if isinstance(value, str):
            yield from _check_text(key, value, owner)
        # In Keras 1 and 2 a Sequential's config is the list of its layers itself.
        layers = key == "layers" or (key == "config" and kind == "Sequential" and isinstance(value, list))
        yield from _scan(value, layers or (key == "layer" and isinstance(value, dict)), owner)


def _check_object(node: dict[str, Any], kind: str, inner: Any, is_layer: bool) -> Iterator[Finding]:
    """Yield the findings of a dictionary that Keras builds an object from."""
    origin = _check_origin(node, kind, inner)
    if origin is not None:  # before all else and for every kind: Keras 2 imports any module that a node names
        yield origin
        return
    module, name = node.get("module"), inner.get("name", kind) if isinstance(inner, dict) else kind
    if FROZEN_GRAPH in (kind, node.get("registered_name")):
        yield Finding("SavedModel", SAVED_MODEL, "a TensorFlow graph from a SavedModel", True)
        yield from _frozen_graph(inner)
    elif kind == "Lambda" and name == SAVED_MODEL:
        yield Finding("code", SAVED_MODEL, "a Lambda layer under the name that allows a SavedModel", False)
    elif kind == "Lambda":
        yield Finding("Lambda", str(name), "runs any Python that its author wrote", True)
    elif kind == "__lambda__":
        yield Finding("Lambda", "__lambda__", "a function saved as Python bytecode, which runs as it is", True)
    elif kind in ("TFOpLambda", "SlicingOpLambda"):
        function = inner.get("function") if isinstance(inner, dict) else None
        if not (isinstance(function, str) and only_computes(function)):
            yield Finding("operation", str(function), "a TensorFlow function that may reach outside the model", False)
    elif kind == "function":
        if not (isinstance(inner, str) and inner in CLASS_FUNCTIONS):
            yield Finding("code", str(inner), f"a function of {module or 'its author'}", False)
    elif kind == "TypeSpec":
        if node.get("type_spec") != "tf.TensorSpec":
            yield Finding("code", str(node.get("type_spec")), "a type that is decoded by code of its own", False)
    elif kind in _VALUES or (module is not None and ".ops" in module and kind in OPERATIONS):
        return
    elif module is not None and not kind[:1].isupper():
        yield Finding("code", f"{module}.{kind}", "a function in the place of a class", False)
    elif not (kind in APPLICATION_LAYERS or kind in KNOWN_LAYERS or (kind in PARTS and not is_layer)):
        role = "layer" if is_layer else "part"
        why = FOREIGN_LAYERS.get(kind, f"{str(name)!r} is no {role} of Keras, and its code is not in the file")
        yield Finding("custom", kind, why, False)


def _check_origin(node: dict[str, object], kind: str, inner: Any) -> Finding | None:
    """Check the module and the registered name by which Keras finds the class or function of a node."""
    module, registered = node.get("module"), node.get("registered_name")
    if FROZEN_GRAPH in (kind, registered):  # Keras finds our registered class by either
        ours = kind in (FROZEN_GRAPH, "FrozenGraph") and registered in (None, FROZEN_GRAPH)
        if ours and module in (None, *_FROZEN_GRAPH_MODULES):
            return None
        return Finding("custom", f"{module}.{kind}", "no FrozenGraph of this project", False)
    names: list[Any] = [None, inner if kind == "function" else kind]
    if kind != "function":
        names += [f"keras>{kind}", *([_REGISTERED + kind] if kind in OPTIMIZERS or kind in APPLICATION_LAYERS else [])]
    if registered not in names:
        return Finding("custom", str(registered), "a class whose code is not in the file", False)
    builtin = kind in _VALUES or kind in ("__lambda__", "TypeSpec")
    if module is None or (builtin and module == "builtins"):
        return None
    if not builtin and isinstance(module, str) and is_defined_in(kind, module):
        return None
    if kind == "function":
        return Finding("code", str(inner), f"a function of {module}", False)
    if isinstance(module, str) and ".ops" in module:
        return Finding("operation", f"{module}.{kind}", "no operation of Keras that only computes", False)
    if not kind[:1].isupper():
        return Finding("code", f"{module}.{kind}", "a function in the place of a class", False)
    why = FOREIGN_LAYERS.get(kind, "") if module == "keras.layers" else ""
    return Finding("custom", f"{module}.{kind}", why or "a class whose code is not in the file", False)


def _check_text(key: str, value: str, owner: str) -> Iterator[Finding]:
    """Yield the findings of a text setting: a name that Keras would look up, or a path that it would read."""
    for setting, names in _LOOKED_UP.items():
        if (key == setting or key.endswith(f"_{setting}")) and value not in names:
            yield Finding("custom", value, f"no {setting} of Keras, and its code is not in the file ({owner})", False)
    if _PATH.fullmatch(key):
        yield Finding("file", owner, f"its {key} is a path ({value}): it reads a file", False)


def _frozen_graph(inner: Any) -> Iterator[Finding]:
    from pipeline.keras_files.graph_operations import find_frozen_operations

    graph = inner.get("graph") if isinstance(inner, dict) else None
    operations = find_frozen_operations(graph)
    if operations is None:
        yield Finding("code", FROZEN_GRAPH, "a TensorFlow graph that cannot be read", False)
    for name, why in operations or ():
        yield Finding("operation", name, why, True)
