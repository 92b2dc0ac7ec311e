"""Passes over inputs and outputs: the batch dimension, uint8 pixels in, logits, probabilities and best classes out."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.folding import fold_channel_order
from export.onnx_passes.graph import (
    BATCH,
    constants,
    copy_model,
    producers,
    replace_input,
    tensor_shapes,
    topological_sort,
)
from export.preprocessing import LUMA, PreprocessingSpec


def rename_batch(model: onnx.ModelProto, name: str = BATCH) -> onnx.ModelProto:
    """Name the first dimension of each input and output, and drop inner shapes that used the old name.

    Raises:
        ProjectError: If a first dimension is a fixed number: that model takes one batch size only.
    """
    result = copy_model(model)
    for info in (*result.graph.input, *result.graph.output):
        dims = info.type.tensor_type.shape.dim
        if not dims or dims[0].HasField("dim_value"):
            received = dims[0].dim_value if dims else "no dimensions"
            raise ProjectError(
                f"Expected a symbolic batch dimension of {info.name!r}. Received: {received} "
                "(build the model with batch_size=None)."
            )
        dims[0].dim_param = name
    del result.graph.value_info[:]
    return result


def rename_tensor(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Rename one tensor everywhere, graph inputs and outputs included.

    Raises:
        ProjectError: If `new` is taken.
    """
    if old == new:
        return copy_model(model)
    graph = model.graph
    if new in {*producers(graph), *constants(graph), *(i.name for i in graph.input)}:
        raise ProjectError(f"Expected a free tensor name. Received: {new!r} (choose another name).")
    result = copy_model(model)
    replace_input(result.graph, old, new)
    for node in result.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    for info in (*result.graph.input, *result.graph.output, *result.graph.value_info, *result.graph.initializer):
        if info.name == old:
            info.name = new
    return result


def prepend_preprocessing(model: onnx.ModelProto, spec: PreprocessingSpec) -> onnx.ModelProto:
    """Replace a float32 NHWC input by a uint8 RGB one, followed by cast, channel order, mean and scale.

    If the spec says so, grey levels are computed first. Steps that change nothing (RGB order, mean 0, scale 1) are left
    out. Another channel order is folded into the weights of the first Conv, where it costs nothing
    (`fold_channel_order`), else it becomes a Gather.

    Args:
        model: With one float32 input (batch, height, width, 3).
        spec: The preprocessing.

    Raises:
        ProjectError: If the model has another input, or a mean image has another size.
    """
    if len(model.graph.input) != 1:
        raise ProjectError(
            f"Expected a model with one input. Received: {[i.name for i in model.graph.input]} "
            "(export a single-input model)."
        )
    tensor = model.graph.input[0].type.tensor_type
    dims = [d.dim_value for d in tensor.shape.dim]
    if tensor.elem_type != TensorProto.FLOAT or len(dims) != 4 or dims[3] != 3:
        raise ProjectError(
            f"Expected a float32 input of shape (batch, height, width, 3). Received: type {tensor.elem_type}, "
            f"shape {dims} (export the model before preprocessing is added)."
        )
    order = (0, 1, 2) if spec.grey else spec.order  # the channels of grey are equal
    folded = fold_channel_order(model, order) if order != (0, 1, 2) else None
    # The index of channel c of the spec in the tensor: c, or its index in RGB once the order is folded.
    position = order if folded is not None else (0, 1, 2)
    trained = np.asarray(spec.mean, np.float32) if spec.mean_image is None else spec.mean_image.array
    if trained.ndim == 3 and list(trained.shape) != dims[1:]:
        raise ProjectError(
            f"Expected a mean image of the model's input size {dims[1:]}. Received: {list(trained.shape)} "
            "(name the mean of the images that the model was trained on)."
        )
    mean, scale = np.zeros_like(trained), np.ones(3, np.float32)
    mean[..., list(position)], scale[list(position)] = trained, spec.scale
    result = folded if folded is not None else copy_model(model)
    graph = result.graph
    pixels = graph.input[0].name
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    steps = list(_GREY_STEPS) if spec.grey else []
    if folded is None and order != (0, 1, 2):
        steps.append(("Gather", np.asarray(order, dtype=np.int64)))
    if np.any(mean != 0.0):
        steps.append(("Sub", mean))
    if np.any(scale != 1.0) or (spec.grey and not np.any(mean != 0.0)):  # a product makes three channels of grey
        steps.append(("Mul", scale))
    chain = [helper.make_node("Cast", [pixels], ["preprocessing/Cast:0"], "preprocessing/Cast", to=TensorProto.FLOAT)]
    for kind, value in steps:
        equal = sum(node.op_type == kind for node in chain)
        name = f"preprocessing/{kind}" + (f"_{equal + 1}" if equal else "")
        inputs = [chain[-1].output[0]]
        if value.size:
            graph.initializer.append(numpy_helper.from_array(value, f"{name}/constant"))
            inputs.append(f"{name}/constant")
        extra: dict[str, Any] = {"axis": 3} if kind == "Gather" else {}
        chain.append(helper.make_node(kind, inputs, [f"{name}:0"], name, **extra))
    replace_input(graph, pixels, chain[-1].output[0])
    graph.node.extend(chain)
    return topological_sort(result)


# RGB to integer grey levels: products and sums stay below 2^24, so each is exact in float32.
_GREY_STEPS: tuple[tuple[str, np.ndarray], ...] = (
    ("Mul", np.asarray(LUMA, np.float32)),
    ("ReduceSum", np.asarray([3], np.int64)),
    ("Add", np.asarray(32768.0, np.float32)),
    ("Mul", np.asarray(1 / 65536, np.float32)),
    ("Floor", np.empty(0, np.float32)),
)


def append_softmax(model: onnx.ModelProto, logits: str, probabilities: str) -> onnx.ModelProto:
    """Add a Softmax over the last axis of the output `logits` as a second output.

    Raises:
        ProjectError: If `logits` is no output of the model.
    """
    result = copy_model(model)
    outputs = {o.name: o for o in result.graph.output}
    if logits not in outputs:
        raise ProjectError(f"Expected an output {logits!r}. Received: {list(outputs)} (rename the output first).")
    result.graph.node.append(
        helper.make_node("Softmax", [logits], [probabilities], f"{probabilities}/Softmax", axis=-1)
    )
    result.graph.output.add().CopyFrom(outputs[logits])
    result.graph.output[-1].name = probabilities
    return topological_sort(result)


def append_top_k(
    model: onnx.ModelProto, probabilities: str, k: int, names: tuple[str, str] = ("top_probabilities", "top_classes")
) -> onnx.ModelProto:
    """Add the k best of the output `probabilities` as two more outputs, best first: values and their int32 indices.

    ONNX Runtime puts the lower index of equal probabilities first; TensorRT guarantees no order.

    Args:
        model: Any model with that output.
        probabilities: Name of an output (batch, classes).
        k: The number of classes.
        names: Names of the new outputs (batch, k). Defaults to ``("top_probabilities", "top_classes")``.

    Raises:
        ProjectError: If `probabilities` is no output (batch, classes) of the model, or has fewer than k classes.
    """
    listed = [o.name for o in model.graph.output]
    shape = tensor_shapes(model).get(probabilities, ())
    if probabilities not in listed or len(shape) != 2 or not isinstance(shape[1], int):
        raise ProjectError(
            f"Expected an output {probabilities!r} of shape (batch, classes). Received: {listed}, {shape} "
            "(append the softmax first)."
        )
    if not 1 <= k <= shape[1]:
        raise ProjectError(
            f"Expected export.top_k from 1 to {shape[1]}, the number of classes. Received: {k} (choose a smaller one)."
        )
    result = copy_model(model)
    graph = result.graph
    values, indices = names
    wide, count = f"{indices}/int64", f"{indices}/k"  # ONNX indices are int64; int32 is supported by every TensorRT
    graph.initializer.append(numpy_helper.from_array(np.asarray([k], dtype=np.int64), count))
    graph.node.extend(
        [
            helper.make_node("TopK", [probabilities, count], [values, wide], f"{values}/TopK", axis=-1),
            helper.make_node("Cast", [wide], [indices], f"{indices}/Cast", to=TensorProto.INT32),
        ]
    )
    for name, kind in ((values, TensorProto.FLOAT), (indices, TensorProto.INT32)):
        graph.output.append(helper.make_tensor_value_info(name, kind, [shape[0], k]))
    return topological_sort(result)
