"""FP16 as a typed ONNX graph: what TensorRT builds is what the file says, and the CPU can check it."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.file import check_model
from export.onnx_passes.folding import LOWEST
from export.onnx_passes.graph import (
    attribute,
    constants,
    consumers,
    convert_opset,
    copy_model,
    infer_shapes,
    opset,
    producers,
    rename_inputs,
    topological_sort,
)
from export.onnx_passes.layer_names import keras_layer

FP16_MAX = 65504.0
_BF16_MAX = 3.3895313892515355e38
# From here on QuantizeLinear takes FP16 scales, and TensorRT 10 and later read the result.
MINIMUM_OPSET = 19
TENSORRT8_OPSET = 17  # what the parser of TensorRT 8.6 is for
_BF16_OPSET = 22  # Conv and pools take BF16 from here on
# What may stand between the pixels and the first Conv; on 0..255 it is done in FP32.
_PREPROCESSING = (
    "Cast", "Gather", "Slice", "Sub", "Add", "Mul", "Div", "Transpose", "Pad", "ReduceSum", "Floor",
)  # fmt: skip
FP32_OPS = ("Softmax", "TopK", "Log", "IsInf")  # Log: the floor of a probability is none in FP16; IsInf has no FP16
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "QuantizeLinear")
_CHOOSING = ("Max", "Min")  # pass one of their inputs on, which FP16 does exactly; the converter would keep them FP32
_CAST_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_HEADROOM = 2.0  # between the largest value on calibration images and what other images may bring
_LOST = 1e-3  # of a weight's norm: rounding to normal FP16 loses 2e-4, what loses more fell to denormals
_HANDING_ON = ("Relu", "LeakyRelu", "MaxPool", "Max", "Reshape", "Flatten", "Squeeze", "Transpose", "Pad", "Cast")


def preprocessing_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes from the input to the first Conv (or to its QuantizeLinear), without that one.

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


def to_half(
    model: onnx.ModelProto, kind: str = "fp16", keep: Collection[str] = (), *, minimum_opset: int = MINIMUM_OPSET
) -> onnx.ModelProto:
    """Return the model with FP16 or BF16 weights and activations, at opset 19 or later; BF16 at 22 or later.

    Preprocessing stays FP32 until its result is cast right before the first Conv; Softmax, TopK and Log are FP32;
    inputs and outputs keep their types (uint8 pixels, float32 logits and probabilities, int32 indices).
    QuantizeLinear and DequantizeLinear get scales of that type.

    Args:
        model: float32, as `export.from_keras.convert.export_keras` or `export.int8.qdq` makes it.
        kind: ``"fp16"`` or ``"bf16"``. Defaults to ``"fp16"``. ONNX Runtime's CPU runs no BF16 Conv; TensorRT does.
        keep: Names of further nodes that stay FP32, see `unfit_for_fp16`.
        minimum_opset: What an older model is taken to; `TENSORRT8_OPSET` is for a model without Q/DQ pairs, whose
            scales have no FP16 there. Defaults to `MINIMUM_OPSET`.

    Raises:
        ProjectError: If a weight has no finite FP16 value and its node is not kept, named; if the result is no valid
            ONNX.

    Source: onnxruntime.transformers.float16.convert_float_to_float16 (onnxconverter_common's makes an invalid
    model of a uint8 input that is cast).
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    base = convert_opset(model, max(opset(model), _BF16_OPSET if kind == "bf16" else minimum_opset))
    base = _narrow_lowest(base, kind)
    kept = [node.name for node in preprocessing_nodes(base)]
    kept += [node.name for node in base.graph.node if node.op_type in FP32_OPS or node.name in keep]
    blocked = [op for op in DEFAULT_OP_BLOCK_LIST if op not in _CHOOSING]
    result = copy_model(base)  # the converter works in place
    if kind == "fp16":
        _halve_weights(result.graph, kept)
    del result.graph.value_info[:]
    result.graph.value_info.extend(infer_shapes(base).value_info)  # its own inference copies the weights four times
    result = convert_float_to_float16(
        result, keep_io_types=True, disable_shape_infer=True, op_block_list=blocked, node_block_list=kept
    )
    result = topological_sort(_merge_casts(topological_sort(result)))
    if kind == "bf16":
        result = _as_bf16(result, base)
    result = _name_casts(result)
    del result.graph.value_info[:]
    check_model(result)
    return result


def unfit_for_fp16(model: onnx.ModelProto, limits: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that must stay FP32 in an FP16 graph, by name, and why.

    Those are the nodes that write or read a value within a factor of two of FP16's largest, 65,504, and those with a
    weight above it or with one that falls to denormals and loses more than a thousandth there.

    Args:
        model: float32.
        limits: Tensor name -> its largest absolute value on calibration images; other tensors are not judged.
    """
    graph = model.graph
    made, readers, table = producers(graph), consumers(graph), constants(graph)
    found: dict[str, str] = {}
    prepared = {node.name for node in preprocessing_nodes(model)}
    for name, limit in limits.items():
        if limit < FP16_MAX / _HEADROOM or name not in made:
            continue
        pending = [name]
        why = f"values up to {limit:,.0f}, near FP16's largest, {FP16_MAX:,.0f}"
        for node in (made[name], *_readers_through(pending, readers)):
            found.setdefault(node.name, why)
    for node in graph.node:
        for name in node.input:
            if name in table and table[name].data_type == TensorProto.FLOAT and node.name not in prepared:
                why = lost_in_fp16(_without_lowest(numpy_helper.to_array(table[name]), FP16_MAX))
                if why:
                    found.setdefault(node.name, why)
    return {name: why for name, why in found.items() if name not in prepared}


def _readers_through(pending: list[str], readers: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """Return all that reads some tensors, behind what hands their values on as well."""
    found = []
    while pending:
        for node in readers.get(pending.pop(), ()):
            found.append(node)
            if node.op_type in _HANDING_ON:
                pending.append(node.output[0])
    return found


def lost_in_fp16(weight: np.ndarray) -> str:
    """Return what FP16 does to a weight that it should not; empty where it does not."""
    largest = float(np.abs(weight).max()) if weight.size else 0.0
    if not largest <= FP16_MAX:
        return f"a weight of {largest:,.0f}, above FP16's largest, {FP16_MAX:,.0f}"
    lost = np.square(weight - weight.astype(np.float16), dtype=np.float64).sum()
    if lost > _LOST**2 * np.square(weight, dtype=np.float64).sum():
        return f"weights of at most {largest:.1e}, denormal in FP16"
    return ""


def _without_lowest(values: np.ndarray, largest: float) -> np.ndarray:
    """Return values with ``-largest`` in the place of float32's lowest, which stands for none, see `LOWEST`."""
    return np.where(values == LOWEST, np.float32(-largest), values)


def _narrow_lowest(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Return the model with the lowest finite value of FP16 or BF16 where a Max reads that of float32."""
    result = copy_model(model)
    table = constants(result.graph)
    largest = FP16_MAX if kind == "fp16" else _BF16_MAX
    for name in {name for node in result.graph.node if node.op_type == "Max" for name in node.input if name in table}:
        if table[name].data_type == TensorProto.FLOAT:
            values = _without_lowest(numpy_helper.to_array(table[name]), largest)
            table[name].CopyFrom(numpy_helper.from_array(values, name))
    return result


def _halve_weights(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Halve the weights that FP16 arithmetic alone reads (in place), as the converter would, in a quarter of its time.

    Args:
        graph: float32.
        kept: Names of nodes that stay FP32.

    Raises:
        ProjectError: If one that is not only for kept nodes is not finite in FP16; the converter would clip it without
            a word.
    """
    readers = consumers(graph)
    for tensor in graph.initializer:
        reading = readers.get(tensor.name, ())
        if tensor.data_type != TensorProto.FLOAT or all(node.name in kept for node in reading):
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.max(np.abs(values))) if values.size else 0.0
        if not largest <= FP16_MAX:  # also true of NaN
            raise ProjectError(
                f"Expected weights within ±{FP16_MAX:g}, the range of FP16. Received: {largest:g} in {tensor.name!r} "
                "(keep its node in FP32: ask unfit_for_fp16)."
            )
        if tensor.raw_data and all(node.op_type in _WEIGHTED and node.name not in kept for node in reading):
            half = values.astype(np.float16)
            lost = (half == 0) & (values != 0)
            half[lost] = np.copysign(np.finfo(np.float16).smallest_subnormal, values[lost])
            tensor.data_type, tensor.raw_data = TensorProto.FLOAT16, half.tobytes()


def _as_bf16(model: onnx.ModelProto, base: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP16 model with BF16 in the place of FP16, its weights rounded from the float32 ones of `base`."""
    result = copy_model(model)
    exact = {name: numpy_helper.to_array(tensor) for name, tensor in constants(base.graph).items()}
    bf16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = exact.get(tensor.name, numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(bf16), tensor.name))
    for node in result.graph.node:
        for item in node.attribute:
            if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT16:
                item.i = TensorProto.BFLOAT16
    return result


def _cast_to(node: onnx.NodeProto | None) -> int | None:
    return attribute(node, "to") if node is not None and node.op_type == "Cast" else None


def _merge_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out the detours that the converter leaves around the nodes kept in FP32.

    FP32 → FP16 → FP32 loses bits for nothing and becomes the FP32 tensor itself; of several equal casts of one
    tensor one stays, a graph output first.
    """
    result = copy_model(model)
    graph = result.graph
    outputs = {o.name for o in graph.output}
    types = {t.name: t.data_type for t in graph.initializer}
    for info in (*infer_shapes(model).value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    made, readers = producers(graph), consumers(graph)

    def read_instead(old: str, new: str) -> None:
        moved = readers.pop(old, [])
        for node in moved:
            rename_inputs(node, {old: new})
        readers.setdefault(new, []).extend(moved)

    for node in [n for n in graph.node if _cast_to(n) == TensorProto.FLOAT]:
        inner = made.get(node.input[0])
        if _cast_to(inner) != TensorProto.FLOAT16 or inner is None:
            continue
        source = inner.input[0]
        if types.get(source) != TensorProto.FLOAT:
            continue
        if node.output[0] not in outputs:
            read_instead(node.output[0], source)
        elif source not in outputs and source in made:
            maker = made.pop(source)
            read_instead(source, node.output[0])
            maker.output[list(maker.output).index(source)] = node.output[0]
            made[node.output[0]] = maker
            graph.node.remove(node)
    first: dict[tuple[str, int], str] = {}
    casts = [n for n in graph.node if n.op_type == "Cast"]
    for node in sorted(casts, key=lambda n: n.output[0] not in outputs):
        key = (node.input[0], int(attribute(node, "to")))
        if key in first and node.output[0] not in outputs:
            read_instead(node.output[0], first[key])
        else:
            first.setdefault(key, node.output[0])
    return topological_sort(result)


def _name_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name each Cast ``<keras layer>/Cast_<type>``, after the node it reads from."""
    result = copy_model(model)
    made = producers(result.graph)
    taken = {node.name for node in result.graph.node}
    for node in result.graph.node:
        kind = _CAST_NAMES.get(_cast_to(node) or 0)
        source = made.get(node.input[0]) if kind is not None else None
        if kind is None or source is None:
            continue
        stem = f"{keras_layer(source.name)}/Cast_{kind}"
        node.name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(2, 1000))) if name not in taken)
        taken.add(node.name)
    return result
