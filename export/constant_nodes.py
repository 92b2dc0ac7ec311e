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
    lifted = {node.output[0]: value for node in model.graph.node if (value := _value(node)) is not None}
    result.graph.initializer.extend(lifted.values())
    if lifted:
        del result.graph.node[:]
        result.graph.node.extend(node for node in model.graph.node if not lifted.keys() & set(node.output))
    return result


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Returns what a Constant node makes, None for any other node, for strings and sparse tensors."""
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
