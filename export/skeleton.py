"""A graph without the values of its large weights, for what does not read them: copies of them cost more than the work.

Imports onnx inside its functions: `export.ort_session` is imported where it is not installed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_SMALL = 1000  # values of an initializer that shape inference or an optimizer may want to read


def skeleton(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Returns the model without its large weights, and these."""
    from onnx import ModelProto, TensorProto

    parts = {part: getattr(model, part) for part in ("ir_version", "opset_import", "functions", "metadata_props")}
    result = ModelProto(**parts)
    graph = result.graph
    graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, part).extend(getattr(model.graph, part))
    weights: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        small = tensor.data_type == TensorProto.INT64 or math.prod(tensor.dims) < _SMALL  # shapes, axes, pads
        (graph.initializer if small else weights).append(tensor)
    return result, weights


def with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model's skeleton with an input in the place of each large weight."""
    from onnx import helper

    result, weights = skeleton(model)
    result.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights)
    return result
