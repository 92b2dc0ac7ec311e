"""INT8 as explicit Q/DQ pairs in the ONNX file, on an FP16 or an FP32 base.

Symmetric int8 with zero point 0: activations per tensor with calibrated scales, Conv weights per output channel. The
placement of the pairs is in `export.int8.placement`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.errors import ProjectError
from export.fp16.convert import MINIMUM_OPSET, to_half
from export.int8.placement import Kept, describe, quantized_edges
from export.int8.report import Placement
from export.int8.scales import Scales, weight_scales
from export.onnx_passes.file import check_model
from export.onnx_passes.graph import constants, convert_opset, copy_model, op_counts, opset, topological_sort
from export.words import count


def quantize(
    fp32_model: onnx.ModelProto,
    scales: Scales,
    *,
    base: str = "fp16",
    kept: Mapping[str, Kept] | None = None,
) -> tuple[onnx.ModelProto, list[Placement]]:
    """Return the INT8 model, and the precision of each of its nodes.

    Each quantized tensor gets one Q/DQ pair for all of its readers. On the base ``"fp16"``, for TensorRT 10 and later,
    the model is then converted to FP16 with its scales, at opset 19 or later, as FP16 Q/DQ is not valid ONNX before. On
    the base ``"fp32"``, for TensorRT 8.6, the rest of the model stays float32 at its opset.

    Args:
        fp32_model: float32, from `export.from_keras.convert.export_keras`.
        scales: One for each of `quantizable_tensors`, except those that only kept nodes read.
        base: Precision of the nodes that are not quantized. Defaults to ``"fp16"``.
        kept: Node name -> why it stays in float. Defaults to None.

    Raises:
        ProjectError: If the model is already quantized, a scale is missing, or a weight does not fit FP16.
    """
    kept = kept or {}
    if "QuantizeLinear" in op_counts(fp32_model):
        raise ProjectError("Expected a float model. Received: one with QuantizeLinear (quantize the FP32 export).")
    if len({node.name for node in fp32_model.graph.node if node.name}) != len(fp32_model.graph.node):
        raise ProjectError("Expected a name of its own for each node. Received: empty or equal ones (export it again).")
    edges = quantized_edges(fp32_model, kept)
    if missing := [edge.tensor for edge in edges if edge.tensor not in scales.scales]:
        raise ProjectError(
            f"Expected a scale for each of {count(len(edges), 'quantized input')}. Received: none for {missing[:3]} "
            "(calibrate with this very model)."
        )

    result = copy_model(fp32_model)
    if base == "fp16":
        result = convert_opset(result, max(opset(result), MINIMUM_OPSET))
    graph = result.graph
    nodes = {node.name: node for node in graph.node}
    activations = {
        tensor: insert_pair(graph, tensor, np.asarray(scales.scales[tensor], dtype=np.float32), axis=None)
        for tensor in dict.fromkeys(edge.tensor for edge in edges)
    }
    convs = [nodes[edge.node] for edge in edges if nodes[edge.node].op_type == "Conv"]
    table = constants(graph)
    weights = {
        name: insert_pair(graph, name, weight_scales(numpy_helper.to_array(table[name])), axis=0)
        for name in dict.fromkeys(conv.input[1] for conv in convs)
    }
    for edge in edges:
        nodes[edge.node].input[edge.index] = activations[edge.tensor]
    for conv in convs:
        conv.input[1] = weights[conv.input[1]]
    result = topological_sort(result)
    if base == "fp16":
        result = to_half(result, keep=[name for name, entry in kept.items() if entry.precision == "fp32"])
    else:
        check_model(result)
    return result, describe(fp32_model, edges, base, kept)


def scale_values(scales: Scales, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the scales of activations as the initializers of a quantized model, float32 () by name."""
    names = {_scale_name(tensor): value for tensor, value in scales.scales.items()}
    return {t.name: np.asarray(names[t.name], np.float32) for t in model.graph.initializer if t.name in names}


def _scale_name(tensor: str) -> str:
    return f"{tensor.replace(':', '_')}/scale"


def insert_pair(graph: onnx.GraphProto, tensor: str, scale: np.ndarray, axis: int | None) -> str:
    """Add QuantizeLinear and DequantizeLinear of a tensor (in place).

    Args:
        graph: The graph.
        tensor: Name of the tensor.
        scale: float32 () or, with an axis, (channels,).
        axis: The axis of the scales, None for one scale.

    Returns:
        The name of the dequantized tensor.
    """
    stem = tensor.replace(":", "_")
    zero = np.zeros(scale.shape, dtype=np.int8)
    scale_name, zero_name = _scale_name(tensor), f"{stem}/zero_point"
    graph.initializer.extend([numpy_helper.from_array(scale, scale_name), numpy_helper.from_array(zero, zero_name)])
    quantized, dequantized = f"{stem}/quantized", f"{stem}/dequantized"
    extra: dict[str, Any] = {} if axis is None else {"axis": axis}
    graph.node.extend(
        [
            helper.make_node(
                "QuantizeLinear", [tensor, scale_name, zero_name], [quantized], f"{stem}/QuantizeLinear", **extra
            ),
            helper.make_node(
                "DequantizeLinear",
                [quantized, scale_name, zero_name],
                [dequantized],
                f"{stem}/DequantizeLinear",
                **extra,
            ),
        ]
    )
    return dequantized
