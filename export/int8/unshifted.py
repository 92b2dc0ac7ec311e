"""Tensors that keep 128 levels although they are not a ReLU's output: what nodes that refuse the shift make of one.

A Concat of rectified maps, a mean with the zeros of its border, a map times its gate: none of them is negative, so
symmetric INT8 uses half of its levels, and no region of `export.int8.regions` reaches them.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import numpy_helper

from export.onnx_passes.graph import Index

_OF_FIRST = (
    *("Identity", "Dropout", "Squeeze", "Unsqueeze", "Flatten", "Reshape", "Transpose", "Slice", "Split"),
    *("DepthToSpace", "SpaceToDepth", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
)
_OF_ALL = ("Add", "Sum", "Mul", "Concat", "Min")
_GATES = ("Sigmoid", "HardSigmoid", "Softmax")


def never_negative(graph: onnx.GraphProto, index: Index, rectified: Collection[str]) -> set[str]:
    """Return the tensors that hold no negative value, as far as the structure of a graph tells.

    Args:
        graph: In topological order.
        index: Of the graph.
        rectified: The outputs of its ReLUs.
    """
    found = set(rectified)

    def holds(name: str) -> bool:
        constant = index.constants.get(name)
        return name in found or (constant is not None and bool((numpy_helper.to_array(constant) >= 0).all()))

    for node in graph.node:
        if (
            node.op_type in _GATES
            or (node.op_type in _OF_FIRST and holds(node.input[0]))
            or (node.op_type in _OF_ALL and all(map(holds, node.input)))
            or (node.op_type == "Max" and any(map(holds, node.input)))
        ):
            found.update(node.output)
    return found


def behind(node: onnx.NodeProto, index: Index, rectified: Collection[str], positive: Collection[str]) -> list[str]:
    """Return the tensors that a node, and those behind it, make of a ReLU's values, up to the next Conv or ReLU.

    Args:
        node: It reads the values.
        index: Of the graph.
        rectified: The outputs of the graph's ReLUs.
        positive: From `never_negative`; other tensors use all of their levels.
    """
    found: list[str] = []
    pending = [node]
    while pending:
        reader = pending.pop(0)
        if reader.op_type not in (*_OF_FIRST, *_OF_ALL, "Max"):
            continue
        for name in reader.output:
            if name in positive and name not in rectified and name not in found:
                found.append(name)
                pending += index.readers.get(name, ())
    return found
