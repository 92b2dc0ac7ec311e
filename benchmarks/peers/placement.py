"""What a quantised file computes in INT8."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def placement(model: onnx.ModelProto) -> dict[str, Any]:
    """Count what a Q/DQ graph computes in INT8.

    Args:
        model: the quantised model.

    Returns:
        dict: ``int8`` (op type to ``{"int8", "of"}``; a Conv, MatMul or Gemm counts where activation and weight are
        quantised, another op where its first input is), ``add_inputs`` (quantised inputs of an Add to number of such
        Adds), ``activation_pairs`` (activations with their own Q/DQ), and what TensorRT refuses:
        ``quantized_biases``, ``nonzero_zero_points``.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {one.name: one for one in model.graph.initializer}

    def dequantize(name: str) -> onnx.NodeProto | None:
        node = made_by.get(name)
        while node is not None and node.op_type == "Cast":
            node = made_by.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def quantized(node: onnx.NodeProto, inputs: Iterable[int]) -> list[bool]:
        return [len(node.input) > one and dequantize(node.input[one]) is not None for one in inputs]

    found: dict[str, list[bool]] = collections.defaultdict(list)
    adds: collections.Counter[int] = collections.Counter()
    biases = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            found[node.op_type].append(all(quantized(node, (0, 1))))
            biases += quantized(node, (2,))[0]
        elif node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"):
            found[node.op_type].append(quantized(node, (0,))[0])
        elif node.op_type == "Add":
            adds[sum(quantized(node, (0, 1)))] += 1
    halves = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    pairs = [node for node in halves if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
    zeros = [constants[name] for node in halves for name in node.input[2:3] if name in constants]
    return {
        "int8": {op: {"int8": sum(flags), "of": len(flags)} for op, flags in sorted(found.items())},
        "add_inputs": {str(count): number for count, number in sorted(adds.items())},
        "activation_pairs": len(pairs),
        "quantized_biases": biases,
        "nonzero_zero_points": sum(bool(np.any(numpy_helper.to_array(one))) for one in zeros),
    }
