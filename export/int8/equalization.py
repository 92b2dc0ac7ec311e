"""Cross-layer equalization: scale the channels of an activation to similar ranges, as they share one INT8 scale.

The widest channel of an activation sets the rounding step of all channels. Conv weights have a scale per output
channel, so dividing an output channel of the Conv that writes the activation costs nothing. Every reader multiplies by
the same factor, so the function of the model does not change.

Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019; the balance
between activation and weight range: Xiao et al., SmoothQuant, ICML 2023, whose strength is 0.5.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from export.calibration import ChannelStatistics
from export.onnx_passes.folding import LOWEST
from export.onnx_passes.graph import Index, attribute, constants, copy_model, tensor_shapes

# What the search tries. The higher one favours activations: second-order rounding makes up for what the weights lose.
STRENGTHS = (0.5, 0.7)
_SMALLEST = 1e-3  # of the largest channel: a channel below it is nearly dead, and no factor helps
# Operators with y(x · s) = y(x) · s for s > 0, through which the factors of a channel pass.
_PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Squeeze", "Flatten")


@dataclass(frozen=True)
class Equalized:
    """An equalized model.

    Args:
        model: Its logits equal those of the original model up to rounding in float32.
        statistics: Those that `export.calibration.collect_statistics` would return for it.
        tensors: The number of these activations whose ranges changed.
        factors: Tensor name -> (C,), what its channels are multiplied by to have the values of the original model; of
            every tensor that changed, those without statistics too.
    """

    model: onnx.ModelProto
    statistics: dict[str, ChannelStatistics]
    tensors: int
    factors: Mapping[str, np.ndarray]


def equalize(
    model: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics], strength: float = STRENGTHS[0]
) -> Equalized:
    """Return the model with equalized channels.

    Activations connected by residual Adds and by operators that pass factors through share one set of factors. A group
    with another reader or writer (an output of the model, a Mul, a grouped Conv, a shared weight) is not changed.

    Args:
        model: float32, BatchNorm folded, without Q/DQ.
        statistics: Those of the activations that will be quantized.
        strength: 0 to 1: at 1 all channels of an activation get the same range, at 0 all inputs of a weight. Defaults
            to 0.5.
    """
    result = copy_model(model)
    graph = result.graph
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in constants(graph).items()}
    changed: dict[str, np.ndarray] = {}
    equalized: dict[str, ChannelStatistics] = {}
    undone: dict[str, np.ndarray] = {}
    for tensors, writers, readers in _groups(result):
        activations = {name: before for name, before in statistics.items() if name in tensors}
        convs = [node for node in readers if node.op_type == "Conv"]
        if activations and convs:
            factors = _factors(list(activations.values()), [weights[node.input[1]] for node in convs], strength)
            for node in writers:
                _scale(node, 1.0 / factors, weights, changed, output=True)
            for node in readers:
                _scale(node, factors, weights, changed, output=False)
            undone |= dict.fromkeys(sorted(tensors), factors)
            equalized |= {
                name: ChannelStatistics(before.low / factors, before.high / factors, before.mean / factors)
                for name, before in activations.items()
            }
    for tensor in graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    return Equalized(result, {**statistics, **equalized}, len(equalized), undone)


def _groups(model: onnx.ModelProto) -> Iterator[tuple[set[str], list[onnx.NodeProto], list[onnx.NodeProto]]]:
    """Yield activations that must share their factors, the nodes that write them, and those that read them."""
    graph, shapes, index = model.graph, tensor_shapes(model), Index.of(model.graph)
    table = index.constants
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    passing = [node for node in graph.node if _passes(node, shapes, table)]
    for node in passing:
        for name in node.input:
            if name and name not in table:
                parent[find(name)] = find(node.output[0])
    members: dict[str, set[str]] = {}
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name and name not in table:
                members.setdefault(find(name), set()).add(name)
    inside = {id(node) for node in passing}
    fixed = {value.name for value in (*graph.input, *graph.output)}
    for tensors in members.values():
        writers = [n for n in graph.node if id(n) not in inside and any(o in tensors for o in n.output)]
        readers = [n for n in graph.node if id(n) not in inside and any(i in tensors for i in n.input)]
        writable = all(
            node.op_type == "Conv"
            and attribute(node, "group", 1) == 1
            and all(_unshared(name, index) for name in node.input[1:] if name)
            for node in writers
        )
        readable = all(_reads_channels(node, shapes, index) for node in readers)
        if writers and readers and writable and readable and not tensors & fixed:
            yield tensors, writers, readers


def _passes(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int | str | None, ...]], table: Mapping[str, onnx.TensorProto]
) -> bool:
    """Return whether the factors of a channel pass through a node."""
    if node.op_type == "Add":
        before, after = (shapes.get(name) for name in node.input)
        return before is not None and before == after and not any(name in table for name in node.input)
    if node.op_type == "Pad":
        value = table.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return attribute(node, "mode", b"constant") == b"constant" and (
            value is None or not numpy_helper.to_array(value).any()
        )
    if node.op_type == "Max":  # the border of a pool, see `export.onnx_passes.folding`: 0 or `LOWEST`
        borders = [numpy_helper.to_array(table[name]) for name in node.input if name in table]
        return bool(borders) and all(np.isin(border, [0.0, float(LOWEST)]).all() for border in borders)
    if node.op_type in ("Squeeze", "Flatten", "Reshape"):  # (N, C, 1, 1) to (N, C) keeps the channels
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        return before is not None and after is not None and before[1:] == (*after[1:], 1, 1) and len(after) == 2
    return node.op_type in _PASSING


def _unshared(name: str, index: Index) -> bool:
    return name in index.constants and len(index.readers[name]) == 1


def _reads_channels(node: onnx.NodeProto, shapes: Mapping[str, tuple[int | str | None, ...]], index: Index) -> bool:
    """Return whether the factors of a node's input channels can be folded into its weight."""
    # The channels of a matrix are its last axis; those of a map of a MatMul are not.
    by_channel = attribute(node, "group", 1) == 1 if node.op_type == "Conv" else len(shapes.get(node.input[0], ())) == 2
    return (
        by_channel
        and node.op_type in ("Conv", "MatMul", "Gemm")
        and _unshared(node.input[1], index)
        and all(name in index.constants for name in node.input[2:] if name)
        and len(index.constants[node.input[1]].dims) >= 2
        and not attribute(node, "transA", 0)
    )


def _factors(activations: list[ChannelStatistics], kernels: list[np.ndarray], strength: float) -> np.ndarray:
    """Return the divisor of each channel, (C,): the weighted geometric mean of activation range over weight range.

    They are normalized to keep the largest value of the first activation, so its headroom in FP16 does not change.
    """
    spread = np.maximum.reduce([a.largest / max(a.limit, 1e-30) for a in activations])
    reach = []
    for kernel in kernels:
        largest = np.abs(kernel.astype(np.float64)).reshape(*kernel.shape[:2], -1).max(axis=2)
        rows = largest.max(axis=1, keepdims=True)
        reach.append((largest / np.where(rows > 0, rows, 1.0)).max(axis=0))
    widths = np.maximum(spread, _SMALLEST) ** strength
    factors = widths / np.maximum(np.maximum.reduce(reach), _SMALLEST) ** (1.0 - strength)
    first = activations[0].largest
    return np.asarray(factors * ((first / factors).max() / first.max() if first.any() else 1.0))


def _scale(
    node: onnx.NodeProto,
    factors: np.ndarray,
    weights: Mapping[str, np.ndarray],
    changed: dict[str, np.ndarray],
    output: bool,
) -> None:
    """Multiply a node's weight along its output channels (with its bias) or input channels; store it in `changed`."""
    name = node.input[1]
    weight = changed.get(name, weights[name].astype(np.float64))
    inputs_first = node.op_type != "Conv" and not attribute(node, "transB", 0)
    axis = 0 if output or inputs_first else 1
    changed[name] = weight * factors.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    if output and len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        changed[bias] = changed.get(bias, weights[bias].astype(np.float64)) * factors
