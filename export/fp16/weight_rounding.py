"""Rounding of weights to FP16 such that the errors cancel in the sums that a Conv or a Gemm computes."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.calibration import ChannelStatistics
from export.fp16.convert import FP16_MAX, fp16_loss, preprocessing_nodes
from export.onnx_passes.graph import Index, attribute, constants, consumers, copy_model, tensor_shapes

_FEW = 256  # this many weights of a row nearly always suffice to restore its mean


def with_weights(
    model: onnx.ModelProto, weights: Mapping[str, np.ndarray], kept: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the model with other values of weights; their types stay.

    Args:
        model: float32 or FP16.
        weights: Node name -> its weight, from `rounded_weights` or `rounded_first_conv`.
        kept: Names of nodes that stay FP32 and keep their weights. Defaults to none.
    """
    result = copy_model(model)
    table = constants(result.graph)
    for node in result.graph.node:
        if node.name in weights and node.name not in kept:
            tensor = table[node.input[1]]
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(weights[node.name].astype(kind), tensor.name))
    return result


def rounded_weights(model: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics]) -> dict[str, np.ndarray]:
    """Return weights by node, rounded to FP16 values such that the mean of each output channel is kept.

    With rounding to nearest, the errors of a bias and of thousands of weights add up to an offset of each output
    channel that is the same for every image and is most of the loss of FP16 on a ResNet. Here a few weights of each
    output channel are rounded to their other neighbour in FP16, until the offset at the mean input vanishes. The error
    of a weight is at most a unit in the last place. `rounded_first_conv` rounds the first Conv, whose input channels
    are nearly equal. Weights that FP16 cannot hold are left out, see `export.fp16.convert.unfit_for_fp16`.

    Args:
        model: float32.
        statistics: Of the inputs of Conv, MatMul and Gemm, for their means; nodes without statistics are left out.
    """
    result = rounded_first_conv(model)
    index, shapes = Index.of(model.graph), tensor_shapes(model)
    first = {node.name for node in _first_convs(model)}
    for node in model.graph.node:
        known = statistics.get(node.input[0]) if node.input else None
        if (
            node.op_type not in ("Conv", "MatMul", "Gemm")
            or node.name in first
            or known is None
            or node.input[1] not in index.constants
            or len(index.readers[node.input[1]]) > 1
        ):
            continue
        weight = numpy_helper.to_array(index.constants[node.input[1]])
        if node.op_type != "Conv" and not weight.ndim == 2 == len(shapes.get(node.input[0], ())):
            continue  # of tokens or maps: statistics are of axis 1, a MatMul sums over the last axis
        across = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
        rows = weight.T if across else weight.reshape(weight.shape[0], -1)
        groups = attribute(node, "group", 1)
        inputs = len(known.mean) // groups
        if fp16_loss(weight) or not inputs or rows.shape[1] % inputs:
            continue
        by_group = np.repeat(known.mean.reshape(groups, inputs), rows.shape[1] // inputs, axis=1)
        mean = np.broadcast_to(by_group[:, None], (groups, len(rows) // groups, rows.shape[1])).reshape(rows.shape)
        rounded = _keep_mean(rows, mean, _bias_error(node, index, len(rows)))
        result[node.name] = np.ascontiguousarray(rounded.T) if across else rounded.reshape(weight.shape)
    return result


def rounded_first_conv(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the first Conv's weights by node, rounded to FP16 values whose errors cancel over the channels.

    The colour channels of a photo are nearly equal, so the sum of a weight over them matters. If each is rounded to
    nearest, weights of opposite signs leave a large error in a small sum. So the error of the largest is added to the
    next smaller one, as error diffusion does between pixels. The error of a weight is at most a unit in the last place
    of the largest of its channels, that of their sum half a unit of the smallest.

    Args:
        model: float32.
    """
    result = {}
    table = constants(model.graph)
    for node in _first_convs(model):
        weight = numpy_helper.to_array(table[node.input[1]])
        if fp16_loss(weight):
            continue
        order = np.argsort(-np.abs(weight), axis=1, kind="stable")
        falling = np.take_along_axis(weight, order, axis=1).astype(np.float64)
        carry = np.zeros_like(falling[:, 0])
        for channel in range(weight.shape[1]):
            target = falling[:, channel] + carry
            falling[:, channel] = target.astype(np.float16)
            carry = target - falling[:, channel]
        rounded = np.empty_like(weight)
        np.put_along_axis(rounded, order, falling.astype(np.float32), axis=1)
        result[node.name] = rounded
    return result


def _first_convs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    prepared = preprocessing_nodes(model)
    tensor = prepared[-1].output[0] if prepared else model.graph.input[0].name
    table = constants(model.graph)
    readers = consumers(model.graph).get(tensor, ())
    return [node for node in readers if node.op_type == "Conv" and node.input[1] in table]


def _bias_error(node: onnx.NodeProto, index: Index, count: int) -> np.ndarray:
    """Return the rounding error of the bias of each output, float64 (count,); it may be an Add behind a MatMul."""
    name = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == "MatMul" and len(index.readers.get(node.output[0], ())) == 1:
        after = index.readers[node.output[0]][0]
        name = next((i for i in after.input if i in index.constants), "") if after.op_type == "Add" else ""
    if name not in index.constants or list(index.constants[name].dims) != [count]:
        return np.zeros(count)
    bias = numpy_helper.to_array(index.constants[name]).astype(np.float64)
    return np.asarray(bias.astype(np.float16).astype(np.float64) - bias)


def _keep_mean(rows: np.ndarray, mean: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return (O, K) float32 weights rounded to FP16 that keep their sums with means (O, K) and offset (O,); float64.

    Greedy: in each row the weights whose other neighbour costs least error per change of the sum are changed first,
    equal ones in order. The first few, which nearly always suffice, are tried in all rows at once.
    """
    half = rows.astype(np.float16)
    nearest = half.astype(np.float64)
    lost = nearest - rows
    toward = np.where(lost > 0, np.float16(-FP16_MAX), np.float16(FP16_MAX))
    other = np.nextafter(half, toward).astype(np.float64)
    moves = (other - nearest) * mean
    price = np.abs(other - rows)
    price -= np.abs(lost)
    price /= np.maximum(np.abs(moves), 1e-30)
    errors = (lost * mean).sum(axis=1) + offset
    enough = np.abs(errors) * 1e-2
    few = min(_FEW, rows.shape[1] - 1)
    first = np.argpartition(price, few, axis=1)[:, : few + 1]
    limit = np.take_along_axis(price, first[:, few:], axis=1)  # equal prices may be among the others as well
    first = np.sort(first[:, :few], axis=1)
    costs = np.take_along_axis(price, first, axis=1)
    first = np.take_along_axis(first, np.argsort(costs, axis=1, kind="stable"), axis=1)
    tried = (costs < limit).sum(axis=1)
    for step, (index, move) in enumerate(zip(first.T, np.take_along_axis(moves, first, axis=1).T)):
        left = np.flatnonzero((np.abs(errors) > enough) & (step < tried))
        if not left.size:
            break
        moved = errors[left] + move[left]
        taken = left[np.abs(moved) < np.abs(errors[left])]
        errors[taken] += move[taken]
        nearest[taken, index[taken]] = other[taken, index[taken]]
    for row in np.flatnonzero(np.abs(errors) > enough):
        for index in np.argsort(price[row], kind="stable")[tried[row] :]:
            if np.abs(errors[row]) <= enough[row]:
                break
            if np.abs(errors[row] + moves[row, index]) < np.abs(errors[row]):
                errors[row] += moves[row, index]
                nearest[row, index] = other[row, index]
    return nearest
