"""Makes the shapes that a graph computes constant, wherever they are constant but for the batch.

tf2onnx leaves a Dense on tokens, an attention or a cropping as Shape, Gather, Mul, Concat and Reshape, although
only the batch is free. What such nodes give is found by computing the shapes, and all that is made of them, at
several batches (partial evaluation, Jones, Gomard and Sestoft 1993): what is the same at each is a constant, and a
Reshape needs no more than one number that is not. Shapes that truly need the batch stay: a class token for each
picture, the first state of a recurrent layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx_passes.graph import attribute, constants, opset, producers, rename_inputs, topological_sort

# One is a batch that graphs treat differently, a large prime one that no product of layer sizes happens to equal.
_BATCHES = (1, 2, 7, 10007)
_LARGEST = 4096  # values of a tensor that is computed here: shapes are short, weights are not

# TensorFlow's operations that tf2onnx converts to another kernel (area to nearest, bicubic with other coefficients,
# nearest with an attribute that ONNX has given up), or not at all: they stay until `export.onnx_passes.repairs` knows
# all sizes.
RESIZES = ("ResizeArea", "ResizeBicubic", "ResizeNearestNeighbor", "ScaleAndTranslate")

Shape = tuple[int | None, ...]


@dataclass
class Evaluation:
    """What is known of a graph's tensors at one batch.

    Args:
        shapes: Tensor -> its shape, None for a size that depends on the data; no entry where not even the rank is
            known.
        types: Tensor -> its TensorProto type.
        values: Tensor -> its value, where the shapes alone decide it.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def sizes(self, tensor: str) -> tuple[int, ...] | None:
        """Return a tensor's shape where every size of it is known."""
        shape = self.shapes.get(tensor, (None,))
        known = tuple(size for size in shape if size is not None)
        return known if len(known) == len(shape) else None


def evaluate_shapes(model: onnx.ModelProto, batch: int) -> Evaluation:
    """Compute the shapes of a graph, and what it makes of them, with one number in place of the batch.

    Args:
        model: Nodes in order; every free dimension of its inputs is the batch.
        batch: That number.
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
    """Enter types and shapes of a node's outputs."""
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
    except Exception:  # onnx's InferenceError is no class of its own
        return
    for name, kind in outputs.items():
        tensor = kind.tensor_type
        known.types[name] = tensor.elem_type
        if tensor.HasField("shape"):
            known.shapes[name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _value(node: onnx.NodeProto, known: Evaluation, version: int) -> np.ndarray | None:
    """Return what a node gives, None where the shapes do not decide it, or where it is no small tensor."""
    if node.domain not in ("", "ai.onnx") or len([name for name in node.output if name]) != 1:
        return None
    random = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
    if random or any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
        return None
    shape = known.sizes(node.output[0])
    if shape is None or math.prod(shape) > _LARGEST:
        return None
    inputs = [name for name in node.input if name]
    if node.op_type in ("Shape", "Size"):  # which read no values: one zero stands for all of them
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
    """Replace what a graph computes of its shapes by constants, wherever the batch does not matter.

    A Reshape whose target depends on the batch in one place gets -1 there, or 0 ("as it is") where the batch stays
    in its place; a Slice up to the end of the batch, the end.

    Args:
        model: Each free dimension of its inputs is the batch.
    """
    result = topological_sort(model)
    if not any(node.op_type in ("Shape", "Size", "If") for node in result.graph.node):
        return result
    while _inline_decided(result, known := [evaluate_shapes(result, batch) for batch in _BATCHES]):
        result = topological_sort(result)
    table = constants(result.graph)
    made = producers(result.graph)
    added: dict[str, onnx.TensorProto] = {}

    def constant(name: str, value: np.ndarray) -> str:
        added.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for node in result.graph.node:
        if node.op_type in _MADE_CONSTANT:
            index, role, find = _MADE_CONSTANT[node.op_type]
            if node.input[index] not in table and (value := find(node, known)) is not None:
                node.input[index] = constant(f"{node.output[0]}/{role}", value)
        for index, name in enumerate(node.input):
            if name in made and (value := _same(name, known)) is not None:
                node.input[index] = constant(f"{name}/folded", value)
    result.graph.initializer.extend(added.values())
    return topological_sort(result)


def _inline_decided(model: onnx.ModelProto, known: Sequence[Evaluation]) -> bool:
    """Put one branch of the first If whose condition the shapes decide in its place (in place).

    Returns:
        Whether there was one.
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
        ends = [
            helper.make_node("Identity", [renamed.get(info.name, info.name)], [name], f"{node.name}/{name}/Identity")
            for info, name in zip(branch.output, node.output)
        ]
        del graph.node[position]
        graph.node.extend([*branch.node, *ends])
        graph.initializer.extend(branch.initializer)
        return True
    return False


def _same(name: str, known: Sequence[Evaluation]) -> np.ndarray | None:
    """Return a tensor's value where it is the same at every batch."""
    first, *others = (one.values.get(name) for one in known)
    same = first is not None and all(other is not None and np.array_equal(other, first) for other in others)
    return first if same else None


def _sizes(name: str, known: Sequence[Evaluation]) -> list[tuple[int, ...]] | None:
    """Return for each dimension of a tensor its sizes at the batches, None where one is not known."""
    shapes = [sizes for one in known if (sizes := one.sizes(name)) is not None]
    return list(zip(*shapes)) if len(shapes) == len(known) and len({len(shape) for shape in shapes}) == 1 else None


def _reshape_target(node: onnx.NodeProto, known: Sequence[Evaluation]) -> np.ndarray | None:
    """Return a constant target for a Reshape, None where it depends on the batch in more places than one may."""
    before, after = _sizes(node.input[0], known), _sizes(node.output[0], known)
    if before is None or after is None or any(0 in sizes for sizes in after):
        return None
    target, free = [], 0
    for axis, sizes in enumerate(after):
        if len(set(sizes)) == 1:
            target.append(sizes[0])
        elif axis < len(before) and before[axis] == sizes and not attribute(node, "allowzero", 0):
            target.append(0)
        else:
            target.append(-1)
            free += 1
    return np.asarray(target, dtype=np.int64) if free <= 1 else None


def _slice_ends(node: onnx.NodeProto, known: Sequence[Evaluation]) -> np.ndarray | None:
    """Return constant ends for a Slice that goes up to a dimension's end, or to a fixed place."""
    sizes = _sizes(node.input[0], known)
    ends = [one.values[node.input[2]] for one in known if node.input[2] in one.values]
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


# operator -> which input can be constant though the batch has a part in it, what that is, and how it is found
_MADE_CONSTANT = {"Reshape": (1, "target", _reshape_target), "Slice": (2, "ends", _slice_ends)}


def _same_input(
    node: onnx.NodeProto, index: int, known: Sequence[Evaluation], default: np.ndarray
) -> np.ndarray | None:
    """Return an optional input that is the same at every batch."""
    if len(node.input) <= index or not node.input[index]:
        return default
    return _same(node.input[index], known)


def shapes_of_data(model: onnx.ModelProto) -> list[str]:
    """Return the nodes with a result whose shape depends on more than the batch: on the pixels, for one.

    Args:
        model: Nodes in order.
    """
    known = evaluate_shapes(model, _BATCHES[-1])
    return [node.name for node in model.graph.node if any(known.sizes(name) is None for name in node.output if name)]
