"""What a quantised file computes in INT8."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Share:
    """How many nodes of a kind are computed in INT8, of how many."""

    int8: int = 0
    of: int = 0


@dataclass(frozen=True)
class Int8Placement:
    """What a Q/DQ graph computes in INT8, and what in it TensorRT refuses.

    Attributes:
        int8: op type to its share. A Conv, MatMul or Gemm counts where activation and weight are quantised, another op
            where its first input is.
        add_inputs: quantised inputs of an Add to number of such Adds.
        activation_pairs: activations with their own Q/DQ.
        quantized_biases: TensorRT refuses.
        nonzero_zero_points: TensorRT refuses, too.
    """

    int8: Mapping[str, Share]
    add_inputs: Mapping[str, int]
    activation_pairs: int
    quantized_biases: int
    nonzero_zero_points: int

    @property
    def convolutions(self) -> Share:
        """The share of the convolutions."""
        return self.int8.get("Conv", Share())


def placement(model: onnx.ModelProto) -> Int8Placement:
    """Count what a Q/DQ graph computes in INT8.

    Args:
        model: the quantised model.
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
    return Int8Placement(
        int8={op: Share(sum(flags), len(flags)) for op, flags in sorted(found.items())},
        add_inputs={str(count): number for count, number in sorted(adds.items())},
        activation_pairs=len(pairs),
        quantized_biases=biases,
        nonzero_zero_points=sum(bool(np.any(numpy_helper.to_array(one))) for one in zeros),
    )
