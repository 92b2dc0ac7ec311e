"""INT8 as explicit Q/DQ pairs in the ONNX file, on an FP16 or an FP32 base.

Symmetric int8 with zero point 0: activations per tensor with calibrated scales, Conv weights per output channel. The
placement of the pairs is in `export.int8.placement`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.errors import ProjectError
from export.fp16.convert import FP16_MAX, MINIMUM_OPSET, to_half
from export.int8.placement import Edge, Kept, describe, quantized_edges
from export.int8.report import Placement
from export.int8.scales import Scales
from export.int8.shift import shift
from export.int8.trunk import trunk_nodes
from export.int8.weights import RoundedWeight, round_to_nearest
from export.onnx_passes.file import check_model
from export.onnx_passes.graph import (
    constants,
    consumers,
    convert_opset,
    copy_model,
    op_counts,
    opset,
    topological_sort,
)
from export.words import count

_WIDE = "FP16 cannot hold its bias, which makes up for a shift"


@dataclass(frozen=True)
class Int8Graph:
    """An INT8 graph.

    Args:
        model: The graph.
        placements: The precision of each of its nodes.
        offsets: Tensor -> float64 (1,): what has to be added to its values to have those of the float model,
            see `export.int8.shift`.
        shifted: The quantized tensors that are lowered, without those that only kept nodes read.
    """

    model: onnx.ModelProto
    placements: list[Placement]
    offsets: Mapping[str, np.ndarray]
    shifted: tuple[str, ...]


def quantize(
    fp32_model: onnx.ModelProto,
    scales: Scales,
    *,
    weights: Mapping[str, RoundedWeight] | None = None,
    base: str = "fp16",
    trunk: str = "fp32",
    kept: Mapping[str, Kept] | None = None,
) -> Int8Graph:
    """Return the INT8 graph.

    Each quantized tensor gets one Q/DQ pair for all of its readers; the shifted ones among `scales` are lowered where
    they are read as INT8. On the base ``"fp16"``, for TensorRT 10 and later, weights are INT8 codes with a
    DequantizeLinear, and the rest of the model is converted to FP16 at opset 19 or later, with a trunk of FP32 or of
    FP16, see `export.int8.trunk`. On the base ``"fp32"``, for TensorRT 8.6, weights are float values with a Q/DQ pair,
    and the rest of the model stays float32 at its opset.

    Args:
        fp32_model: float32, from `export.from_keras.convert.export_keras`.
        scales: One for each of `quantizable_tensors`, except those that only kept nodes read.
        weights: Name of a weight -> its codes; the others are rounded to nearest. Defaults to none.
        base: Precision of the nodes that are not quantized. Defaults to ``"fp16"``.
        trunk: Precision of scales, biases and Adds between quantized nodes on the base ``"fp16"``, where ``"fp16"``
            rounds the scales, too. Defaults to ``"fp32"``.
        kept: Node name -> why it stays in float. Defaults to None.

    Raises:
        ProjectError: If the model is already quantized, a scale is missing, or a weight does not fit FP16.
    """
    floats, weights = dict(kept or {}), weights or {}
    if "QuantizeLinear" in op_counts(fp32_model):
        raise ProjectError("Expected a float model. Received: one with QuantizeLinear (quantize the FP32 export).")
    if len({node.name for node in fp32_model.graph.node if node.name}) != len(fp32_model.graph.node):
        raise ProjectError("Expected a name of its own for each node. Received: empty or equal ones (export it again).")
    edges = quantized_edges(fp32_model, floats)
    if missing := [edge.tensor for edge in edges if edge.tensor not in scales.scales]:
        raise ProjectError(
            f"Expected a scale for each of {count(len(edges), 'quantized input')}. Received: none for {missing[:3]} "
            "(calibrate with this very model)."
        )
    kind = trunk if base == "fp16" else "fp32"
    scales = scales.of_type(kind)
    rounded = _rounded_weights(fp32_model, edges, weights, kind)
    tensors = list(dict.fromkeys(edge.tensor for edge in edges))
    half = base == "fp16"

    def weight_of(node: onnx.NodeProto) -> np.ndarray | None:
        if (node.name, node.input[1]) in rounded:
            return rounded[node.name, node.input[1]].values
        exact = not half or (node.name in floats and floats[node.name].precision == "fp32")
        return None if exact else _as_half(fp32_model, node.input[1])

    amounts = {name: scales.shift(name) for name in tensors if name in scales.shifted}
    shifted = shift(fp32_model, amounts, weight_of)
    wide = {name for name, value in shifted.largest.items() if half and value > FP16_MAX}
    if halves := {name: floats[name] for name in wide if name in floats and floats[name].precision == "fp16"}:
        floats |= {name: Kept("fp32", f"{entry.why}; {_WIDE}") for name, entry in halves.items()}
        shifted = shift(fp32_model, amounts, weight_of)  # with the sums of their weights in FP32
    result = copy_model(shifted.model)
    if half:
        result = convert_opset(result, max(opset(result), MINIMUM_OPSET))
    graph = result.graph
    nodes = {node.name: node for node in graph.node}
    activations = {
        tensor: insert_pair(graph, tensor, np.asarray(scales.scales[tensor], dtype=np.float32), axis=None)
        for tensor in tensors
    }
    readers = consumers(graph)
    read: dict[str, str] = {}
    for (node, name), weight in rounded.items():
        if name not in read:
            shared = any((reader.name, name) not in rounded for reader in readers[name])
            read[name] = _insert_codes(graph, name, weight) if half else _insert_rounded(graph, name, weight, shared)
        nodes[node].input[1] = read[name]
    for edge in edges:
        nodes[edge.node].input[edge.index] = activations[edge.tensor]
    result = topological_sort(result)
    stays = {name: entry.precision for name, entry in floats.items()}
    stay = trunk_nodes(result, stays) if half and kind == "fp32" else set()
    if half:
        stay |= shifted.lifted | wide
        result = to_half(result, keep=[*stay, *(name for name, precision in stays.items() if precision == "fp32")])
    else:
        check_model(result)
    placements = describe(fp32_model, edges, base, floats, stay, shifted.notes)
    return Int8Graph(result, placements, shifted.offsets, tuple(amounts))


def _rounded_weights(
    model: onnx.ModelProto, edges: Sequence[Edge], weights: Mapping[str, RoundedWeight], kind: str
) -> dict[tuple[str, str], RoundedWeight]:
    """Return (name of a quantized Conv, name of its weight) -> the rounded weight."""
    nodes, table = {node.name: node for node in model.graph.node}, constants(model.graph)
    names = {edge.node: nodes[edge.node].input[1] for edge in edges if nodes[edge.node].op_type == "Conv"}
    rounded = {
        name: weights.get(name) or round_to_nearest(numpy_helper.to_array(table[name]), kind)
        for name in dict.fromkeys(names.values())
    }
    return {(node, name): rounded[name] for node, name in names.items()}


def _as_half(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    tensor = constants(model.graph).get(name)
    return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)


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


def insert_lowered_pair(graph: onnx.GraphProto, tensor: str, scales: Scales) -> str:
    """Add the Q/DQ pair of an activation in the float model, of a shifted one between a Sub and an Add (in place).

    Returns:
        The name of the tensor with the values that the activation has in the INT8 graph.
    """
    scale, amount = np.asarray(scales.scales[tensor], np.float32), np.float32(scales.shift(tensor))
    if not amount:
        return insert_pair(graph, tensor, scale, axis=None)
    stem = tensor.replace(":", "_")
    graph.initializer.append(numpy_helper.from_array(np.asarray(amount), f"{stem}/amount"))
    lowered, result = f"{stem}/lowered", f"{stem}/lifted"
    graph.node.append(helper.make_node("Sub", [tensor, f"{stem}/amount"], [lowered], f"{stem}/Sub"))
    rounded = insert_pair(graph, lowered, scale, axis=None)
    graph.node.append(helper.make_node("Add", [rounded, f"{stem}/amount"], [result], f"{stem}/Add"))
    return result


def rounded_activations(
    model: onnx.ModelProto, scales: Scales, kept: Mapping[str, Kept] | None = None
) -> onnx.ModelProto:
    """Return a float model whose activations alone are rounded, for a judgement of scales without the weights' noise.

    Args:
        model: float32.
        scales: As for `quantize`; the shifted ones have 255 levels.
        kept: Node name -> why it stays in float. Defaults to None.
    """
    result = copy_model(model)
    edges = quantized_edges(model, kept or {})
    rounded = {
        tensor: insert_lowered_pair(result.graph, tensor, scales)
        for tensor in dict.fromkeys(edge.tensor for edge in edges)
    }
    nodes = {node.name: node for node in result.graph.node}
    for edge in edges:
        nodes[edge.node].input[edge.index] = rounded[edge.tensor]
    return topological_sort(result)


def _insert_rounded(graph: onnx.GraphProto, name: str, weight: RoundedWeight, shared: bool) -> str:
    """Put a weight's rounded values behind a Q/DQ pair (in place); return the tensor that Convs read.

    Args:
        graph: The graph.
        name: Name of the weight.
        weight: What it is rounded to.
        shared: Whether a node that stays in float reads it, too.
    """
    tensor = constants(graph)[name]
    if shared:
        tensor = graph.initializer.add()
        name = f"{name}/rounded"
    tensor.CopyFrom(numpy_helper.from_array(weight.values, name))
    return insert_pair(graph, name, weight.scales, axis=0)


def _insert_codes(graph: onnx.GraphProto, name: str, weight: RoundedWeight) -> str:
    """Add a weight's codes with a DequantizeLinear (in place); return the tensor that Convs read."""
    stem = name.replace(":", "_")
    zero = np.zeros(weight.scales.shape, np.int8)
    names = [f"{stem}/quantized", _scale_name(name), f"{stem}/zero_point"]
    for tensor, values in zip(names, (weight.codes, weight.scales, zero)):
        graph.initializer.append(numpy_helper.from_array(values, tensor))
    dequantized = f"{stem}/dequantized"
    graph.node.append(helper.make_node("DequantizeLinear", names, [dequantized], f"{stem}/DequantizeLinear", axis=0))
    return dequantized
