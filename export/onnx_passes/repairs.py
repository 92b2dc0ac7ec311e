"""Corrects what converters leave: unusual convolutions, resizing, graphs that are partly half precision.

Puts right what tf2onnx makes of convolutions that are not plain ones.

Resizing inside a model, exactly as TensorFlow does it.

Every resizing but the nearest neighbour is linear and works on rows and columns apart. Between known sizes it is
therefore two constant matrices, and TensorFlow's own kernel tells them: it is given the unit vectors. That holds
for any kernel, antialiased or not, and each runtime has a MatMul.

Graphs that arrive partly in half precision, made float32 throughout: `export.fp16.convert` halves what is to be.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.graph import (
    attribute,
    constants,
    copy_model,
    producers,
    replace_input,
    tensor_shapes,
    topological_sort,
)
from export.onnx_passes.shape_folding import RESIZES, evaluate_shapes


def set_attribute(node: onnx.NodeProto, name: str, value: object, instead_of: Sequence[str] = ()) -> None:
    """Give a node an attribute in the place of the one of that name, and of some others (in place)."""
    for item in [item for item in node.attribute if item.name in (name, *instead_of)]:
        node.attribute.remove(item)
    node.attribute.append(helper.make_attribute(name, value))


def repair_transposed_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make negative pads of a ConvTranspose what they mean: zeros behind the result.

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
    """Add up the biases of a Conv: tf2onnx gives it a fourth input where a second bias stands behind the first."""
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
    """Give a Conv over three dimensions the groups that its weight is made for; tf2onnx counts them in two only."""
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


def expand_resizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace TensorFlow's resizing operations by Gathers (nearest neighbour) or MatMuls (all others).

    Args:
        model: With these operations as tf2onnx leaves them, NHWC, and shapes folded.

    Raises:
        ProjectError: If a size depends on the pixels, or a scale is computed.
    """
    if not any(node.op_type in RESIZES for node in model.graph.node):
        return model
    result = copy_model(model)
    known = evaluate_shapes(result, batch=2)
    table = constants(result.graph)
    nodes, added = [], []
    for node in result.graph.node:
        if node.op_type not in RESIZES:
            nodes.append(node)
            continue
        images = known.shapes.get(node.input[0], ())
        parameters = [numpy_helper.to_array(table[name]) for name in node.input[1:] if name in table]
        if len(images) != 4 or None in images[1:] or len(parameters) != len(node.input) - 1:
            raise ProjectError(
                f"Expected a resizing from one known size to another. Received: {node.op_type} in {node.name!r} "
                f"of {images} (give the model a fixed image size)."
            )
        size = (int(images[1] or 0), int(images[2] or 0))
        expand = _gathers if node.op_type == "ResizeNearestNeighbor" else _matrices
        made, values = expand(node, size, int(images[3] or 0), parameters, known.types[node.input[0]])
        nodes += made
        added += values
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(added)
    return topological_sort(result)


def _kernel(node: onnx.NodeProto, axis: int, parameters: list[np.ndarray]) -> Any:
    """Return a function of images (1, n, 1, channels) that resizes their height as `node` does along an axis."""
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
        places = ("align_corners",) if node.op_type == "ResizeArea" else ("align_corners", "half_pixel_centers")
        options |= {name: bool(attribute(node, name, 0)) for name in places}
    return functools.partial(getattr(tf.raw_ops, node.op_type), **options)


def resizing_matrix(node: onnx.NodeProto, axis: int, before: int, parameters: list[np.ndarray]) -> np.ndarray:
    """Return what a linear resizing does to a row or a column, float32 (after, before).

    Args:
        node: TensorFlow's operation.
        axis: 0 for the height, 1 for the width.
        before: Its size.
        parameters: The operation's further inputs: the new size, and for ScaleAndTranslate scale and translation.
    """
    return np.asarray(_kernel(node, axis, parameters)(images=np.eye(before, dtype=np.float32)[None, :, None]))[0, :, 0]


def _matrices(
    node: onnx.NodeProto, size: tuple[int, int], channels: int, parameters: list[np.ndarray], kind: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Rows are mixed in (batch, height, width * channels), columns in (batch, height, width, channels)."""
    stem, tensor = node.name, node.input[0]
    nodes, values = [], []
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [tensor], [f"{stem}/float"], f"{stem}/Cast", to=TensorProto.FLOAT))
        tensor = f"{stem}/float"
    shapes = {"rows": [0, size[0], size[1] * channels], "columns": [0, int(parameters[0][0]), size[1], channels]}
    results = {"rows": f"{stem}/resized", "columns": node.output[0]}
    for axis, (name, shape) in enumerate(shapes.items()):
        matrix = resizing_matrix(node, axis, size[axis], parameters)
        values.append(numpy_helper.from_array(matrix, f"{stem}/{name}/matrix"))
        values.append(numpy_helper.from_array(np.asarray(shape, dtype=np.int64), f"{stem}/{name}/shape"))
        flat = f"{stem}/{name}"
        nodes.append(helper.make_node("Reshape", [tensor, f"{flat}/shape"], [flat], f"{flat}/Reshape"))
        nodes.append(helper.make_node("MatMul", [f"{flat}/matrix", flat], [results[name]], f"{flat}/MatMul"))
        tensor = results[name]
    return nodes, values


def _gathers(
    node: onnx.NodeProto, size: tuple[int, int], channels: int, parameters: list[np.ndarray], kind: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nearest neighbour's row and column, as TensorFlow's kernel picks them."""
    stem, tensor = node.name, node.input[0]
    nodes, values = [], []
    for axis, result in enumerate((f"{stem}/resized", node.output[0])):
        numbers = np.arange(size[axis], dtype=np.float32)[None, :, None, None]
        picked = np.asarray(_kernel(node, axis, parameters)(images=numbers))[0, :, 0, 0].astype(np.int64)
        indices = f"{stem}/indices{axis}"
        values.append(numpy_helper.from_array(picked, indices))
        nodes.append(helper.make_node("Gather", [tensor, indices], [result], f"{stem}/Gather{axis}", axis=axis + 1))
        tensor = result
    return nodes, values


_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float32 in the place of FP16 and BF16, and without the casts between them.

    A SavedModel of a model under the policy mixed_float16 or mixed_bfloat16 computes in half precision inside the
    graph. No pass knows such nodes, and what is called the FP32 model must not contain them. Weights keep their
    values, so that the difference is what rounding the activations to half did.
    """
    result = copy_model(model)
    if not raise_half(result.graph):
        return result
    del result.graph.value_info[:]
    graph = result.graph
    types = {t.name: t.data_type for t in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(result).graph
    for info in (*inferred.value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    outputs = {o.name for o in graph.output}
    casts = [node for node in graph.node if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT]
    for node in [node for node in casts if types.get(node.input[0]) == TensorProto.FLOAT]:
        source, name = node.input[0], node.output[0]
        maker = producers(graph).get(source)
        if name not in outputs:
            replace_input(graph, name, source)
        elif maker is not None and source not in outputs:  # the name of an output is fixed, so the maker takes it over
            graph.node.remove(node)
            maker.output[list(maker.output).index(source)] = name
            replace_input(graph, source, name)
    return topological_sort(result)


def raise_half(graph: onnx.GraphProto) -> bool:
    """Make a graph and those inside it float32 (in place); returns whether anything was half."""
    found = False
    for tensor in graph.initializer:
        found |= _raise_tensor(tensor)
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type in _HALF:
            info.type.tensor_type.elem_type, found = TensorProto.FLOAT, True
    for node in graph.node:
        for item in node.attribute:
            if item.name in ("to", "dtype") and item.i in _HALF:
                item.i, found = TensorProto.FLOAT, True
            if item.type == onnx.AttributeProto.TENSOR:
                found |= _raise_tensor(item.t)
            for inner in (item.g, *item.graphs):
                found |= raise_half(inner)
    return found


def _raise_tensor(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in _HALF:
        return False
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return True
