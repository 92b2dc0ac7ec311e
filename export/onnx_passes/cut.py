"""Cuts graphs at tensors, so that a part of a model runs on values that it is given.

A session of such a graph is opened with ``exact=True``: a further output changes what ONNX Runtime's optimizer fuses,
and with it the last bits of the answers.
"""

from collections.abc import Iterable, Sequence

from onnx import ModelProto, ValueInfoProto

from export.errors import ProjectError
from export.onnx_passes.graph import constants, infer_shapes, inputs_of, producers, rename_inputs


def given(tensor: str) -> str:
    """Return the name of the graph input that is read instead of a tensor, see `cut`."""
    return f"{tensor}/given"


def with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the model with these tensors as its only outputs, without the nodes and inputs that they do not need.

    Args:
        model: The model.
        names: Tensors that a node writes; one that is named twice is one output.

    Raises:
        ProjectError: If no node writes a tensor, or its type is unknown.
    """
    return _part(model, (), names)


def cut(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """Return the model in which every reader of each of these tensors reads the graph input `given` of it instead.

    The tensors are still computed, each from what is given before it; the outputs are as before.

    Raises:
        ProjectError: If no node writes a tensor, or its type is unknown.
    """
    infos = _infos(model, tensors)
    result = ModelProto()
    result.CopyFrom(model)
    names = {tensor: given(tensor) for tensor in infos}
    for node in result.graph.node:
        rename_inputs(node, names)
    result.graph.input.extend(_renamed(info, names[tensor]) for tensor, info in infos.items())
    return result


def extract(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """Return the part of the model between tensors, which keep their names.

    Args:
        model: The model.
        inputs: Tensors that a node writes, or inputs of the model; one that the outputs do not need is left out.
        outputs: Tensors that a node writes.

    Raises:
        ProjectError: If a tensor is unknown, or the outputs need an input of the model that is not among `inputs`.
    """
    part = _part(model, inputs, outputs)
    if missing := [info.name for info in part.graph.input if info.name not in inputs]:
        raise ProjectError(
            f"Expected inputs that {outputs[0]!r} can be computed from. Received: {list(inputs)}, without "
            f"{missing[0]!r} (name it too)."
        )
    return part


def _part(model: ModelProto, inputs: Iterable[str], outputs: Sequence[str]) -> ModelProto:
    """Return the nodes that the outputs need, up to `inputs`, which become inputs of the graph."""
    graph = model.graph
    sources = {info.name: info for info in graph.input}
    starts = _infos(model, [name for name in inputs if name not in sources])
    ends = _infos(model, outputs)
    made, table = producers(graph), constants(graph)
    needed: set[int] = set()
    read: set[str] = set()
    waiting = list(ends)
    while waiting:
        node = made.get(waiting.pop())
        if node is None or id(node) in needed:
            continue
        needed.add(id(node))
        for name in inputs_of(node):
            read.add(name)
            if name not in starts:
                waiting.append(name)
    result = ModelProto(
        **{part: getattr(model, part) for part in ("ir_version", "opset_import", "functions", "metadata_props")}
    )
    result.producer_name = model.producer_name
    part = result.graph
    part.name = graph.name
    part.node.extend(node for node in graph.node if id(node) in needed)
    part.initializer.extend(tensor for name, tensor in table.items() if name in read)
    part.sparse_initializer.extend(graph.sparse_initializer)
    part.input.extend(info for name, info in {**sources, **starts}.items() if name in read)
    part.output.extend(ends.values())
    return result


def _infos(model: ModelProto, names: Iterable[str]) -> dict[str, ValueInfoProto]:
    """Return name, type and shape of tensors that nodes write.

    Raises:
        ProjectError: If no node writes one, or its type is unknown.
    """
    inferred = infer_shapes(model)
    known = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    written = producers(model.graph)
    if unknown := [n for n in names if n not in written or n not in known or not known[n].type.WhichOneof("value")]:
        raise ProjectError(
            f"Expected tensors that nodes of the model write, of a known type. Received: {unknown[:5]} (see the names "
            "in the model)."
        )
    return {name: known[name] for name in names}


def _renamed(info: ValueInfoProto, name: str) -> ValueInfoProto:
    result = ValueInfoProto()
    result.CopyFrom(info)
    result.name = name
    return result
