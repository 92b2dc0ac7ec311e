"""Rewrites of frozen TensorFlow graphs: the final activation as the last operation, a free batch, float32 throughout.

``saved_comparison`` checks that a rewritten graph computes the same; nothing here does.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


def all_nodes(definition: Any) -> Iterator[Any]:
    """Yield the nodes of a ``GraphDef`` and those of its functions."""
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def node_name(tensor: str) -> str:
    """Name the node that a tensor or a control input comes from."""
    return tensor.removeprefix("^").split(":")[0]


def readers(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """List the nodes that read a node, by its name."""
    by_source: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            by_source.setdefault(node_name(name), []).append(node)
    return by_source


def reachable(start: Iterable[str], following: Callable[[str], Iterable[str]]) -> dict[str, None]:
    """Find the names reachable from some names, these included, breadth first.

    Args:
        start: the names to begin with.
        following: gives the successors of a name.

    Returns:
        The names as keys, in the order of their discovery.
    """
    names = dict.fromkeys(start)
    waiting = list(names)
    for name in waiting:  # which grows
        successors = dict.fromkeys(new for new in following(name) if new not in names)
        names |= successors
        waiting += successors
    return names


_FLOAT, _INT32, _HALF = 1, 3, (19, 14)  # of TensorFlow's types.proto: DT_FLOAT, DT_INT32, DT_HALF and DT_BFLOAT16
# After a softmax, these keep its values, in another shape at most (Mean: over one position).
_PRESERVING = frozenset(
    """
    Cast CheckNumerics EnsureShape ExpandDims Identity Mean PreventGradient Reshape Squeeze StopGradient
    """.split()  # noqa: SIM905
)
_MIXING = _PRESERVING | frozenset(
    "Add AddN AddV2 AvgPool ConcatV2 Max MaxPool Mul Pack RealDiv Sub Transpose".split()  # noqa: SIM905
)
_LINEAR = frozenset("Add AddV2 BiasAdd Conv2D LogSoftmax MatMul Mean".split())  # noqa: SIM905


@dataclass(frozen=True)
class End:
    """A graph, the tensor to fetch from it, and the activation that follows.

    Attributes:
        definition: the graph.
        fetch: the tensor's name.
        activation: "softmax", "sigmoid" or "linear"; None if it is unknown.
    """

    definition: Any
    fetch: str
    activation: str | None


def interpret_end(definition: Any, output: str) -> Iterator[End]:
    """Yield interpretations of the end of a graph, the best first; the last is the unchanged graph.

    A softmax or sigmoid need not be the last operation: a Reshape, Squeeze or Identity after it is applied to its input
    instead, which is equivalent if the shapes agree.

    Args:
        definition: a frozen ``GraphDef``.
        output: name of its output tensor.
    """
    nodes = {node.name: node for node in definition.node}
    path: list[Any] = []
    tensor = output
    while (node := nodes[node_name(tensor)]).op in _PRESERVING and (source := _source(node)):
        path.append(node)
        tensor = source
    if (activation := _activation(node, nodes)) is not None:
        logits, name = activation
        if all(step.op in ("Identity", "StopGradient", "PreventGradient") for step in path):
            yield End(definition, logits, name)
        else:
            changed = copy.deepcopy(definition)
            next(step for step in changed.node if step.name == path[-1].name).input[0] = logits
            yield End(changed, output, name)
        yield End(definition, output, None)
        return
    linear = node.op in _LINEAR or any(step.op in ("Reshape", "Mean") for step in path)
    probabilities = any(_activation(source, nodes) for source in _mixed(node_name(output), nodes))
    yield End(definition, output, "linear" if linear and not probabilities else None)


def free_batch(definition: Any, feed: str, batch: int, shape: Callable[[str], Any]) -> Any:
    """Copy a graph of a fixed batch with reshapes that accept any batch.

    Args:
        definition: a frozen ``GraphDef``.
        feed: name of its input tensor.
        batch: its fixed batch size.
        shape: gives the shape of a tensor by its name, None if it is unknown.
    """
    import tensorflow as tf

    changed = copy.deepcopy(definition)
    readers_of = readers(changed.node)
    dependent = reachable([node_name(feed)], lambda name: (node.name for node in readers_of.get(name, ())))
    for node in list(changed.node):
        if node.op != "Reshape" or node.name not in dependent:
            continue
        before, after = shape(_tensor(node.input[0])), shape(f"{node.name}:0")
        if not before or not after or before[0] != batch or after[0] != batch or None in after[1:]:
            continue
        sizes = changed.node.add(name=f"{node.name}/any_batch", op="Const")
        sizes.attr["dtype"].type = _INT32
        sizes.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.asarray([-1, *after[1:]], np.int32)))
        node.input[1] = sizes.name
        node.attr["Tshape"].type = _INT32
    return changed


def cast_graph_to_float32(definition: Any) -> Any:
    """Copy a graph with float32 in place of half precision, in its functions too."""
    import tensorflow as tf

    changed = copy.deepcopy(definition)
    attributes = [attribute for node in all_nodes(changed) for attribute in node.attr.values()]
    signatures = [function.signature for function in changed.library.function]
    arguments = (argument for signature in signatures for argument in (*signature.input_arg, *signature.output_arg))
    for typed in (*attributes, *arguments):
        if typed.type in _HALF:
            typed.type = _FLOAT
    for attribute in attributes:
        if attribute.HasField("tensor") and attribute.tensor.dtype in _HALF:
            values = tf.make_ndarray(attribute.tensor).astype(np.float32)
            attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
        for index, dtype in enumerate(attribute.list.type):
            if dtype in _HALF:
                attribute.list.type[index] = _FLOAT
    return changed


def with_unique_functions(definition: Any) -> Any:
    """Copy a graph with unique names for its functions (loop bodies).

    TensorFlow registers functions by name for the whole process, and keeps the first of each name.
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


def has_half(definition: Any) -> bool:
    """Whether anything in a graph is in half precision."""
    return any(attribute.type in _HALF for node in all_nodes(definition) for attribute in node.attr.values())


def _activation(node: Any, nodes: dict[str, Any]) -> tuple[str, str] | None:
    """Name the input of a softmax or sigmoid, and the function; None for any other operation."""
    source = _source(node)
    if node.op in ("Softmax", "Sigmoid"):
        return source, node.op.lower()
    if node.op != "RealDiv":  # Keras writes a softmax of more than two axes out: exp(x - max) / sum of these
        return None
    above, below = nodes.get(node_name(node.input[0])), nodes.get(node_name(node.input[1]))
    if above is None or below is None or (above.op, below.op) != ("Exp", "Sum"):
        return None
    return (_source(above), "softmax") if node_name(below.input[0]) == above.name else None


def _mixed(start: str, nodes: dict[str, Any]) -> Iterator[Any]:
    """Yield the operations that an output is a sum, mean or other mixture of, and those in between."""

    def inputs(name: str) -> list[str]:
        node = nodes[name]
        return [node_name(tensor) for tensor in node.input if not tensor.startswith("^")] if node.op in _MIXING else []

    return (nodes[name] for name in reachable([start], inputs))


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _source(node: Any) -> str:
    return next((_tensor(name) for name in node.input if not name.startswith("^")), "")
