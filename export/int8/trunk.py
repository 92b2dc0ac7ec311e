"""The trunk of an INT8 graph: what lies between its pairs, and stays FP32 where the rest of the file is FP16.

A residual Add, a bias and a scale are rounded to the type of the trunk, and a shift makes biases larger. TensorRT fuses
them into the INT8 kernel before them, which adds up in FP32 in any case.
"""

from collections.abc import Mapping

import onnx

from export.onnx_passes.graph import Index

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_PASSING = (
    *("Relu", "LeakyRelu", "Clip", "MaxPool", "Max", "Min", "Pad", "Transpose", "Identity"),
    *("Add", "Sub", "Mul", "Div"),
)


def trunk_nodes(model: onnx.ModelProto, kept: Mapping[str, str] | None = None) -> set[str]:
    """Return the names of the nodes of the trunk.

    These are the pairs, the nodes that read a quantized tensor, and behind them the nodes that add a constant or a
    tensor of the trunk, rectify, pool or move values.

    Args:
        model: float32 with Q/DQ pairs, in topological order, each node with a name of its own.
        kept: Name of a node that is not quantized -> its precision. It is no part of the trunk, which begins again
            behind those in ``"fp32"``, and not behind those in ``"fp16"``. Defaults to None.
    """
    kept = kept or {}
    index = Index.of(model.graph)
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    trunk: set[str] = set()
    inside: set[str] = set(dequantized)  # tensors that nodes of the trunk write
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in index.constants]
        passes = node.op_type in _PASSING and bool(data) and inside.issuperset(data)
        if node.name in kept:
            inside.update(node.output if kept[node.name] == "fp32" else ())
        elif node.op_type in _PAIR or not dequantized.isdisjoint(node.input) or passes:
            trunk.add(node.name)
            inside.update(node.output)
    return trunk
