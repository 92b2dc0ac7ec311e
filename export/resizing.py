"""Resizing inside a model, exactly as TensorFlow does it.

Every resizing but the nearest neighbour is linear and works on rows and columns apart. Between known sizes it is
therefore two constant matrices, and TensorFlow's own kernel tells them: it is given the unit vectors. That holds
for any kernel, antialiased or not, and each runtime has a MatMul.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.graph import attribute, constants, copy_model, topological_sort
from export.shape_folding import RESIZES, evaluate_shapes


def expand_resizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces TensorFlow's resizing operations by Gathers (nearest neighbour) or MatMuls (all others).

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
    """Returns a function of images (1, n, 1, channels) that resizes their height as `node` does along an axis."""
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
    """Returns what a linear resizing does to a row or a column, float32 (after, before).

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
