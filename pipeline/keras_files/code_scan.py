"""Finds what would run or reach outside when a Keras model is built from its architecture. Imports no Keras.

Keras has had several holes here (CVE-2025-1550, -8747, -9905, -9906), all of one kind: the architecture names a
function or class, and Keras calls it. So everything that Keras would build or look up by name must be on a closed list
(``model_classes``, ``model_functions``) before Keras sees it; what is on none is refused, wherever it stands.
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
    lives_in,
    only_computes,
)

_WHOLE_MODEL = ("compile_config", "training_config")
# Values that Keras writes as dictionaries with a class name; nothing is looked up for them.
_VALUES = frozenset(
    """
    __tensor__ __numpy__ __keras_tensor__ __ellipsis__ __slice__ __tuple__ __bytes__ slice TensorShape InputSpec
    """.split()  # noqa: SIM905
)
# Settings whose text Keras looks up as the name of a function or class, and what is there to be found.
_LOOKED_UP = {
    "activation": ACTIVATIONS,
    "initializer": INITIALIZERS,
    "regularizer": REGULARIZERS,
    "constraint": CONSTRAINTS,
    "cell": frozenset(),  # these two are described, never only named
    "layer": frozenset(),
    "standardize": frozenset(("lower_and_strip_punctuation", "lower", "strip_punctuation")),
    "split": frozenset(("whitespace", "character")),
}
# Settings whose text is a path that the layer reads.
_PATH = re.compile(r"vocabulary|idf_weights|(.*_)?(file(name|path)?|path|dir(ectory)?|ur[il])")
_REGISTERED = "Custom>"  # Keras puts it before the names of some of its own classes
_COMPOSITE = "_COMPOSITE_TYPE"  # Keras 2 decodes the text after it on its own, past any scan

SAVED_MODEL = "SavedModel"  # as model.allow
FROZEN_GRAPH = "keras_resnet_to_tensorrt>FrozenGraph"  # our own layer, see pipeline.keras_files.frozen_graph
# Where the layer is, and where it was when older models were saved.
_FROZEN_GRAPH_MODULES = ("pipeline.keras_files.frozen_graph", "pipeline.frozen_graph")


@dataclass(frozen=True)
class Finding:
    """A part of a model file that runs code, or that no installed code can build.

    Attributes:
        kind: "Lambda", "SavedModel", "operation", "custom", "file" or "code".
        name: of the layer, class or operation.
        why: what it does, in words.
        allowable: whether the recipe can let it run by name.
    """

    kind: str
    name: str
    why: str
    allowable: bool


def scan_config(config: Any) -> list[Finding]:
    """Everything in an architecture that is not one of Keras' own parts, each name once.

    What the whole model was compiled with is left out: it is loaded with ``compile=False``. A model inside it is not.
    """
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _WHOLE_MODEL}
    return scan_node(config, is_layer=True)


def scan_node(node: Any, is_layer: bool) -> list[Finding]:
    """The same of a part that Keras builds on its own.

    Args:
        node: a dictionary of ``class_name`` and ``config``, or a list or dictionary of such.
        is_layer: only a layer is due here; otherwise an initializer, a metric and so on will do too.
    """
    found = {(f.kind, f.name): f for f in _scan(node, is_layer, "the model")}
    return list(found.values())


def refuse_unsafe(findings: Sequence[Finding], allow: Sequence[str], where: str) -> None:
    """Refuse what is not allowed by name.

    Args:
        findings: of ``scan_config``.
        allow: names that the recipe lets run (``model.allow``).
        where: the file, for the message.

    Raises:
        ModelError: something runs code and is not allowed, or cannot be allowed.
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
        raise ModelError(
            f"Expected a model without code in it. Received: {where} with {_what(refused)} {named}. "
            f"If you trust its author: --set 'model.allow=[{', '.join(names)}]'."
        )


def _what(findings: Sequence[Finding]) -> str:
    lambdas = [f for f in findings if f.kind == "Lambda"]
    return ("Lambda layers" if len(lambdas) > 1 else "a Lambda layer") if len(lambdas) == len(findings) else "code:"


def _scan(node: Any, is_layer: bool, owner: str) -> Iterator[Finding]:
    """What is found in a node; ``owner`` is the part it belongs to, for the messages."""
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
    opaque = False
    if isinstance(kind, str):
        if kind.removeprefix(_REGISTERED) in APPLICATION_LAYERS:
            kind = kind.removeprefix(_REGISTERED)
        owner = _label(kind, inner)
        for found in _judge(node, kind, inner, is_layer):
            yield found
            opaque = opaque or found.kind == "Lambda"  # the function it carries is part of it
    elif "class_name" in node or any(node.get(key) is not None for key in ("module", "registered_name")):
        yield Finding("code", str(kind)[:80], f"{owner} names a class by something that is no name", False)
    for key, value in node.items():
        if opaque and key == "config":
            continue
        if isinstance(value, str):
            yield from _judge_text(key, value, owner)
        # In Keras 1 and 2 a Sequential's config is the list of its layers itself.
        layers = key == "layers" or (key == "config" and kind == "Sequential" and isinstance(value, list))
        yield from _scan(value, layers or (key == "layer" and isinstance(value, dict)), owner)


def _label(kind: str, inner: Any) -> str:
    return f"{kind} {inner['name']!r}" if isinstance(inner, dict) and "name" in inner else kind


def _judge(node: dict[str, Any], kind: str, inner: Any, is_layer: bool) -> Iterator[Finding]:
    """What is wrong with a dictionary that Keras takes for an object."""
    origin = _judge_origin(node, kind, inner)
    if origin is not None:  # first, and of every kind: Keras 2 imports any module that is named, whatever for
        yield origin
        return
    module, name = node.get("module"), inner.get("name", kind) if isinstance(inner, dict) else kind
    if FROZEN_GRAPH in (kind, node.get("registered_name")):
        yield Finding("SavedModel", SAVED_MODEL, "a TensorFlow graph, taken from a SavedModel", True)
        yield from _frozen_graph(inner)
    elif kind == "Lambda" and name == SAVED_MODEL:
        yield Finding("code", SAVED_MODEL, "a Lambda layer under the name that allows a SavedModel", False)
    elif kind == "Lambda":
        yield Finding("Lambda", str(name), "runs whatever Python its author wrote", True)
    elif kind == "__lambda__":
        yield Finding("Lambda", "__lambda__", "a function saved as Python bytecode, runs whatever it holds", True)
    elif kind in ("TFOpLambda", "SlicingOpLambda"):
        function = inner.get("function") if isinstance(inner, dict) else None
        if not (isinstance(function, str) and only_computes(function)):
            why = "a TensorFlow function that may reach outside the model"
            yield Finding("operation", str(function), why, False)
    elif kind == "function":
        if not (isinstance(inner, str) and inner in CLASS_FUNCTIONS):
            yield Finding("code", str(inner), f"a function of {module or 'its author'}", False)
    elif kind == "TypeSpec":
        if node.get("type_spec") != "tf.TensorSpec":
            yield Finding("code", str(node.get("type_spec")), "a type that is decoded by code of its own", False)
    elif kind in _VALUES or (module is not None and ".ops" in module and kind in OPERATIONS):
        return
    elif module is not None and not kind[:1].isupper():
        yield Finding("code", f"{module}.{kind}", "a function, where a class is due", False)
    elif kind in APPLICATION_LAYERS:  # Keras 2 names no module in HDF5 files
        return
    elif kind not in KNOWN_LAYERS and (is_layer or kind not in PARTS):
        what = "layer" if is_layer else "part"
        foreign = FOREIGN_LAYERS.get(kind, f"{str(name)!r} is no {what} of Keras, and its code is not in the file")
        yield Finding("custom", kind, foreign, False)


def _judge_origin(node: dict[str, object], kind: str, inner: Any) -> Finding | None:
    """What is wrong with where a node says that its class or function comes from."""
    module, registered = node.get("module"), node.get("registered_name")
    if FROZEN_GRAPH in (kind, registered):  # under either name Keras finds the class that we registered
        known = kind in (FROZEN_GRAPH, "FrozenGraph") and registered in (None, FROZEN_GRAPH)
        if known and module in (None, *_FROZEN_GRAPH_MODULES):
            return None
        return Finding("custom", f"{module}.{kind}", "no FrozenGraph of this project", False)
    names: list[Any] = [None, inner if kind == "function" else kind]
    if kind != "function":
        names += [f"keras>{kind}", *([_REGISTERED + kind] if kind in OPTIMIZERS or kind in APPLICATION_LAYERS else [])]
    if registered not in names:
        return Finding("custom", str(registered), "a class whose code is not in the file", False)
    if module is None:
        return None
    if kind in _VALUES or kind in ("__lambda__", "TypeSpec"):
        known = module == "builtins"
    else:
        known = isinstance(module, str) and lives_in(kind, module)
    if known:
        return None
    if kind == "function":
        return Finding("code", str(inner), f"a function of {module}", False)
    if isinstance(module, str) and ".ops" in module:
        return Finding("operation", f"{module}.{kind}", "no operation of Keras that only computes", False)
    if not kind[:1].isupper():
        return Finding("code", f"{module}.{kind}", "a function, where a class is due", False)
    why = FOREIGN_LAYERS.get(kind, "") if module == "keras.layers" else ""
    return Finding("custom", f"{module}.{kind}", why or "a class whose code is not in the file", False)


def _judge_text(key: str, value: str, owner: str) -> Iterator[Finding]:
    """What is wrong with a setting that is a text: a name that Keras would look up, or a path it would read."""
    for setting, names in _LOOKED_UP.items():
        if (key == setting or key.endswith(f"_{setting}")) and value not in names:
            yield Finding("custom", value, f"no {setting} of Keras, and its code is not in the file ({owner})", False)
    if _PATH.fullmatch(key):
        yield Finding("file", owner, f"its {key} is a path ({value}): it reads a file", False)


def _frozen_graph(inner: Any) -> Iterator[Finding]:
    from pipeline.keras_files.graph_operations import frozen_operations

    graph = inner.get("graph") if isinstance(inner, dict) else None
    operations = frozen_operations(graph)
    if operations is None:
        yield Finding("code", FROZEN_GRAPH, "a TensorFlow graph that cannot be read", False)
        return
    for name, why in operations:
        yield Finding("operation", name, why, True)
