"""Passes that fold a neighbour into a node's weights or attributes: exact in real numbers, computed in float64.

tf2onnx converts a Keras BatchNorm to Mul and Add behind the Conv if the Conv's bias is not zero, as in every trained
ResNet. They would stand between Conv, residual Add and ReLU and prevent INT8 placement and fusion. `fold_affine`
folds them in the graph, so the Keras model is never changed.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from export.errors import ProjectError
from export.onnx_passes.graph import (
    attribute,
    constants,
    consumers,
    copy_model,
    producers,
    tensor_shapes,
    topological_sort,
)
from export.onnx_passes.repairs import set_attribute

# The lowest float32: a Max with it changes nothing. `export.fp16.convert` replaces it by the lowest of another type.
LOWEST = np.finfo(np.float32).min
_AFFINE = ("Mul", "Add", "Sub", "Div")


def _per_channel(value: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """Return a constant that broadcasts to (N, C, ...) as float64 (channels,), None if it is not one per channel."""
    if value.size == 1:
        return np.full(channels, value.reshape(()), dtype=np.float64)
    shape = (1,) * (rank - value.ndim) + value.shape
    return value.reshape(-1).astype(np.float64) if shape == (1, channels, *[1] * (rank - 2)) else None


def _affine_operand(
    node: onnx.NodeProto, data: str, table: dict[str, onnx.TensorProto], weight: np.ndarray
) -> np.ndarray | None:
    """Return the constant of ``data op constant`` per channel of a Conv, None if the node has another form."""
    if node.op_type not in _AFFINE or len(node.input) != 2:
        return None
    index = 1 if node.input[0] == data else 0
    if node.input[index] not in table or (node.op_type in ("Sub", "Div") and index == 0):
        return None
    return _per_channel(numpy_helper.to_array(table[node.input[index]]), weight.shape[0], weight.ndim)


def fold_affine(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold chains of per-channel Mul, Add, Sub and Div behind a Conv into its weight and bias.

    A chain ends where another node reads its result. Grouped convolutions are folded too, as axis 0 of their weight is
    the output channel as well.
    """
    result = copy_model(model)
    graph = result.graph
    outputs = {o.name for o in graph.output}
    folded: list[onnx.NodeProto] = []
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        table, readers = constants(graph), consumers(graph)
        if conv.input[1] not in table or any(name and name not in table for name in conv.input[2:]):
            continue
        weight = numpy_helper.to_array(table[conv.input[1]]).astype(np.float64)
        bias = numpy_helper.to_array(table[conv.input[2]]) if any(conv.input[2:]) else np.zeros(weight.shape[0])
        tail = conv.output[0]
        while tail not in outputs and len(readers.get(tail, ())) == 1:
            node = readers[tail][0]
            operand = _affine_operand(node, tail, table, weight)
            if operand is None:
                break
            if node.op_type in ("Mul", "Div"):
                factor = operand if node.op_type == "Mul" else 1.0 / operand
                weight = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
                bias = bias * factor
            else:
                bias = bias + (operand if node.op_type == "Add" else -operand)
            folded.append(node)
            tail = node.output[0]
        if tail == conv.output[0]:
            continue
        if not (np.all(np.isfinite(weight)) and np.all(np.isfinite(bias))):
            raise ProjectError(
                f"Expected finite weights. Received: NaN or infinity in {conv.name!r} once its BatchNorm is folded "
                "(train the model again, its statistics are broken)."
            )
        _set_weights(graph, conv, weight, bias)
        conv.output[0] = tail
    for node in folded:
        graph.node.remove(node)
    return topological_sort(result)


def _set_weights(graph: onnx.GraphProto, conv: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray) -> None:
    """Give a Conv new float32 initializers; the old ones may have other readers and stay (in place)."""
    conv.input.extend([""] * (3 - len(conv.input)))
    for index, (role, value) in enumerate((("weight", weight), ("bias", bias)), start=1):
        # The old name comes first: `export.onnx_passes.layer_names` reads the Keras layer from it.
        name = f"{conv.input[index] or f'{conv.output[0]}/folded'}/{conv.output[0]}/{role}"
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        conv.input[index] = name


def unfolded_convs(model: onnx.ModelProto) -> list[str]:
    """Return the Convs that are still followed by a per-channel Mul, Add, Sub or Div, or a BatchNormalization.

    A scalar for all channels is no BatchNorm: GELU and hard swish contain such.
    """
    table, readers = constants(model.graph), consumers(model.graph)
    per_channel = {name for name, tensor in table.items() if math.prod(tensor.dims) > 1}
    return [
        f"{conv.name} ({node.op_type})"
        for conv in model.graph.node
        if conv.op_type == "Conv"
        for node in readers.get(conv.output[0], ())
        if node.op_type == "BatchNormalization" or (node.op_type in _AFFINE and not per_channel.isdisjoint(node.input))
    ]


def fold_pad_into_maxpool(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold a constant Pad before a MaxPool into the MaxPool's own padding, which saves a pass over the map.

    MaxPool pads with minus infinity. Behind a Relu that equals zero, so the Pad is dropped. Elsewhere, as in ResNetV2,
    a Max behind the pool restores the border: its constant is the padding's value where a window touches the Pad, and
    the lowest finite value, which changes nothing, where it does not. If the Pad stayed, ONNX Runtime's Pad_Fusion
    would fold it and lose the border (microsoft/onnxruntime#24737).

    If a size is unknown, or a window may cover padding alone, the Pad stays, and the pool is set to ``auto_pad=VALID``,
    which Pad_Fusion respects.
    """
    result = copy_model(model)
    graph = result.graph
    table, producer, shapes = constants(graph), producers(graph), tensor_shapes(model)
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        pad = producer.get(pool.input[0])
        padding = _constant_pad(pad, table) if pad is not None else None
        if pad is None or padding is None or any(pool.output[1:]):
            continue
        added, value = padding
        kernel = list(attribute(pool, "kernel_shape"))
        sides = [side for side in shapes.get(pool.input[0], ())[2:] if isinstance(side, int)]
        own = _own_padding(pool, sides)
        pads = [before + more for before, more in zip(own or (), added)]
        if (
            own is None
            or not len(pads) == len(added) == 2 * len(kernel)
            or any(not 0 <= total < k for total, k in zip(pads, kernel * 2))
            or min(added) < 0
        ):
            unpadded = attribute(pool, "auto_pad", b"NOTSET") == b"NOTSET" and not any(attribute(pool, "pads", [0]))
            if unpadded and not attribute(pool, "ceil_mode", 0):
                set_attribute(pool, "auto_pad", "VALID", instead_of=["pads"])
            continue
        set_attribute(pool, "pads", pads, instead_of=["auto_pad"])
        source = producer.get(pad.input[0])
        dilated = any(d != 1 for d in attribute(pool, "dilations", [1]))  # a window may cover padding alone
        if value != 0 or source is None or source.op_type != "Relu" or dilated:
            _append_border(graph, pool, _touching(pool, sides, own, added), value)
        pool.input[0] = pad.input[0]
    return topological_sort(result)


def _windows(pool: onnx.NodeProto) -> tuple[list[int], list[int], list[int]]:
    """Return a pool's strides, its dilations, and the extent of a window, for each spatial axis."""
    kernel = attribute(pool, "kernel_shape")
    ones = [1] * len(kernel)
    dilations = list(attribute(pool, "dilations", ones))
    return list(attribute(pool, "strides", ones)), dilations, [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]


def _own_padding(pool: onnx.NodeProto, sides: Sequence[int]) -> list[int] | None:
    """Return a MaxPool's padding, begins and ends, None if its attributes and sizes do not determine it."""
    strides, _, extents = _windows(pool)
    kind = attribute(pool, "auto_pad", b"NOTSET")
    if len(sides) != len(strides) or attribute(pool, "ceil_mode", 0) or kind == b"SAME_LOWER":
        return None
    if kind == b"SAME_UPPER":
        totals = [
            max((math.ceil(side / stride) - 1) * stride + extent - side, 0)
            for side, stride, extent in zip(sides, strides, extents)
        ]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    unpadded = [0] * 2 * len(strides)
    return list(attribute(pool, "pads", unpadded)) if kind == b"NOTSET" else unpadded


def _touching(pool: onnx.NodeProto, sides: Sequence[int], own: Sequence[int], added: Sequence[int]) -> np.ndarray:
    """Return which windows of a pool touch the border that a Pad added to its input, bool (1, 1, ...).

    Args:
        pool: A MaxPool.
        sides: Sizes of its input.
        own: The pool's own padding, begins and ends, which is no part of the border.
        added: Widths of the border, begins and ends.
    """
    rank = len(sides)
    border = np.ones(sides, dtype=bool)
    border[tuple(slice(begin, side - end) for side, begin, end in zip(sides, added, added[rank:]))] = False
    padded = np.pad(border, list(zip(own, own[rank:])))
    strides, dilations, extents = _windows(pool)
    taps = np.lib.stride_tricks.sliding_window_view(padded, extents)
    taps = taps[tuple(slice(None, None, step) for step in (*strides, *dilations))]
    return np.asarray(taps.any(axis=tuple(range(rank, 2 * rank))))[None, None]


def _append_border(graph: onnx.GraphProto, pool: onnx.NodeProto, touched: np.ndarray, value: float) -> None:
    """Add a Max with a constant border behind a MaxPool, whose output name it takes over (in place)."""
    result = pool.output[0]
    name = f"{result}/border"
    border = np.where(touched, np.float32(value), LOWEST).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(border, name))
    pool.output[0] = f"{result}/pooled"
    graph.node.append(onnx.helper.make_node("Max", [pool.output[0], name], [result], f"{pool.name or result}/Max"))


def _constant_pad(pad: onnx.NodeProto, table: dict[str, onnx.TensorProto]) -> tuple[list[int], float] | None:
    """Return the begins and ends of a constant Pad's spatial axes, and its value; None for any other node."""
    if pad.op_type != "Pad" or attribute(pad, "mode", b"constant") != b"constant":
        return None
    amounts, fill = pad.input[1], pad.input[2] if len(pad.input) > 2 else ""
    if amounts not in table or (fill and fill not in table) or any(pad.input[3:]):
        return None
    value = float(numpy_helper.to_array(table[fill]).reshape(())) if fill else 0.0
    begins, ends = numpy_helper.to_array(table[amounts]).reshape(2, -1).tolist()
    return None if any(begins[:2] + ends[:2]) else (begins[2:] + ends[2:], value)


def fold_channel_order(model: onnx.ModelProto, order: Sequence[int]) -> onnx.ModelProto | None:
    """Permute the weights of the first Conv to RGB order, so that no channels are reordered at run time.

    Args:
        model: Its NHWC input reaches one ungrouped Conv through Transpose and zero Pads alone.
        order: For each channel of the Conv's training, its index in RGB.

    Returns:
        The model with permuted weights (``weight[:, order[c]] = trained[:, c]``), None if its graph has another form.
    """
    result = copy_model(model)
    graph = result.graph
    table, readers = constants(graph), consumers(graph)
    tensor = graph.input[0].name
    while len(readers.get(tensor, ())) == 1:
        node = readers[tensor][0]
        to_nchw = node.op_type == "Transpose" and list(attribute(node, "perm", [])) == [0, 3, 1, 2]
        padded = _constant_pad(node, table)
        if to_nchw or (padded is not None and padded[1] == 0):
            tensor = node.output[0]
        elif node.op_type == "Conv" and attribute(node, "group", 1) == 1 and node.input[1] in table:
            trained = numpy_helper.to_array(table[node.input[1]])
            if trained.ndim != 4 or trained.shape[1] != len(order):
                return None
            weight = np.empty_like(trained)
            weight[:, list(order)] = trained
            name = f"{node.input[1]}/rgb"
            graph.initializer.append(numpy_helper.from_array(weight, name))
            node.input[1] = name
            return topological_sort(result)
        else:
            return None
    return None
