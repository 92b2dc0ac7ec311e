"""Rewrites frozen TensorFlow graphs: the final activation at the very end, a free batch, float32 throughout.

Whether a rewritten graph answers as before is not asked here; ``saved_comparison`` runs both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_HALF = ("float16", "bfloat16")
# Behind a softmax these leave its values as they are, in another shape at most (Mean: over one position).
_HANDING_ON = frozenset(
    """
    Cast CheckNumerics EnsureShape ExpandDims Identity Mean PreventGradient Reshape Squeeze StopGradient
    """.split()  # noqa: SIM905
)
_MIXING = _HANDING_ON | frozenset(
    "Add AddN AddV2 AvgPool ConcatV2 Max MaxPool Mul Pack RealDiv Sub Transpose".split()  # noqa: SIM905
)
_LINEAR = frozenset("Add AddV2 BiasAdd Conv2D LogSoftmax MatMul Mean".split())  # noqa: SIM905


@dataclass(frozen=True)
class End:
    """A graph, the tensor to take from it, and the activation that belongs behind it.

    Attributes:
        definition: the graph.
        fetch: the tensor's name.
        activation: "softmax", "sigmoid" or "linear"; None where it cannot be told.
    """

    definition: Any
    fetch: str
    activation: str | None


def ends(definition: Any, output: str) -> Iterator[End]:
    """Ways to read the end of a graph, the best first; the last is the graph as it is.

    A softmax or sigmoid need not be the last operation: a Reshape, Squeeze or Identity behind it is done to its input
    instead, which is the same if the shapes agree.

    Args:
        definition: a frozen ``GraphDef``.
        output: name of its output tensor.
    """
    nodes = {node.name: node for node in definition.node}
    path: list[Any] = []
    tensor = output
    while (node := nodes[_owner(tensor)]).op in _HANDING_ON and (source := _source(node)):
        path.append(node)
        tensor = source
    found = _activation(node, nodes)
    if found is not None:
        before, name = found
        if all(one.op in ("Identity", "StopGradient", "PreventGradient") for one in path):
            yield End(definition, before, name)
        else:
            changed = type(definition)()
            changed.CopyFrom(definition)
            next(one for one in changed.node if one.name == path[-1].name).input[0] = before
            yield End(changed, output, name)
        yield End(definition, output, None)
        return
    linear = node.op in _LINEAR or any(one.op in ("Reshape", "Mean") for one in path)
    probabilities = any(_activation(one, nodes) for one in _mixed(nodes[_owner(output)], nodes))
    yield End(definition, output, "linear" if linear and not probabilities else None)


def free_batch(definition: Any, feed: str, batch: int, shape: Callable[[str], Any]) -> Any:
    """A graph of a fixed batch whose reshapes take any.

    Args:
        definition: a frozen ``GraphDef``.
        feed: name of its input tensor.
        batch: what it is fixed to.
        shape: of a tensor by its name, as a list, None where it is not known.
    """
    changed = type(definition)()
    changed.CopyFrom(definition)
    nodes = {node.name: node for node in changed.node}
    moving = _descendants(nodes, _owner(feed))
    for node in list(changed.node):
        if node.op != "Reshape" or node.name not in moving:
            continue
        given, made = shape(_tensor(node.input[0])), shape(f"{node.name}:0")
        if not given or not made or given[0] != batch or made[0] != batch or None in made[1:]:
            continue
        sizes = changed.node.add(name=f"{node.name}/any_batch", op="Const")
        values = np.asarray([-1, *made[1:]], np.int32)
        sizes.attr["dtype"].type = 3  # int32
        sizes.attr["value"].tensor.CopyFrom(_as_proto(values))
        node.input[1] = sizes.name
        node.attr["Tshape"].type = 3
    return changed


def in_single(definition: Any) -> Any:
    """A graph with float32 in the place of half precision, in its functions too."""
    from tensorflow.core.framework import types_pb2

    half = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
    changed = type(definition)()
    changed.CopyFrom(definition)
    functions = changed.library.function
    for node in (*changed.node, *(node for function in functions for node in function.node_def)):
        for attribute in node.attr.values():
            if attribute.type in half:
                attribute.type = types_pb2.DT_FLOAT
            elif attribute.HasField("tensor") and attribute.tensor.dtype in half:
                attribute.tensor.CopyFrom(_as_proto(_values(attribute.tensor).astype(np.float32)))
            for index, kind in enumerate(attribute.list.type):
                if kind in half:
                    attribute.list.type[index] = types_pb2.DT_FLOAT
    for function in functions:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            if argument.type in half:
                argument.type = types_pb2.DT_FLOAT
    return changed


def own_functions(definition: Any) -> Any:
    """A graph whose functions (the bodies of loops) have names that no other graph's have.

    TensorFlow knows functions by name only, all over the process, and keeps to the first of a name.
    """
    changed = type(definition)()
    changed.CopyFrom(definition)
    functions = changed.library.function
    digest = hashlib.sha256(definition.library.SerializeToString(deterministic=True)).hexdigest()[:16]
    names = {function.signature.name: f"{function.signature.name}_{digest}" for function in functions}
    for node in (*changed.node, *(node for function in functions for node in function.node_def)):
        node.op = names.get(node.op, node.op)
        for attribute in node.attr.values():
            for called in (*([attribute.func] if attribute.HasField("func") else []), *attribute.list.func):
                called.name = names.get(called.name, called.name)
    for function in functions:
        function.signature.name = names[function.signature.name]
    for gradient in changed.library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)
    return changed


def is_half(dtype: str) -> bool:
    """Whether a type, by TensorFlow's name, is half precision."""
    return dtype in _HALF


def has_half(definition: Any) -> bool:
    """Whether anything in a graph is in half precision."""
    from tensorflow.core.framework import types_pb2

    half = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
    nodes = (*definition.node, *(node for function in definition.library.function for node in function.node_def))
    return any(attribute.type in half for node in nodes for attribute in node.attr.values())


def _activation(node: Any, nodes: dict[str, Any]) -> tuple[str, str] | None:
    """What a softmax or sigmoid is applied to, and its name; None for any other operation."""
    source = _source(node)
    if node.op in ("Softmax", "Sigmoid"):
        return source, node.op.lower()
    if node.op != "RealDiv":  # Keras writes a softmax of more than two axes out: exp(x - max) / sum of these
        return None
    above, below = nodes.get(_owner(node.input[0])), nodes.get(_owner(node.input[1]))
    if above is None or below is None or (above.op, below.op) != ("Exp", "Sum"):
        return None
    return (_source(above), "softmax") if _owner(below.input[0]) == above.name else None


def _mixed(node: Any, nodes: dict[str, Any]) -> Iterator[Any]:
    """The operations that an output is a sum, mean or other mixture of, and those in between."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one.name in seen:
            continue
        seen.add(one.name)
        yield one
        if one.op in _MIXING:
            waiting += [nodes[_owner(name)] for name in one.input if not name.startswith("^")]


def _descendants(nodes: dict[str, Any], start: str) -> set[str]:
    """The names of all nodes that a node's values reach."""
    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for name in node.input:
            readers.setdefault(_owner(name), []).append(node.name)
    found, waiting = {start}, [start]
    while waiting:
        for name in readers.get(waiting.pop(), ()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _owner(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _source(node: Any) -> str:
    return next((_tensor(name) for name in node.input if not name.startswith("^")), "")


def _as_proto(values: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.make_tensor_proto(values)


def _values(tensor: Any) -> np.ndarray:
    import tensorflow as tf

    return np.asarray(tf.make_ndarray(tensor))
