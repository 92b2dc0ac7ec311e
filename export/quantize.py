"""INT8 as explicit Q/DQ pairs in the ONNX file, on an FP16 base.

Symmetric int8 with zero point 0; activations per tensor with calibrated scales, Conv weights per output channel. Where
the pairs go is decided in `export.placement`.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.calibration import INT8_MAX, MINIMUM_SCALE, Scales
from export.errors import ExportError
from export.graph import constants, convert_opset, copy_model, op_counts, opset, topological_sort
from export.placement import Placement, describe, placement_table, quantizable_tensors, quantized_edges
from export.precision import MINIMUM_OPSET, to_fp16

__all__ = ["Placement", "placement_table", "quantizable_tensors", "quantize", "weight_scales"]

logger = logging.getLogger(__name__)


def quantize(fp32_model: onnx.ModelProto, scales: Scales) -> tuple[onnx.ModelProto, list[Placement]]:
    """Returns the INT8 model, and what each of its nodes computes in.

    The model goes to opset 19 or later, gets its Q/DQ pairs, one per tensor however many read it, and is then
    converted to FP16, scales included: FP16 Q/DQ is not valid ONNX before opset 19.

    Args:
        fp32_model: float32, as `export.keras_to_onnx.export_keras` makes it.
        scales: One for each of `quantizable_tensors`.

    Raises:
        ExportError: If the model is quantised already, a scale is missing, or a weight does not fit FP16.
    """
    if "QuantizeLinear" in op_counts(fp32_model):
        raise ExportError("Expected a float model. Received: one with QuantizeLinear (quantise the FP32 export).")
    if len({node.name for node in fp32_model.graph.node if node.name}) != len(fp32_model.graph.node):
        raise ExportError("Expected a name of its own for each node. Received: empty or equal ones (export it again).")
    edges = quantized_edges(fp32_model)
    missing = [edge.tensor for edge in edges if edge.tensor not in scales.scales]
    if missing:
        raise ExportError(
            f"Expected a scale for each of {len(edges)} quantised inputs. Received: none for {missing[:3]} "
            "(calibrate with this very model)."
        )
    if not edges:
        raise ExportError("Expected a model with Convs to quantise. Received: none (nothing would become INT8).")

    result = copy_model(convert_opset(fp32_model, max(opset(fp32_model), MINIMUM_OPSET)))
    graph = result.graph
    nodes = {node.name: node for node in graph.node}
    for tensor in dict.fromkeys(edge.tensor for edge in edges):
        readers = [(edge.node, edge.index) for edge in edges if edge.tensor == tensor]
        scale = np.asarray(scales.scales[tensor], dtype=np.float32)
        dequantized = _insert_pair(graph, tensor, scale, axis=None)
        for name, index in readers:
            nodes[name].input[index] = dequantized
    table = constants(graph)
    done: dict[str, str] = {}
    for conv in (nodes[edge.node] for edge in edges if nodes[edge.node].op_type == "Conv"):
        weight = conv.input[1]
        if weight not in done:
            scale = weight_scales(numpy_helper.to_array(table[weight]))
            done[weight] = _insert_pair(graph, weight, scale, axis=0)
        conv.input[1] = done[weight]
    result = to_fp16(topological_sort(result))
    rows = describe(fp32_model, edges)
    logger.info("%d Q/DQ pairs, %s", op_counts(result)["QuantizeLinear"], placement_table(rows).splitlines()[-1])
    return result, rows


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Returns ``max(|w|) / 127`` of each output channel of a Conv weight, at least 2^-14.

    Args:
        weight: (out, in / groups, height, width).

    Returns:
        float32 (out,).
    """
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(axis=1)
    return np.maximum(largest / INT8_MAX, MINIMUM_SCALE).astype(np.float32)


def _insert_pair(graph: onnx.GraphProto, tensor: str, scale: np.ndarray, axis: int | None) -> str:
    """Adds QuantizeLinear and DequantizeLinear of a tensor (in place).

    Returns:
        The name of the dequantised tensor.
    """
    stem = tensor.replace(":", "_")
    zero = np.zeros(scale.shape, dtype=np.int8)
    scale_name, zero_name = f"{stem}/scale", f"{stem}/zero_point"
    graph.initializer.extend([numpy_helper.from_array(scale, scale_name), numpy_helper.from_array(zero, zero_name)])
    quantized, dequantized = f"{stem}/quantized", f"{stem}/dequantized"
    extra = {} if axis is None else {"axis": axis}
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
