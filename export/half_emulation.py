"""FP16 arithmetic on a CPU: what a node of type FP16 writes is rounded, as a GPU does."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from export.graph import attribute, copy_model, infer_shapes, topological_sort
from export.half_graphs import raise_half

# What they write of values that FP16 holds is such a value.
_EXACT = ("Relu", "MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Pad", "Max", "Min", "Concat", "Identity")


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a float32 model with the answers of an FP16 one: its weights, and each FP16 activation rounded.

    ONNX Runtime's CPU computes FP16 nodes in float32 and takes the casts between two of them out, even with all
    optimisations off, so that an FP16 model shows its weights and the casts at the ends alone. Sums within a node are
    float32 here as well; a GPU may round them, or fuse nodes and round less.

    Args:
        model: From `export.precision.to_half`.
    """
    inferred = infer_shapes(model)
    half = {info.name for info in inferred.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    result = copy_model(model)
    graph = result.graph
    halving = [n for n in graph.node if n.op_type == "Cast" and attribute(n, "to") == TensorProto.FLOAT16]
    raise_half(graph)
    del graph.value_info[:]
    rounded = {name for node in graph.node for name in node.output if node.op_type not in (*_EXACT, "Cast")} & half
    for node in [*halving, *(n for n in graph.node if rounded & set(n.output))]:
        for index, name in enumerate(node.output):
            if node.op_type != "Cast" and name not in rounded:
                continue
            node.output[index] = f"{name}/exact"
            graph.node.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16))
            graph.node.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    return topological_sort(result)
