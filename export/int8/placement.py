"""The placement of Q/DQ pairs, by rules about the structure of the graph, not about names.

The rules are TensorRT's for explicit quantization (Developer Guide, "Working with Quantized Types": recommended
placement), and those of ModelOpt, whose placement on ResNets they reproduce:

* the inputs of a Conv, activation and weight, are quantized; its bias stays in float;
* the skip branch of a residual Add is quantized, not the main branch: Conv, Add and ReLU then fuse into one INT8 kernel
  that reads the skip as INT8;
* the input of the pooling before the head is quantized, and that of a MaxPool with a border (a Pad before it, or the
  Max with a constant of `export.onnx_passes.folding.fold_pad_into_maxpool`);
* the classifier's MatMul or Gemm, and the Softmax and TopK behind it, stay in float.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from export.fp16.convert import FP32_OPS, preprocessing_nodes
from export.int8.report import Placement
from export.onnx_passes.graph import Index, attribute, infer_shapes
from export.onnx_passes.layer_names import keras_layer
from export.words import aligned, count

_POOLS = ("GlobalAveragePool", "AveragePool", "ReduceMean")
_ARITHMETIC = (
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Add", "Sum", "Mul", "Sub", "Div", "Pow", "Exp"),
    *("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "Reciprocal"),
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
)
_WITH_NEIGHBOURS = (
    *("Relu", "LeakyRelu", "Clip", "Add", "Mul", "Sub", "Div"),
    *("MaxPool", "Max", "Pad", "Squeeze", "Reshape", "Flatten", "Transpose", "Cast"),
)


@dataclass(frozen=True)
class Kept:
    """The precision of a node that stays in float although a rule would quantize it.

    Args:
        precision: ``"fp16"`` or ``"fp32"``.
        why: The reason, for people.
    """

    precision: str
    why: str


@dataclass(frozen=True)
class Edge:
    """One input of one node that reads its tensor through a Q/DQ pair.

    Args:
        node: Name of the reader.
        index: Index of the input.
        tensor: The tensor that it reads.
        why: The rule.
    """

    node: str
    index: int
    tensor: str
    why: str


def quantized_edges(model: onnx.ModelProto, kept: Collection[str] = ()) -> list[Edge]:
    """Return the inputs that are read as INT8, in the order of the graph.

    Args:
        model: float32, without Q/DQ.
        kept: Names of nodes that stay in float. Defaults to none.
    """
    index = Index.of(model.graph)
    reaching: set[str] = set()  # tensors from which a Conv can be reached; the others belong to the head
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or not reaching.isdisjoint(node.output):
            reaching.update(node.input)
    edges = []
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] not in index.constants and node.input[1] in index.constants:
            edges.append(Edge(node.name, 0, node.input[0], "input of a Conv"))
        elif node.op_type == "Add" and (skip := skip_input(node, index)) is not None:
            edges.append(Edge(node.name, skip, node.input[skip], "skip branch of a residual Add"))
        elif node.op_type in _POOLS and node.output[0] not in reaching and _pools_the_map(node, index):
            edges.append(Edge(node.name, 0, node.input[0], "input of the pooling before the head"))
        elif node.op_type == "MaxPool" and _has_border(node, index):
            edges.append(Edge(node.name, 0, node.input[0], "input of a MaxPool with a border"))
    return [edge for edge in edges if edge.node not in kept]


def _pools_the_map(pool: onnx.NodeProto, index: Index) -> bool:
    """Return whether a pooling is over the map of each image, and its result meets no other activation behind it.

    A mean over axis 0 is over stacked models or crops. The gate of a squeeze-and-excitation block and the statistics of
    a normalization meet the map again: they are no pooling before the head, and cost more in INT8 than they save. A
    Concat is allowed.
    """
    axes = list(attribute(pool, "axes", []))
    if len(pool.input) > 1 and pool.input[1] in index.constants:
        axes += onnx.numpy_helper.to_array(index.constants[pool.input[1]]).tolist()
    behind, pending = {pool.output[0]}, [pool.output[0]]
    readers: list[onnx.NodeProto] = []
    while pending:
        direct = index.readers.get(pending.pop(), [])
        readers += direct
        pending += {name for node in direct for name in node.output} - behind
        behind.update(pending)
    known = {"", *behind, *index.constants}
    return 0 not in axes and all(node.op_type == "Concat" or known.issuperset(node.input) for node in readers)


def _has_border(pool: onnx.NodeProto, index: Index) -> bool:
    """Return whether a pool reads a Pad, or its only reader is a Max with a constant."""
    source = index.producers.get(pool.input[0])
    readers = index.readers.get(pool.output[0], [])
    bounded = [node.op_type for node in readers] == ["Max"] and not index.constants.keys().isdisjoint(readers[0].input)
    return bounded or (source is not None and source.op_type == "Pad")


def quantizable_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the activations that need a scale, each once, in the order of the graph."""
    return list(dict.fromkeys(edge.tensor for edge in quantized_edges(model)))


def measured_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the activations whose range or mean is needed, float32 (N, C, ...), in the order of the graph.

    These are the tensors that will be quantized, those that a Conv, MatMul or Gemm reads, and those that arithmetic
    writes, where FP16 may overflow.
    """
    nodes = model.graph.node
    skipped = {node.name for node in preprocessing_nodes(model)}
    inputs = {node.input[0] for node in nodes if node.op_type in ("Conv", "MatMul", "Gemm")}
    results = {node.output[0] for node in nodes if node.op_type in _ARITHMETIC and node.name not in skipped}
    inferred = infer_shapes(model, data_prop=True)
    tensors = {info.name: info.type.tensor_type for info in (*inferred.value_info, *inferred.output)}
    maps = {  # not shapes and other integers, nor tensors with the batch on axis 1
        name
        for name, kind in tensors.items()
        if kind.elem_type == onnx.TensorProto.FLOAT
        and len(kind.shape.dim) >= 2
        and kind.shape.dim[1].HasField("dim_value")
    }
    names = ((inputs | results) & maps) | set(quantizable_tensors(model))
    return [name for node in nodes for name in node.output if name in names]


def skip_input(add: onnx.NodeProto, index: Index) -> int | None:
    """Return the index of the skip branch among the inputs of a residual Add, None if the Add is not residual.

    The main branch ends in a Conv with no other reader, so that the Add can fuse into it. If one input is such a Conv,
    the other is the skip. If both are, as in a block with a projection, the skip is the branch with fewer Convs behind
    the common tensor (the projection has one, the main branch two or three), or the second input if they are equal. If
    none is, nothing can fuse, and the Add stays in float.
    """
    if len(add.input) != 2 or any(name in index.constants for name in add.input):
        return None
    ends = [index.producers.get(name) for name in add.input]
    fusable = [
        node is not None and node.op_type == "Conv" and len(index.readers[name]) == 1
        for node, name in zip(ends, add.input)
    ]
    if fusable[0] != fusable[1]:
        return fusable.index(False)
    if not fusable[0]:
        return None
    first, second = (_convs_behind(name, index) for name in add.input)
    shared = set(first) & set(second)
    depths = [
        min((depth for name, depth in branch.items() if name in shared), default=len(branch))
        for branch in (first, second)
    ]
    return 0 if depths[0] < depths[1] else 1


def _convs_behind(tensor: str, index: Index) -> dict[str, int]:
    """Return each tensor that `tensor` depends on -> the fewest Convs in between; `tensor` itself has 0."""
    depth = {tensor: 0}
    pending = [tensor]
    while pending:
        name = pending.pop()
        node = index.producers.get(name, onnx.NodeProto())  # an input of the graph has no parents
        convs = depth[name] + (node.op_type == "Conv")
        for parent in node.input:
            if parent and convs < depth.get(parent, math.inf):
                depth[parent] = convs
                pending.append(parent)
    return {name: convs for name, convs in depth.items() if name not in index.constants}


def describe(
    model: onnx.ModelProto,
    edges: list[Edge],
    base: str = "fp16",
    kept: Mapping[str, Kept] | None = None,
    trunk: Collection[str] = (),
    shifts: Mapping[str, str] | None = None,
) -> list[Placement]:
    """Return the precision of each node of the quantized graph, without Q/DQ and casts.

    Args:
        model: The float32 model of `edges`.
        edges: From `quantized_edges`, without those of kept nodes.
        base: Precision of the nodes that are not quantized: ``"fp16"`` or ``"fp32"``. Defaults to ``"fp16"``.
        kept: Node name -> the precision that it has instead of INT8, and why. Defaults to None.
        trunk: Names of the nodes that are FP32 although the base is FP16, see `export.int8.trunk`. Defaults to none.
        shifts: Name of a ReLU -> what `export.int8.shift` did with it, or why not. Defaults to None.
    """
    kept, shifts = kept or {}, shifts or {}
    before_conv = {node.name for node in preprocessing_nodes(model)}
    indices = {name for node in model.graph.node for name in node.output if node.op_type == "TopK"}
    reasons = {(edge.node, edge.index): edge.why for edge in edges}
    rows = []
    for node in model.graph.node:
        why = next((reasons[node.name, i] for i in range(len(node.input)) if (node.name, i) in reasons), None)
        if node.name in kept:
            precision, why = (kept[node.name].precision if base == "fp16" else base), kept[node.name].why
        elif node.name in before_conv:
            precision, why = "fp32", "arithmetic on 0..255, before the first Conv"
        elif node.op_type in FP32_OPS:
            precision, why = "fp32", f"{node.op_type} stays in FP32"
        elif node.op_type == "Cast" and node.input[0] in indices:
            precision, why = "fp32", "indices of the best classes, whole numbers"
        elif why is not None and node.op_type == "Add":
            precision, why = base, f"{why}: that input is INT8, the main branch fuses"
        elif why is not None:
            precision = "int8"
        elif node.op_type in ("MatMul", "Gemm"):
            precision, why = base, "the classifier stays in float"
        elif node.op_type in _WITH_NEIGHBOURS:
            precision, why = base, "no rule quantizes it; it fuses into its neighbours or only moves values"
        else:
            precision, why = base, f"no rule quantizes {node.op_type}; it stays in float"
        if precision == base and node.name in trunk:
            precision = "fp32"
        why = "; ".join(filter(None, [why, shifts.get(node.name)]))
        rows.append(Placement(node.name, keras_layer(node.name), node.op_type, precision, why))
    return rows


def placement_table(rows: list[Placement]) -> str:
    """Return the rows as a text table with a header, and a last line with the number of INT8 convolutions."""
    cells = [("keras layer", "op", "precision", "why")]
    cells += [(row.keras_layer, row.op, row.precision, row.why) for row in rows]
    quantized, convs = int8_convs(rows)
    return "\n".join([*aligned(cells, indent=""), f"{quantized} of {count(convs, 'convolution')} in INT8"])


def int8_convs(rows: list[Placement]) -> tuple[int, int]:
    """Return the number of Convs in INT8, and the number of all Convs."""
    convs = [row for row in rows if row.op == "Conv"]
    return sum(row.precision == "int8" for row in convs), len(convs)
