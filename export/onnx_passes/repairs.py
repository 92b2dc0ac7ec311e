"""Corrects what tf2onnx converts wrongly or not at all: some convolutions, resizing, graphs partly in half precision.

Every resizing but nearest neighbour is linear and separable. Between known sizes it is a product with two constant
matrices, which TensorFlow's own kernel gives for the unit vectors, so it is exact for every kernel, antialiased or not,
and every runtime has a MatMul.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.graph import attribute, bypass_nodes, constants, copy_model, tensor_shapes, topological_sort
from export.onnx_passes.shape_folding import RESIZES, evaluate_shapes


def set_attribute(node: onnx.NodeProto, name: str, value: object, instead_of: Sequence[str] = ()) -> None:
    """Set an attribute of a node and remove others (in place).

    Args:
        node: The node.
        name: The attribute's name.
        value: Its value.
        instead_of: Names of attributes to remove. Defaults to none.
    """
    for item in [item for item in node.attribute if item.name in (name, *instead_of)]:
        node.attribute.remove(item)
    node.attribute.append(helper.make_attribute(name, value))


def repair_transposed_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace negative pads of a ConvTranspose by zeros at the end of its result.

    Keras' ``output_padding`` makes an output larger than strides and kernel cover. TensorFlow puts all of the
    difference at the end; tf2onnx spreads it over both sides as negative pads, which ONNX does not allow.
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
        output, unpadded = node.output[0], f"{node.output[0]}/unpadded"
        node.output[0] = unpadded
        amounts = np.asarray([0] * (half + 4) + [max(0, -total) for total in totals], dtype=np.int64)
        result.graph.initializer.append(numpy_helper.from_array(amounts, f"{unpadded}/amounts"))
        padded = f"{output}/padded" if len(node.input) > 2 else output
        result.graph.node.append(
            helper.make_node("Pad", [unpadded, f"{unpadded}/amounts"], [padded], f"{node.name}/Pad")
        )
        if len(node.input) > 2:  # the bias is added to the zeros too
            bias = numpy_helper.to_array(table[node.input.pop(2)]).reshape(-1, *[1] * half)
            result.graph.initializer.append(numpy_helper.from_array(bias, f"{padded}/bias"))
            result.graph.node.append(helper.make_node("Add", [padded, f"{padded}/bias"], [output], f"{node.name}/Add"))
    return topological_sort(result)


def repair_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sum the biases of a Conv: tf2onnx adds a fourth input to it for a second bias behind the first."""
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
    """Set the groups of a 3-D Conv from the shape of its weight; tf2onnx sets them for 2-D Convs only."""
    result = copy_model(model)
    convs = [node for node in result.graph.node if node.op_type == "Conv" and attribute(node, "group", 1) == 1]
    table, shapes = constants(result.graph), tensor_shapes(model)
    for node in convs:
        source = shapes.get(node.input[0], ())
        if node.input[1] in table and len(source) == 5 and isinstance(channels := source[1], int):
            depth = table[node.input[1]].dims[1]
            if channels != depth:
                set_attribute(node, "group", channels // depth)
    return result


def expand_resizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace TensorFlow's resizing operations by Gathers (nearest neighbour) or MatMuls (all others).

    Args:
        model: With these operations as tf2onnx leaves them, NHWC, and shapes folded.

    Raises:
        ProjectError: If a size depends on the pixels, or a scale is computed.
    """
    resizes = [node for node in model.graph.node if node.op_type in RESIZES]
    if not resizes:
        return model
    result = copy_model(model)
    known = evaluate_shapes(result, batch=2)
    table = constants(result.graph)
    for node in resizes:
        images = known.shapes.get(node.input[0], ())
        parameters = [numpy_helper.to_array(table[name]) for name in node.input[1:] if name in table]
        if len(images) != 4 or None in images[1:] or len(parameters) != len(node.input) - 1:
            raise ProjectError(
                f"Expected a resizing from one known size to another. Received: {node.op_type} in {node.name!r} "
                f"of {images} (give the model a fixed image size)."
            )
        size = (int(images[1] or 0), int(images[2] or 0))
        expand = _gathers if node.op_type == "ResizeNearestNeighbor" else _matrices
        nodes, values = expand(node, size, int(images[3] or 0), parameters, known.types[node.input[0]])
        result.graph.node.remove(node)
        result.graph.node.extend(nodes)
        result.graph.initializer.extend(values)
    return topological_sort(result)


def _kernel(node: onnx.NodeProto, axis: int, parameters: list[np.ndarray]) -> Any:
    """Return a function that resizes the height of images (1, n, 1, channels) as `node` resizes an axis."""
    import tensorflow as tf

    options: dict[str, object] = {"size": [int(parameters[0][axis]), 1]}
    if node.op_type == "ScaleAndTranslate":
        options |= {
            "scale": [float(parameters[1][axis]), 1.0],
            "translation": [float(parameters[2][axis]), 0.0],
            "kernel_type": attribute(node, "kernel_type", b"lanczos3").decode(),
            "antialias": bool(attribute(node, "antialias", 1)),
        }
    else:
        names = ("align_corners",) if node.op_type == "ResizeArea" else ("align_corners", "half_pixel_centers")
        options |= {name: bool(attribute(node, name, 0)) for name in names}
    return functools.partial(getattr(tf.raw_ops, node.op_type), **options)


def resizing_matrix(node: onnx.NodeProto, axis: int, before: int, parameters: list[np.ndarray]) -> np.ndarray:
    """Return the matrix of a linear resizing along an axis, float32 (new size, old size).

    Args:
        node: TensorFlow's operation.
        axis: 0 for the height, 1 for the width.
        before: The old size in pixels.
        parameters: The operation's other inputs: the new size, and for ScaleAndTranslate scale and translation.
    """
    return np.asarray(_kernel(node, axis, parameters)(images=np.eye(before, dtype=np.float32)[None, :, None]))[0, :, 0]


def _matrices(
    node: onnx.NodeProto, size: tuple[int, int], channels: int, parameters: list[np.ndarray], kind: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes and initializers of a linear resizing, by a product over the height and one over the width.

    The first is of (batch, height, width * channels), the second of (batch, height, width, channels).
    """
    stem, tensor = node.name, node.input[0]
    nodes, values = [], []
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [tensor], [f"{stem}/float"], f"{stem}/Cast", to=TensorProto.FLOAT))
        tensor = f"{stem}/float"
    shapes = {"rows": [0, size[0], size[1] * channels], "columns": [0, int(parameters[0][0]), size[1], channels]}
    results = {"rows": f"{stem}/resized", "columns": node.output[0]}
    for axis, (name, shape) in enumerate(shapes.items()):
        flat = f"{stem}/{name}"
        values += [
            numpy_helper.from_array(resizing_matrix(node, axis, size[axis], parameters), f"{flat}/matrix"),
            numpy_helper.from_array(np.asarray(shape, dtype=np.int64), f"{flat}/shape"),
        ]
        nodes += [
            helper.make_node("Reshape", [tensor, f"{flat}/shape"], [flat], f"{flat}/Reshape"),
            helper.make_node("MatMul", [f"{flat}/matrix", flat], [results[name]], f"{flat}/MatMul"),
        ]
        tensor = results[name]
    return nodes, values


def _gathers(
    node: onnx.NodeProto, size: tuple[int, int], channels: int, parameters: list[np.ndarray], kind: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes and initializers of a nearest-neighbour resizing, with the indices of TensorFlow's kernel."""
    stem, tensor = node.name, node.input[0]
    nodes, values = [], []
    for axis, result in enumerate((f"{stem}/resized", node.output[0])):
        positions = np.arange(size[axis], dtype=np.float32)[None, :, None, None]
        indices = np.asarray(_kernel(node, axis, parameters)(images=positions))[0, :, 0, 0].astype(np.int64)
        name = f"{stem}/indices{axis}"
        values.append(numpy_helper.from_array(indices, name))
        nodes.append(helper.make_node("Gather", [tensor, name], [result], f"{stem}/Gather{axis}", axis=axis + 1))
        tensor = result
    return nodes, values


_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def convert_to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float32 instead of FP16 and BF16, and without the casts between them.

    A SavedModel of a model under the policy mixed_float16 or mixed_bfloat16 computes in half precision inside the
    graph, which no pass supports and the FP32 model must not contain. Weights keep their values, so the results differ
    by the rounding of activations to half precision alone. `export.fp16.convert` makes the FP16 model.
    """
    result = copy_model(model)
    if not convert_graph_to_float32(result.graph):
        return result
    del result.graph.value_info[:]
    graph = result.graph
    infos = (*onnx.shape_inference.infer_shapes(result).graph.value_info, *graph.input, *graph.output)
    types = {t.name: t.data_type for t in graph.initializer} | {i.name: i.type.tensor_type.elem_type for i in infos}
    casts = [node for node in graph.node if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT]
    return bypass_nodes(result, [node for node in casts if types.get(node.input[0]) == TensorProto.FLOAT])


def convert_graph_to_float32(graph: onnx.GraphProto) -> bool:
    """Convert a graph and its subgraphs to float32 (in place); return whether any of it was in half precision."""
    attributes = [item for node in graph.node for item in node.attribute]
    tensors = [*graph.initializer, *(item.t for item in attributes if item.type == onnx.AttributeProto.TENSOR)]
    half_tensors = [tensor for tensor in tensors if tensor.data_type in _HALF]
    for tensor in half_tensors:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    half_types = [
        info.type.tensor_type for info in (*graph.input, *graph.output) if info.type.tensor_type.elem_type in _HALF
    ]
    for kind in half_types:
        kind.elem_type = TensorProto.FLOAT
    half_casts = [item for item in attributes if item.name in ("to", "dtype") and item.i in _HALF]
    for item in half_casts:
        item.i = TensorProto.FLOAT
    inner = [convert_graph_to_float32(subgraph) for item in attributes for subgraph in (item.g, *item.graphs)]
    return bool(half_tensors or half_types or half_casts or any(inner))
