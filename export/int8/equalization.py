"""Cross-layer equalization: channels of one activation get ranges that share its INT8 scale well.

An activation has one scale, so its widest channel decides how coarsely all others are rounded; Conv weights have a
scale for each output channel, so dividing an output channel of the Conv that writes it costs nothing. The function of
the model does not change: what the writer divides by, every reader multiplies with.

Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019; the balance
between activation and weight range: Xiao et al., SmoothQuant, ICML 2023, with their strength of 0.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from export.calibration import ChannelStatistics
from export.onnx_passes.folding import LOWEST
from export.onnx_passes.graph import attribute, constants, consumers, copy_model, tensor_shapes

STRENGTH = 0.5
_SMALLEST = 1e-3  # of the largest channel: below it a channel is as good as dead, and no factor helps it
# y(x · s) = y(x) · s for s > 0: the factors of a channel pass through.
_PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Squeeze", "Flatten")


@dataclass(frozen=True)
class Equalized:
    """An equalized model.

    Args:
        model: Its logits are those of the model it was made from, rounding in float32 aside.
        statistics: What `export.calibration.collect_statistics` would find of it.
        tensors: How many of those activations were given other ranges.
    """

    model: onnx.ModelProto
    statistics: dict[str, ChannelStatistics]
    tensors: int


def equalize(model: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics]) -> Equalized:
    """Return the model with equalized channels.

    Activations tied by residual Adds and by what lets factors pass share one set of factors. A group that something
    else reads or writes (an output of the model, a Mul, a grouped Conv, a shared weight) stays as it is.

    Args:
        model: float32, BatchNorm folded, without Q/DQ.
        statistics: Of the activations that will be quantized.
    """
    result = copy_model(model)
    graph = result.graph
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in constants(graph).items()}
    changed: dict[str, np.ndarray] = {}
    found = dict(statistics)
    for group in _groups(result):
        activations = [name for name in found if name in group.tensors]
        convs = [node for node in group.readers if node.op_type == "Conv"]
        if not activations or not convs:
            continue
        factors = _factors([found[name] for name in activations], [weights[node.input[1]] for node in convs])
        for node in group.writers:
            _scale(node, 1.0 / factors, weights, changed, output=True)
        for node in group.readers:
            _scale(node, factors, weights, changed, output=False)
        for name in activations:
            before = found[name]
            found[name] = replace(
                before, low=before.low / factors, high=before.high / factors, mean=before.mean / factors
            )
    for tensor in graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    moved = sum(found[name] is not statistics[name] for name in statistics)
    return Equalized(result, {name: found[name] for name in statistics}, moved)


@dataclass(frozen=True)
class _Group:
    """Activations that must share their factors, who writes them and who reads them."""

    tensors: frozenset[str]
    writers: tuple[onnx.NodeProto, ...]
    readers: tuple[onnx.NodeProto, ...]


def _groups(model: onnx.ModelProto) -> list[_Group]:
    graph, shapes = model.graph, tensor_shapes(model)
    table, weight_readers = constants(graph), consumers(graph)
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
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
    groups = []
    for tensors in members.values():
        writers = [n for n in graph.node if id(n) not in inside and any(o in tensors for o in n.output)]
        readers = [n for n in graph.node if id(n) not in inside and any(i in tensors for i in n.input)]
        free = all(_writes_channels(n, table, weight_readers) for n in writers) and all(
            _reads_channels(n, shapes, table, weight_readers) for n in readers
        )
        if writers and readers and free and not tensors & fixed:
            groups.append(_Group(frozenset(tensors), tuple(writers), tuple(readers)))
    return groups


def _passes(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int | str | None, ...]], table: Mapping[str, onnx.TensorProto]
) -> bool:
    if node.op_type == "Add":
        before, after = (shapes.get(name) for name in node.input)
        return before is not None and before == after and not any(name in table for name in node.input)
    if node.op_type == "Pad":
        value = table.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return attribute(node, "mode", b"constant") == b"constant" and (
            value is None or not numpy_helper.to_array(value).any()
        )
    if node.op_type == "Max":  # the border of a pool, see export.onnx_passes.folding: 0 or nothing
        borders = [numpy_helper.to_array(table[name]) for name in node.input if name in table]
        return bool(borders) and all(np.isin(border, [0.0, float(LOWEST)]).all() for border in borders)
    if node.op_type in ("Squeeze", "Flatten", "Reshape"):  # (N, C, 1, 1) to (N, C): channels stay channels
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        return before is not None and after is not None and before[1:] == (*after[1:], 1, 1) and len(after) == 2
    return node.op_type in _PASSING


def _own(name: str, table: Mapping[str, onnx.TensorProto], readers: Mapping[str, list[onnx.NodeProto]]) -> bool:
    return name in table and len(readers[name]) == 1


def _writes_channels(
    node: onnx.NodeProto, table: Mapping[str, onnx.TensorProto], readers: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    return (
        node.op_type == "Conv"
        and attribute(node, "group", 1) == 1
        and all(_own(name, table, readers) for name in node.input[1:] if name)
    )


def _reads_channels(
    node: onnx.NodeProto,
    shapes: Mapping[str, tuple[int | str | None, ...]],
    table: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> bool:
    if node.op_type == "Conv" and attribute(node, "group", 1) != 1:
        return False
    if node.op_type != "Conv" and len(shapes.get(node.input[0], ())) != 2:  # elsewhere channels are not the last axis
        return False
    return (
        node.op_type in ("Conv", "MatMul", "Gemm")
        and _own(node.input[1], table, readers)
        and all(name in table for name in node.input[2:] if name)
        and len(table[node.input[1]].dims) >= 2
        and not attribute(node, "transA", 0)
    )


def _factors(activations: list[ChannelStatistics], kernels: list[np.ndarray]) -> np.ndarray:
    """Return what each channel is divided by, (C,), the geometric mean of activation range over weight range.

    Normalized so that the largest value of the first activation stays what it is: FP16 has the same room as before.
    """
    spread = np.maximum.reduce([a.largest / max(a.limit, 1e-30) for a in activations])
    reach = []
    for kernel in kernels:
        largest = np.abs(kernel.astype(np.float64)).reshape(*kernel.shape[:2], -1).max(axis=2)
        rows = largest.max(axis=1, keepdims=True)
        reach.append((largest / np.where(rows > 0, rows, 1.0)).max(axis=0))
    strength = np.maximum(spread, _SMALLEST) ** STRENGTH
    factors = strength / np.maximum(np.maximum.reduce(reach), _SMALLEST) ** (1.0 - STRENGTH)
    first = activations[0].largest
    return np.asarray(factors * ((first / factors).max() / first.max() if first.any() else 1.0))


def _scale(
    node: onnx.NodeProto,
    factors: np.ndarray,
    weights: Mapping[str, np.ndarray],
    changed: dict[str, np.ndarray],
    output: bool,
) -> None:
    """Multiply a node's weight (and bias, for `output`) along its output or input channels, into `changed`."""
    name = node.input[1]
    weight = changed.get(name, weights[name].astype(np.float64))
    inputs_first = node.op_type != "Conv" and not attribute(node, "transB", 0)
    axis = 0 if output or inputs_first else 1
    changed[name] = weight * factors.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    if output and len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        changed[bias] = changed.get(bias, weights[bias].astype(np.float64)) * factors
