"""Puts right what tf2onnx makes of convolutions that are not plain ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph import attribute, constants, copy_model, tensor_shapes, topological_sort


def set_attribute(node: onnx.NodeProto, name: str, value: object, instead_of: Sequence[str] = ()) -> None:
    """Gives a node an attribute in the place of the one of that name, and of some others (in place)."""
    for item in [item for item in node.attribute if item.name in (name, *instead_of)]:
        node.attribute.remove(item)
    node.attribute.append(helper.make_attribute(name, value))


def repair_transposed_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes negative pads of a ConvTranspose what they mean: zeros behind the result.

    tf2onnx spreads what TensorFlow's output has more than strides and kernel reach, Keras' ``output_padding``, over
    both sides as negative pads, which ONNX does not have; TensorFlow puts all of it at the end.
    """
    result = copy_model(model)
    table = constants(result.graph)
    for node in [node for node in result.graph.node if node.op_type == "ConvTranspose"]:
        pads = list(attribute(node, "pads", []))
        half = len(pads) // 2
        totals = [begin + end for begin, end in zip(pads[:half], pads[half:])]
        if all(total >= 0 for total in totals):
            continue
        set_attribute(node, "pads", [pad if total >= 0 else 0 for pad, total in zip(pads, totals * 2)])
        output, bare = node.output[0], f"{node.output[0]}/unpadded"
        node.output[0] = bare
        amounts = np.asarray([0] * (half + 4) + [max(0, -total) for total in totals], dtype=np.int64)
        result.graph.initializer.append(numpy_helper.from_array(amounts, f"{bare}/amounts"))
        padded = f"{output}/padded" if len(node.input) > 2 else output
        result.graph.node.append(helper.make_node("Pad", [bare, f"{bare}/amounts"], [padded], f"{node.name}/Pad"))
        if len(node.input) > 2:  # the zeros get the bias too
            bias = numpy_helper.to_array(table[node.input.pop(2)]).reshape(-1, *[1] * half)
            result.graph.initializer.append(numpy_helper.from_array(bias, f"{padded}/bias"))
            result.graph.node.append(helper.make_node("Add", [padded, f"{padded}/bias"], [output], f"{node.name}/Add"))
    return topological_sort(result)


def repair_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Adds up the biases of a Conv: tf2onnx gives it a fourth input where a second bias stands behind the first."""
    result = copy_model(model)
    table = constants(result.graph)
    for node in [node for node in result.graph.node if node.op_type == "Conv" and len(node.input) > 3]:
        if all(name in table for name in node.input[2:]):
            total = sum(numpy_helper.to_array(table[name]) for name in node.input[2:])
            name = f"{node.input[2]}/{node.output[0]}/sum"
            result.graph.initializer.append(numpy_helper.from_array(np.asarray(total), name))
            node.input[2:] = [name]
    return topological_sort(result)


def repair_groups(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives a Conv over three dimensions the groups that its weight is made for; tf2onnx counts them in two only."""
    result = copy_model(model)
    convs = [node for node in result.graph.node if node.op_type == "Conv" and attribute(node, "group", 1) == 1]
    table, shapes = constants(result.graph), tensor_shapes(model)
    for node in convs:
        source = shapes.get(node.input[0], ())
        if node.input[1] not in table or len(source) != 5 or not isinstance(channels := source[1], int):
            continue
        depth = table[node.input[1]].dims[1]
        if channels != depth:
            set_attribute(node, "group", channels // depth)
    return result
