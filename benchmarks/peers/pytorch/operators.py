"""Convert each ONNX operator of our exporter to PyTorch: a layer with the file's weights, or a function.

Each handler takes the converter and the node, and returns the fx node of its first output.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch.nn import functional

from export.onnx_passes.graph import attribute

if TYPE_CHECKING:
    from benchmarks.peers.pytorch.convert import Converter

_FRESH = ("Conv", "Add")  # operators with an output of their own, so that a following ReLU may overwrite it


def _pads(it: Converter, node: onnx.NodeProto) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the padding before and after, each (height, width)."""
    auto = attribute(node, "auto_pad", b"NOTSET")
    it.expect(auto in (b"NOTSET", b"VALID"), node, "explicit padding", f"auto_pad {auto.decode()}")
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    return (top, left), (bottom, right)


def _pair(node: onnx.NodeProto, name: str) -> tuple[int, int]:
    height, width = attribute(node, name, [1, 1])
    return height, width


def _padded(it: Converter, x: Any, before: Sequence[int], after: Sequence[int], value: float) -> Any:
    return it.call(functional.pad, x, [before[1], after[1], before[0], after[0]], value=value)


def _conv(it: Converter, node: onnx.NodeProto) -> Any:
    weight = it.constant(node, 1)
    it.expect(weight.ndim == 4, node, "a Conv over two dimensions", f"a kernel of shape {weight.shape}")
    bias = it.optional(node, 2)
    x, (before, after) = it.value(node), _pads(it, node)
    if before != after:
        x, before = _padded(it, x, before, after, 0.0), (0, 0)
    groups = attribute(node, "group", 1)
    layer = torch.nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride=_pair(node, "strides"),
        padding=before,
        dilation=_pair(node, "dilations"),
        groups=groups,
        bias=bias is not None,
    )
    return it.layer(node, _with_weights(it, layer, weight, bias), x)


def _with_weights(it: Converter, layer: Any, weight: np.ndarray, bias: np.ndarray | None) -> Any:
    layer.weight = torch.nn.Parameter(it.tensor(weight), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(it.tensor(bias), requires_grad=False)
    return layer


def _linear(it: Converter, node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray | None) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return it.layer(node, _with_weights(it, layer, weight, bias), it.value(node))


def _gemm(it: Converter, node: onnx.NodeProto) -> Any:
    weight, bias = it.constant(node, 1), it.optional(node, 2)
    weight = weight if attribute(node, "transB", 0) else weight.T
    plain = (
        attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        and not attribute(node, "transA", 0)
        and (bias is None or bias.size == len(weight))
    )
    it.expect(plain, node, "a Gemm that is x·W + b", "another alpha, beta, transA or bias")
    return _linear(it, node, weight, None if bias is None else bias.reshape(-1))


def _matmul(it: Converter, node: onnx.NodeProto) -> Any:
    weight = it.table.get(node.input[1])
    if weight is None or weight.ndim != 2:
        return it.call(torch.matmul, it.value(node), it.value(node, 1))
    add, index = _added_constant(it, node)
    if add is None or it.constant(add, index).shape not in ((weight.shape[1],), (1, weight.shape[1])):
        return _linear(it, node, weight.T, None)
    it.values[add.output[0]] = _linear(it, node, weight.T, it.constant(add, index).reshape(-1))  # includes the Add
    return it.values[add.output[0]]


def _added_constant(it: Converter, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, int]:
    """Return the Add that alone reads a node's result and adds a constant, and the index of the constant's input."""
    add = it.only_reader(node.output[0])
    if add is None or add.op_type != "Add" or add.name in it.prepared:
        return None, 0
    index = 1 - list(add.input).index(node.output[0])
    return (add, index) if add.input[index] in it.table else (None, 0)


def _mul(it: Converter, node: onnx.NodeProto) -> Any:
    """Multiply, together with a following Add where both are a BatchNorm that was not folded into a Conv."""
    add, index = _added_constant(it, node)
    if add is None or not any(name in it.table for name in node.input):
        return it.call(torch.mul, it.value(node), it.value(node, 1))
    it.values[add.output[0]] = it.call(torch.addcmul, it.value(add, index), it.value(node), it.value(node, 1))
    return it.values[add.output[0]]


def _relu(it: Converter, node: onnx.NodeProto) -> Any:
    producer = it.producers.get(node.input[0])
    fresh = producer is not None and producer.op_type in _FRESH and it.only_reader(node.input[0]) is not None
    return it.call(functional.relu, it.value(node), inplace=fresh)


def _max_pool(it: Converter, node: onnx.NodeProto) -> Any:
    it.expect(not any(node.output[1:]), node, "a MaxPool without indices", "one with indices")
    x, (before, after), kernel = it.value(node), _pads(it, node), _pair(node, "kernel_shape")
    if before != after or any(pad > size // 2 for pad, size in zip(before, kernel)):
        x, before = _padded(it, x, before, after, float("-inf")), (0, 0)
    return it.call(
        functional.max_pool2d,
        x,
        kernel,
        stride=_pair(node, "strides"),
        padding=before,
        dilation=_pair(node, "dilations"),
        ceil_mode=bool(attribute(node, "ceil_mode", 0)),
    )


def _average_pool(it: Converter, node: onnx.NodeProto) -> Any:
    before, after = _pads(it, node)
    it.expect(
        before == after and not attribute(node, "ceil_mode", 0) and _pair(node, "dilations") == (1, 1),
        node,
        "an AveragePool with equal padding",
        "other padding, ceil_mode or dilations",
    )
    return it.call(
        functional.avg_pool2d,
        it.value(node),
        _pair(node, "kernel_shape"),
        stride=_pair(node, "strides"),
        padding=before,
        count_include_pad=bool(attribute(node, "count_include_pad", 0)),
    )


def _pad(it: Converter, node: onnx.NodeProto) -> Any:
    pads = it.integers(node, "pads", 1) or []
    it.expect(
        attribute(node, "mode", b"constant") == b"constant" and not any(node.input[3:]),
        node,
        "a Pad with a constant on all axes",
        "another mode, or axes",
    )
    constant = it.optional(node, 2)
    value = 0.0 if constant is None else float(constant.reshape(-1)[0])
    rank = len(pads) // 2
    flat = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
    while flat[-2:] == [0, 0]:
        del flat[-2:]  # functional.pad takes the last axes only
    return it.call(functional.pad, it.value(node), flat, value=value) if flat else it.value(node)


def _cast(it: Converter, node: onnx.NodeProto) -> Any:
    to = attribute(node, "to")
    types = {TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64}
    types[TensorProto.FLOAT] = torch.float32 if node.name in it.prepared else it.dtype
    it.expect(to in types, node, "a Cast to FLOAT, INT32 or INT64", TensorProto.DataType.Name(to))
    return it.call_method("to", it.value(node), types[to])


def _gather(it: Converter, node: onnx.NodeProto) -> Any:
    indices = it.constant(node, 1)
    it.expect(
        indices.ndim == 1 and not (indices < 0).any(),
        node,
        "a Gather by a list of positions",
        f"indices of shape {indices.shape}",
    )
    return it.call(torch.index_select, it.value(node), attribute(node, "axis", 0), it.value(node, 1))


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """Reshape as ONNX does: 0 keeps a dimension, -1 is inferred."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _reshape(it: Converter, node: onnx.NodeProto) -> Any:
    it.expect(not attribute(node, "allowzero", 0), node, "a Reshape whose 0 keeps a dimension", "allowzero")
    return it.call(reshape, it.value(node), it.constant(node, 1).tolist())


def _flatten(it: Converter, node: onnx.NodeProto) -> Any:
    axis = attribute(node, "axis", 1)
    it.expect(axis == 1, node, "a Flatten that keeps the batch", f"axis {axis}")
    return it.call(torch.flatten, it.value(node), 1)


def _axes(it: Converter, node: onnx.NodeProto) -> tuple[int, ...]:
    axes = it.integers(node, "axes", 1)
    it.expect(axes is not None, node, f"a {node.op_type} over named axes", "none")
    return tuple(axes or ())


def _top_k(it: Converter, node: onnx.NodeProto) -> Any:
    it.expect(attribute(node, "largest", 1) == 1, node, "a TopK of the largest", "the smallest")
    both = it.call(torch.topk, it.value(node), int(it.constant(node, 1).reshape(-1)[0]), attribute(node, "axis", -1))
    it.values[node.output[1]] = it.call(operator.getitem, both, 1)
    return it.call(operator.getitem, both, 0)


def _function(name: str) -> Callable[[Converter, onnx.NodeProto], Any]:
    """Make the handler of an operator that is a function of torch with the same inputs."""

    def handler(it: Converter, node: onnx.NodeProto) -> Any:
        return it.call(getattr(torch, name), *(it.value(node, index) for index in range(len(node.input))))

    return handler


HANDLERS: dict[str, Callable[[Converter, onnx.NodeProto], Any]] = {
    "Add": _function("add"),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Conv": _conv,
    "Div": _function("div"),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda it, node: it.call(functional.adaptive_avg_pool2d, it.value(node), 1),
    "Identity": lambda it, node: it.value(node),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": lambda it, node: it.call(
        torch.mean, it.value(node), _axes(it, node), bool(attribute(node, "keepdims", 1))
    ),
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": _function("sigmoid"),
    "Softmax": lambda it, node: it.call(
        torch.softmax, it.value(node), attribute(node, "axis", -1), dtype=torch.float32
    ),
    "Squeeze": lambda it, node: it.call_method("squeeze", it.value(node), _axes(it, node)),
    "Sub": _function("sub"),
    "TopK": _top_k,
    "Transpose": lambda it, node: it.call_method("permute", it.value(node), tuple(attribute(node, "perm"))),
}
