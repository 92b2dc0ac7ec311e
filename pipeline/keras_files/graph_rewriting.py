"""Rewrites frozen TensorFlow graphs: the final activation at the very end, a free batch, float32 throughout.

Walks over TensorFlow graphs as protocol buffers; imports no TensorFlow.

Whether a rewritten graph answers as before is not asked here; ``saved_comparison`` runs both.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


def all_nodes(definition: Any) -> Iterator[Any]:
    """The nodes of a ``GraphDef``, and those of its functions."""
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def owner(tensor: str) -> str:
    """The name of the node that a tensor comes from, or that an input waits for."""
    return tensor.removeprefix("^").split(":")[0]


def readers(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """The nodes that read a node, by its name."""
    found: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            found.setdefault(owner(name), []).append(node)
    return found


def reached(start: Iterable[str], following: Callable[[str], Iterable[str]]) -> dict[str, None]:
    """The names that are reached from some, themselves included, as a set that keeps the order.

    Args:
        start: where to begin.
        following: the names right behind one.
    """
    found, waiting = dict.fromkeys(start), list(start)
    for name in waiting:  # which grows
        for new in following(name):
            if new not in found:
                found[new] = None
                waiting.append(new)
    return found


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
    while (node := nodes[owner(tensor)]).op in _HANDING_ON and (source := _source(node)):
        path.append(node)
        tensor = source
    found = _activation(node, nodes)
    if found is not None:
        before, name = found
        if all(one.op in ("Identity", "StopGradient", "PreventGradient") for one in path):
            yield End(definition, before, name)
        else:
            changed = copy.deepcopy(definition)
            next(one for one in changed.node if one.name == path[-1].name).input[0] = before
            yield End(changed, output, name)
        yield End(definition, output, None)
        return
    linear = node.op in _LINEAR or any(one.op in ("Reshape", "Mean") for one in path)
    probabilities = any(_activation(one, nodes) for one in _mixed(owner(output), nodes))
    yield End(definition, output, "linear" if linear and not probabilities else None)


def free_batch(definition: Any, feed: str, batch: int, shape: Callable[[str], Any]) -> Any:
    """A graph of a fixed batch whose reshapes take any.

    Args:
        definition: a frozen ``GraphDef``.
        feed: name of its input tensor.
        batch: what it is fixed to.
        shape: of a tensor by its name, as a list, None where it is not known.
    """
    import tensorflow as tf

    changed = copy.deepcopy(definition)
    reading = readers(changed.node)
    moving = reached([owner(feed)], lambda name: (node.name for node in reading.get(name, ())))
    for node in list(changed.node):
        if node.op != "Reshape" or node.name not in moving:
            continue
        given, made = shape(_tensor(node.input[0])), shape(f"{node.name}:0")
        if not given or not made or given[0] != batch or made[0] != batch or None in made[1:]:
            continue
        sizes = changed.node.add(name=f"{node.name}/any_batch", op="Const")
        sizes.attr["dtype"].type = 3  # int32
        sizes.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.asarray([-1, *made[1:]], np.int32)))
        node.input[1] = sizes.name
        node.attr["Tshape"].type = 3
    return changed


def in_single(definition: Any) -> Any:
    """A graph with float32 in the place of half precision, in its functions too."""
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    half = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
    changed = copy.deepcopy(definition)
    for node in all_nodes(changed):
        for attribute in node.attr.values():
            if attribute.type in half:
                attribute.type = types_pb2.DT_FLOAT
            elif attribute.HasField("tensor") and attribute.tensor.dtype in half:
                single = tf.make_ndarray(attribute.tensor).astype(np.float32)
                attribute.tensor.CopyFrom(tf.make_tensor_proto(single))
            for index, kind in enumerate(attribute.list.type):
                if kind in half:
                    attribute.list.type[index] = types_pb2.DT_FLOAT
    for function in changed.library.function:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            if argument.type in half:
                argument.type = types_pb2.DT_FLOAT
    return changed


def own_functions(definition: Any) -> Any:
    """A graph whose functions (the bodies of loops) have names that no other graph's have.

    TensorFlow knows functions by name only, all over the process, and keeps to the first of a name.
    """
    changed = copy.deepcopy(definition)
    functions = changed.library.function
    digest = hashlib.sha256(definition.library.SerializeToString(deterministic=True)).hexdigest()[:16]
    names = {function.signature.name: f"{function.signature.name}_{digest}" for function in functions}
    for node in all_nodes(changed):
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
    return any(attribute.type in half for node in all_nodes(definition) for attribute in node.attr.values())


def _activation(node: Any, nodes: dict[str, Any]) -> tuple[str, str] | None:
    """What a softmax or sigmoid is applied to, and its name; None for any other operation."""
    source = _source(node)
    if node.op in ("Softmax", "Sigmoid"):
        return source, node.op.lower()
    if node.op != "RealDiv":  # Keras writes a softmax of more than two axes out: exp(x - max) / sum of these
        return None
    above, below = nodes.get(owner(node.input[0])), nodes.get(owner(node.input[1]))
    if above is None or below is None or (above.op, below.op) != ("Exp", "Sum"):
        return None
    return (_source(above), "softmax") if owner(below.input[0]) == above.name else None


def _mixed(start: str, nodes: dict[str, Any]) -> Iterator[Any]:
    """The operations that an output is a sum, mean or other mixture of, and those in between."""

    def inputs(name: str) -> list[str]:
        node = nodes[name]
        return [owner(one) for one in node.input if not one.startswith("^")] if node.op in _MIXING else []

    return (nodes[name] for name in reached([start], inputs))


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _source(node: Any) -> str:
    return next((_tensor(name) for name in node.input if not name.startswith("^")), "")
