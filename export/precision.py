"""FP16 as a typed ONNX graph: what TensorRT builds is what the file says, and the CPU can check it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.errors import ExportError
from export.graph import (
    attribute,
    check_model,
    consumers,
    convert_opset,
    copy_model,
    opset,
    producers,
    replace_input,
    topological_sort,
)
from export.naming import keras_layer

FP16_MAX = 65504.0
# From here on QuantizeLinear takes FP16 scales, and TensorRT 10 and later read the result.
MINIMUM_OPSET = 19
# What may stand between the pixels and the first Conv; on 0..255 it is done in FP32.
_PREPROCESSING = ("Cast", "Gather", "Slice", "Sub", "Add", "Mul", "Div", "Transpose", "Pad")
_FP32_OPS = ("Softmax",)
_CAST_NAMES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


def preprocessing_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Returns the nodes from the input to the first Conv (or to its QuantizeLinear), without that one.

    Found by walking from the graph's input as long as one node reads the tensor and is of a kind that prepares
    pixels.
    """
    readers = consumers(model.graph)
    tensor, found = model.graph.input[0].name, []
    while len(readers.get(tensor, ())) == 1 and readers[tensor][0].op_type in _PREPROCESSING:
        node = readers[tensor][0]
        found.append(node)
        tensor = node.output[0]
    return found


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with FP16 weights and activations, at opset 19 or later.

    Preprocessing stays FP32 until its result is cast right before the first Conv, and Softmax is FP32; inputs and
    outputs keep their types (uint8 pixels, float32 logits and probabilities). QuantizeLinear and DequantizeLinear
    get FP16 scales.

    Args:
        model: float32, as `export.keras_to_onnx.export_keras` or `export.quantize` makes it.

    Raises:
        ExportError: If a weight has no finite FP16 value, named.

    Source: onnxruntime.transformers.float16.convert_float_to_float16 (onnxconverter_common's makes an invalid
    model of a uint8 input that is cast).
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    base = convert_opset(model, max(opset(model), MINIMUM_OPSET))
    kept = [node.name for node in preprocessing_nodes(base)]
    kept += [node.name for node in base.graph.node if node.op_type in _FP32_OPS]
    check_fp16_range(base, kept)
    base = round_first_conv(base)
    result = convert_float_to_float16(base, keep_io_types=True, node_block_list=kept)
    result = _name_casts(_merge_casts(topological_sort(result)))
    del result.graph.value_info[:]
    check_model(result)
    return result


def round_first_conv(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with the first Conv's weights on FP16 values whose rounding errors cancel over the channels.

    The colour channels of a photo are nearly equal, and those of a grey image are: what counts is the sum over them.
    Rounded each for itself, weights that oppose each other leave an error as large as theirs in a small sum; so the
    error of the largest is carried into the next smaller one, as error diffusion does between pixels. A weight may be
    off by a unit in the last place of the largest of its channels, their sum by half a unit of the smallest.
    """
    result = copy_model(model)
    prepared = preprocessing_nodes(result)
    tensor = prepared[-1].output[0] if prepared else result.graph.input[0].name
    initializers = {t.name: t for t in result.graph.initializer}
    for node in consumers(result.graph).get(tensor, ()):
        if node.op_type != "Conv" or node.input[1] not in initializers:
            continue  # behind Q/DQ the weights are INT8
        weight = numpy_helper.to_array(initializers[node.input[1]])
        order = np.argsort(-np.abs(weight), axis=1, kind="stable")
        falling = np.take_along_axis(weight, order, axis=1).astype(np.float64)
        carry = np.zeros_like(falling[:, 0])
        for channel in range(weight.shape[1]):
            wanted = falling[:, channel] + carry
            falling[:, channel] = wanted.astype(np.float16)
            carry = wanted - falling[:, channel]
        rounded = np.empty_like(weight)
        np.put_along_axis(rounded, order, falling.astype(np.float32), axis=1)
        initializers[node.input[1]].CopyFrom(numpy_helper.from_array(rounded, node.input[1]))
    return result


def check_fp16_range(model: onnx.ModelProto, skipped: list[str]) -> None:
    """Checks that every weight is finite in FP16, those of the nodes named in `skipped` aside.

    Raises:
        ExportError: If one is not; the converter would clip it without a word.
    """
    used = {name for node in model.graph.node if node.name not in skipped for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name not in used or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.max(np.abs(values))) if values.size else 0.0
        if not largest <= FP16_MAX:  # also true of NaN
            raise ExportError(
                f"Expected weights within ±{FP16_MAX:g}, the range of FP16. Received: {largest:g} in {tensor.name!r} "
                "(keep FP32, or train with weight decay or a rescaled BatchNorm)."
            )


def _cast_to(node: onnx.NodeProto | None) -> int | None:
    return attribute(node, "to") if node is not None and node.op_type == "Cast" else None


def _merge_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes out the detours that the converter leaves around the nodes kept in FP32.

    FP32 → FP16 → FP32 loses bits for nothing and becomes the FP32 tensor itself; of several equal casts of one
    tensor one stays, a graph output first.
    """
    result = copy_model(model)
    graph = result.graph
    outputs = {o.name for o in graph.output}
    types = {t.name: t.data_type for t in graph.initializer}
    for info in (*onnx.shape_inference.infer_shapes(model).graph.value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    for node in [n for n in graph.node if _cast_to(n) == TensorProto.FLOAT]:
        inner = producers(graph).get(node.input[0])
        if _cast_to(inner) != TensorProto.FLOAT16 or inner is None:
            continue
        source = inner.input[0]
        if types.get(source) != TensorProto.FLOAT:
            continue
        if node.output[0] not in outputs:
            replace_input(graph, node.output[0], source)
        elif source not in outputs and source in producers(graph):
            maker = producers(graph)[source]
            replace_input(graph, source, node.output[0])
            maker.output[list(maker.output).index(source)] = node.output[0]
            graph.node.remove(node)
    first: dict[tuple[str, int], str] = {}
    casts = [n for n in graph.node if n.op_type == "Cast"]
    for node in sorted(casts, key=lambda n: n.output[0] not in outputs):
        key = (node.input[0], int(attribute(node, "to")))
        if key in first and node.output[0] not in outputs:
            replace_input(graph, node.output[0], first[key])
        else:
            first.setdefault(key, node.output[0])
    return topological_sort(result)


def _name_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Names each Cast ``<keras layer>/Cast_<type>``, after the node it reads from."""
    result = copy_model(model)
    made = producers(result.graph)
    taken = {node.name for node in result.graph.node}
    for node in result.graph.node:
        source = made.get(node.input[0])
        kind = _CAST_NAMES.get(_cast_to(node) or 0)
        if kind is None or source is None:
            continue
        stem = f"{keras_layer(source.name)}/Cast_{kind}"
        node.name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(2, 1000))) if name not in taken)
        taken.add(node.name)
    return result
