"""Constant nodes made initializers: a pass then finds a constant in one place, and every node has an input."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_TYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with an initializer in the place of each Constant node, under the name of what it made.

    The version converter leaves such nodes: raising the opset to 18 or later makes the attribute ``axes`` of a
    ReduceMean an input. Strings and sparse tensors stay nodes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept = []
    for node in graph.node:
        value = _value(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(value)
    if len(kept) < len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)
    return result


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
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
