"""Graphs that arrive partly in half precision, made float32 throughout: `export.precision` halves what is to be."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.graph import attribute, copy_model, producers, replace_input, topological_sort

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with float32 in the place of FP16 and BF16, and without the casts between them.

    A SavedModel of a model under the policy mixed_float16 or mixed_bfloat16 computes in half precision inside the
    graph. No pass knows such nodes, and what is called the FP32 model must not contain them. Weights keep their
    values, so that the difference is what rounding the activations to half did.
    """
    result = copy_model(model)
    half = _raise(result.graph)
    if not half:
        return result
    del result.graph.value_info[:]
    graph = result.graph
    types = {t.name: t.data_type for t in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(result).graph
    for info in (*inferred.value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    outputs = {o.name for o in graph.output}
    casts = [node for node in graph.node if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT]
    for node in [node for node in casts if types.get(node.input[0]) == TensorProto.FLOAT]:
        source, name = node.input[0], node.output[0]
        maker = producers(graph).get(source)
        if name not in outputs:
            replace_input(graph, name, source)
        elif maker is not None and source not in outputs:  # the name of an output is fixed, so the maker takes it over
            graph.node.remove(node)
            maker.output[list(maker.output).index(source)] = name
            replace_input(graph, source, name)
    return topological_sort(result)


def _raise(graph: onnx.GraphProto) -> bool:
    """Makes a graph and those inside it float32 (in place); returns whether anything was half."""
    found = False
    for tensor in graph.initializer:
        found |= _raise_tensor(tensor)
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type in _HALF:
            info.type.tensor_type.elem_type, found = TensorProto.FLOAT, True
    for node in graph.node:
        for item in node.attribute:
            if item.name in ("to", "dtype") and item.i in _HALF:
                item.i, found = TensorProto.FLOAT, True
            if item.type == onnx.AttributeProto.TENSOR:
                found |= _raise_tensor(item.t)
            for inner in (item.g, *item.graphs):
                found |= _raise(inner)
    return found


def _raise_tensor(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in _HALF:
        return False
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return True
