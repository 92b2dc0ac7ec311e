"""Puts right what tf2onnx makes of convolutions that are not plain ones."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph import attribute, constants, copy_model, tensor_shapes, topological_sort


def repair_transposed_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes negative pads of a ConvTranspose what they mean: zeros behind the result.

    tf2onnx spreads what TensorFlow's output has more than strides and kernel reach, Keras' ``output_padding``, over
    both sides as negative pads, which ONNX does not have; TensorFlow puts all of it at the end.
    """
    result = copy_model(model)
    for node in [node for node in result.graph.node if node.op_type == "ConvTranspose"]:
        pads = list(attribute(node, "pads", []))
        half = len(pads) // 2
        totals = [begin + end for begin, end in zip(pads[:half], pads[half:])]
        if all(total >= 0 for total in totals):
            continue
        begins = [begin if total >= 0 else 0 for begin, total in zip(pads[:half], totals)]
        ends = [end if total >= 0 else 0 for end, total in zip(pads[half:], totals)]
        kept = [item for item in node.attribute if item.name != "pads"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", begins + ends)])
        output, bare = node.output[0], f"{node.output[0]}/unpadded"
        node.output[0] = bare
        amounts = np.asarray([0] * (half + 4) + [max(0, -total) for total in totals], dtype=np.int64)
        result.graph.initializer.append(numpy_helper.from_array(amounts, f"{bare}/amounts"))
        result.graph.node.append(helper.make_node("Pad", [bare, f"{bare}/amounts"], [output], f"{node.name}/Pad"))
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
            kept = [item for item in node.attribute if item.name != "group"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("group", channels // depth)])
    return result
