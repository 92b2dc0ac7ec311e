"""Replaces shapes that a graph computes by constants if they do not depend on the batch.

tf2onnx converts a Dense on tokens, an attention or a cropping to Shape, Gather, Mul, Concat and Reshape, although only
the batch is free. The shapes, and all values computed from them, are evaluated at several batches (partial evaluation,
Jones, Gomard and Sestoft 1993): a value that is the same at each is a constant, and the target of a Reshape may differ
in one place. Shapes that depend on the batch stay, such as a class token for each image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx_passes.graph import attribute, branches, constants, opset, producers, rename_inputs, topological_sort

# Graphs may treat a batch of 1 differently; no product of layer sizes equals a large prime.
_BATCHES = (1, 2, 7, 10007)
_LARGEST = 4096  # values of a tensor that is evaluated: shapes are small, weights are not

# TensorFlow's operations that tf2onnx converts to another kernel (area to nearest, bicubic with other coefficients,
# nearest with a removed ONNX attribute) or not at all: they stay until `export.onnx_passes.repairs` replaces them.
RESIZES = ("ResizeArea", "ResizeBicubic", "ResizeNearestNeighbor", "ScaleAndTranslate")

Shape = tuple[int | None, ...]


@dataclass
class Evaluation:
    """Shapes, types and values of a graph's tensors at one batch.

    Args:
        shapes: Tensor -> its shape, None for a size that depends on the data; no entry if the rank is unknown.
        types: Tensor -> its TensorProto type.
        values: Tensor -> its value, if the shapes alone determine it.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def sizes(self, tensor: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, None if one of its sizes is unknown."""
        shape = self.shapes.get(tensor, (None,))
        known = tuple(size for size in shape if size is not None)
        return known if len(known) == len(shape) else None


def evaluate_shapes(model: onnx.ModelProto, batch: int) -> Evaluation:
    """Evaluate the shapes of a graph, and the values that depend on them alone, at one batch.

    Args:
        model: Nodes in order; every free dimension of its inputs is the batch.
        batch: The number of images.
    """
    known = Evaluation()
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        known.shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else batch for d in dims)
        known.types[info.name] = info.type.tensor_type.elem_type
    for tensor in model.graph.initializer:
        known.shapes[tensor.name], known.types[tensor.name] = tuple(tensor.dims), tensor.data_type
        if math.prod(tensor.dims) <= _LARGEST:
            known.values[tensor.name] = numpy_helper.to_array(tensor)
    version = opset(model)
    for node in model.graph.node:
        _infer(node, known, version)
        if (value := _value(node, known, version)) is not None:
            name = node.output[0]
            known.values[name], known.shapes[name] = value, value.shape
            known.types[name] = helper.np_dtype_to_tensor_dtype(value.dtype)
    return known


def _infer(node: onnx.NodeProto, known: Evaluation, version: int) -> None:
    """Add the types and shapes of a node's outputs to `known` (in place)."""
    if node.op_type in RESIZES:
        images, size = known.shapes.get(node.input[0]), known.values.get(node.input[1])
        if images is not None and size is not None:
            known.shapes[node.output[0]] = (images[0], *(int(n) for n in size), images[3])
        exact = node.op_type == "ResizeNearestNeighbor"
        known.types[node.output[0]] = known.types.get(node.input[0], TensorProto.FLOAT) if exact else TensorProto.FLOAT
        return
    inputs = [name for name in node.input if name]
    if not onnx.defs.has(node.op_type, version) or not all(name in known.types for name in inputs):
        return
    types = {name: helper.make_tensor_type_proto(known.types[name], known.shapes.get(name)) for name in inputs}
    data = {name: numpy_helper.from_array(known.values[name], name) for name in inputs if name in known.values}
    try:
        outputs = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, version),
            node,
            types,
            data,
            opset_imports=[helper.make_opsetid("", version)],
        )
    except Exception:  # onnx raises no specific class
        return
    for name, kind in outputs.items():
        tensor = kind.tensor_type
        known.types[name] = tensor.elem_type
        if tensor.HasField("shape"):
            known.shapes[name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _value(node: onnx.NodeProto, known: Evaluation, version: int) -> np.ndarray | None:
    """Return the value of a node, None if the shapes do not determine it, or if it is large."""
    if node.domain not in ("", "ai.onnx") or len([name for name in node.output if name]) != 1:
        return None
    random = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
    shape = known.sizes(node.output[0])
    if random or branches(node) or shape is None or math.prod(shape) > _LARGEST:
        return None
    inputs = [name for name in node.input if name]
    if node.op_type in ("Shape", "Size"):  # they read no values: one zero stands for all of them
        feeds = {name: np.broadcast_to(0, sizes) for name in inputs if (sizes := known.sizes(name)) is not None}
    else:
        feeds = {name: known.values[name] for name in inputs if name in known.values}
    if not all(name in feeds for name in inputs):
        return None
    try:
        return np.asarray(next(iter(ReferenceEvaluator(node, opsets={"": version}).run(None, feeds))))
    except Exception:  # an operator that the reference does not have
        return None


def fold_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace values that a graph computes from its shapes by constants if they do not depend on the batch.

    The target of a Reshape that depends on the batch in one place gets -1 there, or 0 (copy) if the batch keeps its
    axis; a Slice up to the end of the batch gets the largest integer.

    Args:
        model: Each free dimension of its inputs is the batch.
    """
    result = topological_sort(model)
    if not any(node.op_type in ("Shape", "Size", "If") for node in result.graph.node):
        return result
    while _inline_decided(result, known := [evaluate_shapes(result, batch) for batch in _BATCHES]):
        result = topological_sort(result)
    table, written = constants(result.graph), producers(result.graph)
    added: dict[str, onnx.TensorProto] = {}

    def constant(name: str, value: np.ndarray) -> str:
        added.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for node in result.graph.node:
        if node.op_type in _MADE_CONSTANT:
            index, role, evaluate = _MADE_CONSTANT[node.op_type]
            if node.input[index] not in table and (value := evaluate(node, known)) is not None:
                node.input[index] = constant(f"{node.output[0]}/{role}", value)
        for index, name in enumerate(node.input):
            if name in written and (value := _same(name, known)) is not None:
                node.input[index] = constant(f"{name}/folded", value)
    result.graph.initializer.extend(added.values())
    return topological_sort(result)


def _inline_decided(model: onnx.ModelProto, known: Sequence[Evaluation]) -> bool:
    """Replace the first If whose condition the shapes determine by one of its branches (in place).

    Returns:
        Whether there was such an If.
    """
    graph = model.graph
    for position, node in enumerate(graph.node):
        decision = _same(node.input[0], known) if node.op_type == "If" else None
        if decision is None:
            continue
        branch = onnx.GraphProto()
        branch.CopyFrom(attribute(node, "then_branch" if bool(decision.reshape(())) else "else_branch"))
        renamed = {name: f"{node.name}/{name}" for name in (*producers(branch), *constants(branch))}
        for inner in branch.node:
            inner.name = f"{node.name}/{inner.name}"
            inner.output[:] = [renamed.get(name, name) for name in inner.output]
            rename_inputs(inner, renamed)
        for tensor in branch.initializer:
            tensor.name = renamed[tensor.name]
        identities = [
            helper.make_node("Identity", [renamed.get(info.name, info.name)], [name], f"{node.name}/{name}/Identity")
            for info, name in zip(branch.output, node.output)
        ]
        del graph.node[position]
        graph.node.extend([*branch.node, *identities])
        graph.initializer.extend(branch.initializer)
        return True
    return False


def _same(name: str, known: Sequence[Evaluation]) -> np.ndarray | None:
    """Return a tensor's value if it is the same at every batch, else None."""
    first, *others = (evaluation.values.get(name) for evaluation in known)
    same = first is not None and all(other is not None and np.array_equal(other, first) for other in others)
    return first if same else None


def _sizes(name: str, known: Sequence[Evaluation]) -> list[tuple[int, ...]] | None:
    """Return for each dimension of a tensor its sizes at the batches, None if one is unknown."""
    shapes = [sizes for evaluation in known if (sizes := evaluation.sizes(name)) is not None]
    return list(zip(*shapes)) if len(shapes) == len(known) and len({len(shape) for shape in shapes}) == 1 else None


def _reshape_target(node: onnx.NodeProto, known: Sequence[Evaluation]) -> np.ndarray | None:
    """Return a constant target for a Reshape, None if it depends on the batch in more than one place."""
    before, after = _sizes(node.input[0], known), _sizes(node.output[0], known)
    if before is None or after is None or any(0 in sizes for sizes in after):
        return None
    target = []
    for axis, sizes in enumerate(after):
        if len(set(sizes)) == 1:
            target.append(sizes[0])
        elif axis < len(before) and before[axis] == sizes and not attribute(node, "allowzero", 0):
            target.append(0)
        else:
            target.append(-1)
    return np.asarray(target, dtype=np.int64) if target.count(-1) <= 1 else None


def _slice_ends(node: onnx.NodeProto, known: Sequence[Evaluation]) -> np.ndarray | None:
    """Return constant ends for a Slice that ends at a dimension's end, or at a fixed index; else None."""
    sizes = _sizes(node.input[0], known)
    ends = [evaluation.values[node.input[2]] for evaluation in known if node.input[2] in evaluation.values]
    if sizes is None or len(ends) < len(known):
        return None
    columns = list(zip(*(np.ravel(end).tolist() for end in ends)))
    axes = _same_input(node, 3, known, np.arange(len(columns)))
    steps = _same_input(node, 4, known, np.ones(len(columns), dtype=np.int64))
    if axes is None or steps is None:
        return None
    result = []
    for column, axis, step in zip(columns, axes.tolist(), steps.tolist()):
        if len(set(column)) == 1:
            result.append(column[0])
        elif step > 0 and column == sizes[axis]:
            result.append(np.iinfo(ends[0].dtype).max)
        else:
            return None
    return np.asarray(result, dtype=ends[0].dtype)


# operator -> the index of an input that can be constant although it depends on the batch, its role, and its evaluation
_MADE_CONSTANT = {"Reshape": (1, "target", _reshape_target), "Slice": (2, "ends", _slice_ends)}


def _same_input(
    node: onnx.NodeProto, index: int, known: Sequence[Evaluation], default: np.ndarray
) -> np.ndarray | None:
    """Return an optional input that is the same at every batch, `default` if the node has none, else None."""
    if len(node.input) <= index or not node.input[index]:
        return default
    return _same(node.input[index], known)


def nodes_with_data_shapes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes with an output whose shape depends on more than the batch, for example on the pixels.

    Args:
        model: Nodes in order.
    """
    known = evaluate_shapes(model, _BATCHES[-1])
    return [node.name for node in model.graph.node if any(known.sizes(name) is None for name in node.output if name)]
