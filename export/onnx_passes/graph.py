"""What every graph pass needs, and the passes that only tidy up: plain functions, ONNX model to ONNX model.

Constant nodes made initializers: a pass then finds a constant in one place, and every node has an input.

No pass changes the model it is given. Passes that put something into a neighbour (BatchNorm into a Conv) are in
`export.onnx_passes.folding`, inputs and outputs in `export.onnx_passes.signature`, the names that carry the Keras
layers in `export.onnx_passes.layer_names`, files in `export.onnx_passes.file`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.file import check_model, load_model, save_model
from export.ort_session import with_weights_as_inputs

_TYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with an initializer in the place of each Constant node, under the name of what it made.

    The version converter leaves such nodes: raising the opset to 18 or later makes the attribute ``axes`` of a
    ReduceMean an input. Strings and sparse tensors stay nodes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    lifted = {node.output[0]: value for node in model.graph.node if (value := _value(node)) is not None}
    result.graph.initializer.extend(lifted.values())
    if lifted:
        del result.graph.node[:]
        result.graph.node.extend(node for node in model.graph.node if not lifted.keys() & set(node.output))
    return result


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node makes, None for any other node, for strings and sparse tensors."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    item = node.attribute[0]
    if item.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(item.t)
        tensor.name = node.output[0]
        return tensor
    if item.name not in _TYPES:
        return None
    return numpy_helper.from_array(
        np.asarray(helper.get_attribute_value(item), dtype=_TYPES[item.name]), node.output[0]
    )


BATCH = "batch"

__all__ = [
    "BATCH",
    "Index",
    "attribute",
    "check_model",
    "constant_reshape",
    "constants",
    "consumers",
    "convert_opset",
    "copy_model",
    "infer_shapes",
    "load_model",
    "op_counts",
    "opset",
    "parameter_count",
    "producers",
    "rename_inputs",
    "replace_input",
    "save_model",
    "strip_noops",
    "tensor_shapes",
    "topological_sort",
]

# ONNX IR that first knows an opset, for the opsets in use here.
_IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    return clone


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 where the model names none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def op_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Return how often each operator occurs, by name."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return tensor name -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return tensor name -> the nodes that read it, a node once per input that reads it."""
    table: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in inputs_of(node):
            table.setdefault(name, []).append(node)
    return table


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


@dataclass(frozen=True)
class Index:
    """Who makes and who reads what in a graph; of the graph as it was when this was made.

    Args:
        made: From `producers`.
        readers: From `consumers`.
        constants: From `constants`.
    """

    made: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Index:
        """Look through a graph once."""
        return cls(producers(graph), consumers(graph), constants(graph))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value, or `default` where the node has none of that name."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def parameter_count(model: onnx.ModelProto) -> int:
    """Return the number of values in all floating-point initializers."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats)


def infer_shapes(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.GraphProto:
    """Return the graph with what shape inference finds, and with weights as inputs.

    Inference copies a model four times; without the values of its weights, which it does not read, that costs nothing.
    """
    return onnx.shape_inference.infer_shapes(with_weights_as_inputs(model), data_prop=data_prop).graph


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """Return the inferred shape of each tensor: numbers, names of symbolic dimensions, None where unknown."""
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
    kinds = onnx.AttributeProto
    single = [item.g for item in node.attribute if item.type == kinds.GRAPH]
    return single + [graph for item in node.attribute if item.type == kinds.GRAPHS for graph in item.graphs]


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """Return what a node reads, what the graphs inside it read from around them included."""
    names = [name for name in node.input if name]
    for inside in branches(node):
        own = {info.name for info in inside.input} | set(constants(inside)) | set(producers(inside))
        read = [name for inner in inside.node for name in inputs_of(inner)] + [info.name for info in inside.output]
        names += [name for name in read if name not in own]
    return names


def rename_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node reads, also inside the graphs of a Loop or an If (in place).

    Args:
        node: The node.
        names: Old name -> new name; a name that a graph inside gives itself is another tensor there.
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
    """Make every node of a graph that is being built read `new` where it read `old` (in place)."""
    for node in graph.node:
        rename_inputs(node, {old: new})


def topological_sort(model: onnx.ModelProto) -> onnx.ModelProto:
    """Order nodes and initializers by a depth-first walk from the outputs.

    The order depends on the graph alone, so two exports of one model are equal; what no output needs is dropped.

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
            continue
        if id(node) in state:
            continue
        state[id(node)] = False
        stack.append((node, True))
        for name in reversed(inputs_of(node)):
            parent = made.get(name)
            if parent is None or state.get(id(parent)) is True:
                continue
            if id(parent) in state:
                raise ProjectError(
                    f"Expected a graph without cycles. Received: one through {name!r} (export the model again)."
                )
            stack.append((parent, False))
    table = constants(graph)
    used = [name for node in order for name in inputs_of(node)] + [o.name for o in graph.output]
    result = copy_model(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(order)
    result.graph.initializer.extend(table[name] for name in dict.fromkeys(used) if name in table)
    return result


def _drop_nodes(model: onnx.ModelProto, dropped: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Remove nodes whose first output equals their first input, and rewires; `dropped` are of `model`."""
    graph = model.graph
    outputs = {o.name for o in graph.output}
    inputs = {i.name for i in graph.input}
    table = constants(graph)
    for node in dropped:
        source, result = node.input[0], node.output[0]
        if result in outputs:
            # The name of an output is fixed, so the producer takes it over.
            if source in inputs or source in outputs or source in table:
                continue
            maker = producers(graph)[source]
            maker.output[list(maker.output).index(source)] = result
            replace_input(graph, source, result)
        else:
            replace_input(graph, result, source)
        graph.node.remove(node)
    return topological_sort(model)


def strip_noops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove Identity, Dropout, Reshapes to the shape already there and Transposes that move nothing."""
    result = copy_model(model)
    shapes = tensor_shapes(model)

    def is_noop(node: onnx.NodeProto) -> bool:
        if node.op_type == "Identity":
            return True
        if node.op_type == "Dropout":
            return len(node.input) < 3 and len([o for o in node.output if o]) == 1
        if node.op_type == "Transpose":
            perm = attribute(node, "perm")
            return perm is not None and list(perm) == sorted(perm)
        if node.op_type == "Reshape":
            before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
            if before is None or after is None or len(before) != len(after):
                return False
            # One dimension may be unknown on both sides: the element count makes it equal.
            different = [(a, b) for a, b in zip(before, after) if not isinstance(a, int) or a != b]
            return len(different) <= 1 and not any(isinstance(d, int) for pair in different for d in pair)
        return False

    return _drop_nodes(result, [node for node in result.graph.node if is_noop(node)])


def constant_reshape(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give each Reshape that keeps the batch a constant target, ``[0, ...]``.

    A Flatten may arrive as Shape, Gather, Concat and Reshape, or with -1 first; 0 says "as it is", so the batch keeps
    its name through shape inference. Only where all other dimensions are known, before and after.
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
            # Shape inference does not see through the island: (batch, everything else) is what a Flatten means.
            rest = [math.prod(inner)]
        if len(rest) != len(after) - 1 or math.prod(rest) != math.prod(inner):
            continue
        name = f"{node.name or node.output[0]}/shape"
        result.graph.initializer.append(numpy_helper.from_array(np.asarray([0, *rest], dtype=np.int64), name))
        node.input[1] = name
    return topological_sort(result)


def convert_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Take a model to another opset with ``onnx.version_converter`` and sets the matching IR version.

    Metadata and the names of tensors stay. A model that is there already comes back as a copy. Constant nodes, which
    the converter makes of attributes that became inputs, come back as initializers.

    Raises:
        ProjectError: If the converter refuses.
    """
    if opset(model) == version:
        return lift_constants(model)
    from onnx import version_converter

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
