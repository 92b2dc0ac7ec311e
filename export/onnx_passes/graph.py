"""Queries and clean-up passes for ONNX graphs: plain functions from model to model.

No pass changes its argument. Passes that fold a node into a neighbour (BatchNorm into a Conv) are in
`export.onnx_passes.folding`, inputs and outputs in `export.onnx_passes.signature`, names of nodes in
`export.onnx_passes.layer_names`, files in `export.onnx_passes.file`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from export.errors import ProjectError
from export.ort_session import with_weights_as_inputs

BATCH = "batch"
_TYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
# First ONNX IR version with an opset, for the opsets in use here.
_IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with an initializer instead of each Constant node, under the name of the node's output.

    The version converter adds such nodes: from opset 18 on the attribute ``axes`` of a ReduceMean is an input. Constant
    nodes of strings and of sparse tensors are kept.
    """
    result = copy_model(model)
    lifted = {node.output[0]: value for node in model.graph.node if (value := _constant_value(node)) is not None}
    result.graph.initializer.extend(lifted.values())
    if lifted:
        del result.graph.node[:]
        result.graph.node.extend(node for node in model.graph.node if not lifted.keys() & set(node.output))
    return result


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the value of a Constant node, None for any other node, for strings and sparse tensors."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    item = node.attribute[0]
    if item.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(item.t)
        tensor.name = node.output[0]
        return tensor
    kind = _TYPES.get(item.name)
    return (
        numpy_helper.from_array(np.asarray(helper.get_attribute_value(item), dtype=kind), node.output[0])
        if kind is not None
        else None
    )


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    return clone


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 if the model has none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def op_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of nodes of each operator, by name."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return tensor name -> the node that writes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return tensor name -> the nodes that read it; a node appears once per input that reads it."""
    table: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in inputs_of(node):
            table.setdefault(name, []).append(node)
    return table


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def before_casts(tensor: str, written: Mapping[str, onnx.NodeProto], known: Collection[str] = ()) -> str:
    """Return the tensor of whose values casts make a tensor.

    Args:
        tensor: Name of the tensor.
        written: From `producers`.
        known: Tensors at which the walk ends although a Cast writes them. Defaults to none.

    Returns:
        The nearest tensor that is known, or that no Cast writes; the tensor itself if that is one.
    """
    while tensor not in known and (node := written.get(tensor)) is not None and node.op_type == "Cast":
        tensor = node.input[0]
    return tensor


@dataclass(frozen=True)
class Index:
    """The producers, readers and constants of a graph at the time of `of`.

    Args:
        producers: From `producers`.
        readers: From `consumers`.
        constants: From `constants`.
    """

    producers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Index:
        """Return the index of a graph."""
        return cls(producers(graph), consumers(graph), constants(graph))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value, or `default` if the node has none of that name."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def parameter_count(model: onnx.ModelProto) -> int:
    """Return the number of values in all floating-point initializers."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats)


def infer_shapes(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.GraphProto:
    """Return the graph with inferred shapes and types, and with large weights as inputs.

    Inference copies a model four times, so it gets one without the values of large weights, which it does not read.

    Args:
        model: The model.
        data_prop: Whether values of shapes are propagated. Defaults to False.
    """
    return onnx.shape_inference.infer_shapes(with_weights_as_inputs(model), data_prop=data_prop).graph


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """Return the inferred shape of each tensor: integers, names of symbolic dimensions, None if unknown."""
    graph = infer_shapes(model, data_prop=True)
    shapes: dict[str, tuple[int | str | None, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
    return shapes


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node: the body of a Loop, the branches of an If."""
    return [
        graph
        for item in node.attribute
        for graph in ([item.g] if item.type == onnx.AttributeProto.GRAPH else item.graphs)
    ]


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """Return the tensors that a node reads, including those that its subgraphs read from the outer graph."""
    names = [name for name in node.input if name]
    for inside in branches(node):
        own = {info.name for info in inside.input} | set(constants(inside)) | set(producers(inside))
        read = [name for inner in inside.node for name in inputs_of(inner)] + [info.name for info in inside.output]
        names += [name for name in read if name not in own]
    return names


def rename_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename the tensors that a node reads, also in the subgraphs of a Loop or an If (in place).

    Args:
        node: The node.
        names: Old name -> new name; a tensor that a subgraph defines under an old name is not renamed.
    """
    node.input[:] = [names.get(name, name) for name in node.input]
    for inside in branches(node):
        own = {info.name for info in inside.input} | set(constants(inside)) | set(producers(inside))
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in inside.node:
            rename_inputs(inner, outer)
        for info in inside.output:
            info.name = outer.get(info.name, info.name)


def replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Make every node of a graph read `new` instead of `old` (in place)."""
    for node in graph.node:
        rename_inputs(node, {old: new})


def topological_sort(model: onnx.ModelProto) -> onnx.ModelProto:
    """Order nodes and initializers by a depth-first walk from the outputs.

    The order depends on the graph alone, so two exports of one model are equal. Nodes and initializers that no output
    needs are dropped.

    Raises:
        ProjectError: If the graph has a cycle.
    """
    graph = model.graph
    made = producers(graph)
    order: list[onnx.NodeProto] = []
    state: dict[int, bool] = {}  # id -> finished
    stack: list[tuple[onnx.NodeProto, bool]] = [(made[o.name], False) for o in reversed(graph.output) if o.name in made]
    while stack:
        node, leaving = stack.pop()
        if leaving:
            state[id(node)] = True
            order.append(node)
        elif id(node) not in state:
            state[id(node)] = False
            stack.append((node, True))
            parents = [(name, made[name]) for name in reversed(inputs_of(node)) if name in made]
            if cycle := [name for name, parent in parents if state.get(id(parent)) is False]:
                raise ProjectError(
                    f"Expected a graph without cycles. Received: one through {cycle[0]!r} (export the model again)."
                )
            stack.extend((parent, False) for _, parent in parents if id(parent) not in state)
    table = constants(graph)
    used = [name for node in order for name in inputs_of(node)] + [o.name for o in graph.output]
    result = copy_model(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(order)
    result.graph.initializer.extend(table[name] for name in dict.fromkeys(used) if name in table)
    return result


def bypass_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Return the model without some of its nodes, whose first output equals their first input (changes `model`).

    A node between an output of the graph and another output, an input or a constant stays.
    """
    graph = model.graph
    outputs = {o.name for o in graph.output}
    for node in nodes:
        source, result = node.input[0], node.output[0]
        if result not in outputs:
            replace_input(graph, result, source)
            graph.node.remove(node)
        elif source not in outputs and (producer := producers(graph).get(source)) is not None:
            # The name of an output is fixed, so the producer takes it over.
            producer.output[list(producer.output).index(source)] = result
            replace_input(graph, source, result)
            graph.node.remove(node)
    return topological_sort(model)


def strip_noops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove Identity, Dropout, Reshapes that keep the shape, and Transposes that keep the order."""
    result = copy_model(model)
    shapes = tensor_shapes(model)

    def is_noop(node: onnx.NodeProto) -> bool:
        if node.op_type == "Dropout":
            return len(node.input) < 3 and len([o for o in node.output if o]) == 1
        if node.op_type == "Transpose":
            perm = attribute(node, "perm")
            return perm is not None and list(perm) == sorted(perm)
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if node.op_type != "Reshape" or before is None or after is None or len(before) != len(after):
            return node.op_type == "Identity"
        # One dimension may be unknown on both sides: the element count makes it equal.
        different = [(a, b) for a, b in zip(before, after) if not isinstance(a, int) or a != b]
        return len(different) <= 1 and not any(isinstance(d, int) for pair in different for d in pair)

    return bypass_nodes(result, [node for node in result.graph.node if node.input and is_noop(node)])


def constant_reshape(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give each Reshape that keeps the batch a constant target, ``[0, ...]``.

    A Flatten may be exported as Shape, Gather, Concat and Reshape, or with -1 first. A target of 0 copies the
    dimension, so the batch keeps its name through shape inference. All other dimensions must be known, before and
    after.
    """
    result = copy_model(model)
    shapes, table = tensor_shapes(model), constants(model.graph)
    for node in result.graph.node:
        if node.op_type != "Reshape" or attribute(node, "allowzero", 0):
            continue
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        inner = [d for d in before[1:] if isinstance(d, int)]
        rest = [d for d in after[1:] if isinstance(d, int) and d > 0]
        if len(inner) != len(before) - 1:
            continue
        if len(after) == 2 and not rest and node.input[1] not in table:
            # Shape inference does not evaluate these nodes: (batch, everything else) is the result of a Flatten.
            rest = [math.prod(inner)]
        if len(rest) != len(after) - 1 or math.prod(rest) != math.prod(inner):
            continue
        name = f"{node.name or node.output[0]}/shape"
        result.graph.initializer.append(numpy_helper.from_array(np.asarray([0, *rest], dtype=np.int64), name))
        node.input[1] = name
    return topological_sort(result)


def convert_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert a model to another opset with ``onnx.version_converter`` and set the matching IR version.

    Metadata and names of tensors are kept. A model of that opset is copied. Constant nodes, which the converter adds
    for attributes that became inputs, become initializers, see `lift_constants`.

    Raises:
        ProjectError: If the converter refuses the model.
    """
    if opset(model) == version:
        return lift_constants(model)
    try:
        result = version_converter.convert_version(model, version)
    except Exception as error:  # the converter raises RuntimeError and its own ConvertError
        raise ProjectError(
            f"Expected a model that opset {version} can express. Received: opset {opset(model)}, {error} "
            "(export it at another opset)."
        ) from error
    result.ir_version = max(_IR_VERSION.get(version, 11), min(model.ir_version, 11))
    result.producer_name = model.producer_name
    del result.metadata_props[:], result.graph.value_info[:]
    result.metadata_props.extend(model.metadata_props)
    return lift_constants(result)
