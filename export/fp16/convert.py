"""FP16 as a typed ONNX graph: TensorRT builds the types in the file, and the CPU can check it."""

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
# From this opset on QuantizeLinear takes FP16 scales, and TensorRT 10 and later read the result.
MINIMUM_OPSET = 19
TENSORRT8_OPSET = 17  # the newest opset of the parser of TensorRT 8.6
_BF16_OPSET = 22  # from this opset on Conv and pools take BF16
# Operators between the pixels and the first Conv; their values are 0..255, so they stay in FP32.
_PREPROCESSING = (
    "Cast", "Gather", "Slice", "Sub", "Add", "Mul", "Div", "Transpose", "Pad", "ReduceSum", "Floor",
)  # fmt: skip
FP32_OPS = ("Softmax", "TopK", "Log", "IsInf")  # Log: the floor of a probability is none in FP16; IsInf has no FP16
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "QuantizeLinear")
_CHOOSING = ("Max", "Min")  # return one of their inputs, which is exact in FP16; the converter would keep them FP32
_CAST_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_HEADROOM = 2.0  # between the largest value on calibration images and the values of other images
_LOST = 1e-3  # share of a weight's norm: rounding to normal FP16 loses 2e-4, denormals lose more
_PASSING = ("Relu", "LeakyRelu", "MaxPool", "Max", "Reshape", "Flatten", "Squeeze", "Transpose", "Pad", "Cast")


def has_half(model: onnx.ModelProto) -> bool:
    """Return whether a graph computes anything in FP16: it casts to FP16, or holds FP16 weights."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer) or any(
        attribute(node, "to") == TensorProto.FLOAT16 for node in nodes
    )


def preprocessing_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes from the input to the first Conv (or to its QuantizeLinear), excluding that one.

    The walk from the graph's input goes on while a single node reads the tensor and its operator is one of those that
    preprocess pixels.
    """
    readers = consumers(model.graph)
    tensor, nodes = model.graph.input[0].name, []
    while len(readers.get(tensor, ())) == 1 and readers[tensor][0].op_type in _PREPROCESSING:
        nodes += readers[tensor]
        tensor = nodes[-1].output[0]
    return nodes


def to_half(
    model: onnx.ModelProto, kind: str = "fp16", keep: Collection[str] = (), *, minimum_opset: int = MINIMUM_OPSET
) -> onnx.ModelProto:
    """Return the model with FP16 or BF16 weights and activations, at opset 19 or later; BF16 at 22 or later.

    Preprocessing stays FP32, and its result is cast right before the first Conv. Softmax, TopK and Log stay FP32.
    Inputs and outputs keep their types (uint8 pixels, float32 logits and probabilities, int32 indices). QuantizeLinear
    and DequantizeLinear get scales of the new type.

    Args:
        model: float32, from `export.from_keras.convert.export_keras` or `export.int8.qdq.quantize`.
        kind: ``"fp16"`` or ``"bf16"``. ONNX Runtime's CPU runs no BF16 Conv; TensorRT does. Defaults to ``"fp16"``.
        keep: Names of other nodes that stay FP32, see `unfit_for_fp16`. Defaults to none.
        minimum_opset: The opset to which an older model is converted. `TENSORRT8_OPSET` is for a model without Q/DQ
            pairs, whose scales cannot be FP16 there. Defaults to `MINIMUM_OPSET`.

    Raises:
        ProjectError: If a weight has no finite FP16 value and its node is not kept (the message names it), or the
            result is no valid ONNX.

    Source: onnxruntime.transformers.float16.convert_float_to_float16 (that of onnxconverter_common returns an invalid
    model for a uint8 input that is cast).
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    base = convert_opset(model, max(opset(model), _BF16_OPSET if kind == "bf16" else minimum_opset))
    kept = [node.name for node in preprocessing_nodes(base)]
    kept += [node.name for node in base.graph.node if node.op_type in FP32_OPS or node.name in keep]
    _narrow_bounds(base.graph, kind, kept)
    blocked = [op for op in DEFAULT_OP_BLOCK_LIST if op not in _CHOOSING]
    result = copy_model(base)  # the converter works in place
    if kind == "fp16":
        _halve_weights(result.graph, kept)
    del result.graph.value_info[:]
    # The converter's own shape inference copies the weights four times.
    result.graph.value_info.extend(infer_shapes(base).value_info)
    result = convert_float_to_float16(
        result, keep_io_types=True, disable_shape_infer=True, op_block_list=blocked, node_block_list=kept
    )
    result = topological_sort(_merge_casts(topological_sort(result)))
    _restore_names(result.graph, base)
    if kind == "bf16":
        _to_bf16(result.graph, base)
    _name_casts(result.graph)
    del result.graph.value_info[:]
    check_model(result)
    return result


def unfit_for_fp16(model: onnx.ModelProto, limits: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that must stay FP32 in an FP16 graph: name -> why.

    These are the nodes that write or read a value within a factor of two of FP16's largest, 65,504, and those with a
    weight above it, or with a weight that becomes denormal and loses more than a thousandth of its norm.

    Args:
        model: float32.
        limits: Tensor name -> its largest absolute value on calibration images; other tensors are not checked.
    """
    graph = model.graph
    written, readers, table = producers(graph), consumers(graph), constants(graph)
    reasons: dict[str, str] = {}
    prepared = {node.name for node in preprocessing_nodes(model)}
    for name, limit in limits.items():
        if limit >= FP16_MAX / _HEADROOM and name in written:
            why = f"values up to {limit:,.0f}, near FP16's largest, {FP16_MAX:,.0f}"
            for node in (written[name], *_readers_through(name, readers)):
                reasons.setdefault(node.name, why)
    for node in graph.node:
        for name in node.input:
            if (
                name in table
                and table[name].data_type == TensorProto.FLOAT
                and node.name not in prepared
                and (why := fp16_loss(_without_lowest(numpy_helper.to_array(table[name]), FP16_MAX)))
            ):
                reasons.setdefault(node.name, why)
    return {name: why for name, why in reasons.items() if name not in prepared}


def _readers_through(tensor: str, readers: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """Return the nodes that read a tensor, directly or behind nodes that pass its values on."""
    nodes: list[onnx.NodeProto] = []
    pending = [tensor]
    while pending:
        direct = readers.get(pending.pop(), [])
        nodes += direct
        pending += [node.output[0] for node in direct if node.op_type in _PASSING]
    return nodes


def fp16_loss(weight: np.ndarray) -> str:
    """Return why FP16 cannot hold a weight well; empty if it can."""
    largest = float(np.abs(weight).max()) if weight.size else 0.0
    if not largest <= FP16_MAX:
        return f"a weight of {largest:,.0f}, above FP16's largest, {FP16_MAX:,.0f}"
    lost = np.square(weight - weight.astype(np.float16), dtype=np.float64).sum()
    if lost > _LOST**2 * np.square(weight, dtype=np.float64).sum():
        return f"weights of at most {largest:.1e}, denormal in FP16"
    return ""


def _without_lowest(values: np.ndarray, largest: float) -> np.ndarray:
    """Return values with ``-largest`` instead of float32's lowest, which stands for no value, see `LOWEST`."""
    return np.where(values == LOWEST, np.float32(-largest), values)


def _narrow_bounds(graph: onnx.GraphProto, kind: str, kept: Collection[str]) -> None:
    """Replace the lowest and the highest float32 that a Max or a Clip reads by those of FP16 or BF16 (in place)."""
    narrow = [node for node in graph.node if node.op_type in ("Max", "Clip") and node.name not in kept]
    read = {name for node in narrow for name in node.input}
    largest = FP16_MAX if kind == "fp16" else _BF16_MAX
    for tensor in graph.initializer:
        if tensor.name in read and tensor.data_type == TensorProto.FLOAT:
            values = _without_lowest(numpy_helper.to_array(tensor), largest)
            values = np.where(values == -LOWEST, np.float32(largest), values)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _halve_weights(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Convert the weights that only FP16 nodes read (in place), as the converter would, in a quarter of its time.

    Args:
        graph: float32.
        kept: Names of nodes that stay FP32.

    Raises:
        ProjectError: If a weight that an FP16 node reads is not finite in FP16; the converter would clip it silently.
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


def _to_bf16(graph: onnx.GraphProto, base: onnx.ModelProto) -> None:
    """Replace FP16 by BF16 (in place), with weights rounded from the float32 weights of `base`."""
    exact = {name: numpy_helper.to_array(tensor) for name, tensor in constants(base.graph).items()}
    bf16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = exact.get(tensor.name, numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(bf16), tensor.name))
    for node in graph.node:
        for item in node.attribute:
            if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT16:
                item.i = TensorProto.BFLOAT16


def _cast_to(node: onnx.NodeProto) -> int | None:
    return attribute(node, "to") if node.op_type == "Cast" else None


def _merge_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove superfluous casts, which the converter adds around the nodes kept in FP32.

    FP32 → FP16 → FP32 loses bits for nothing and is replaced by the FP32 tensor. One of several equal casts of a tensor
    is kept, a graph output if there is one.
    """
    result = copy_model(model)
    graph = result.graph
    outputs = {o.name for o in graph.output}
    infos = (*infer_shapes(model).value_info, *graph.input, *graph.output)
    types = {t.name: t.data_type for t in graph.initializer} | {i.name: i.type.tensor_type.elem_type for i in infos}
    producer, readers = producers(graph), consumers(graph)

    def read_instead(old: str, new: str) -> None:
        moved = readers.pop(old, [])
        for node in moved:
            rename_inputs(node, {old: new})
        readers.setdefault(new, []).extend(moved)

    for node in [n for n in graph.node if _cast_to(n) == TensorProto.FLOAT]:
        inner = producer.get(node.input[0])
        if inner is None or _cast_to(inner) != TensorProto.FLOAT16 or types.get(inner.input[0]) != TensorProto.FLOAT:
            continue
        source, target = inner.input[0], node.output[0]
        if target not in outputs:
            read_instead(target, source)
        elif source not in outputs and source in producer:
            producer[target] = producer.pop(source)
            read_instead(source, target)
            producer[target].output[list(producer[target].output).index(source)] = target
            graph.node.remove(node)
    first: dict[tuple[str, int], str] = {}
    for node in sorted((n for n in graph.node if n.op_type == "Cast"), key=lambda n: n.output[0] not in outputs):
        key = (node.input[0], int(attribute(node, "to")))
        if key in first and node.output[0] not in outputs:
            read_instead(node.output[0], first[key])
        else:
            first.setdefault(key, node.output[0])
    return topological_sort(result)


def _restore_names(graph: onnx.GraphProto, base: onnx.ModelProto) -> None:
    """Let each node write tensors of the names that it writes in `base` (in place).

    The converter gives what a node in FP32 writes another name, and the old one to the Cast behind it, if there is one.
    """
    before = {node.name: list(node.output) for node in base.graph.node}
    ends, made = {value.name for value in (*graph.input, *graph.output)}, producers(graph)
    names = {
        new: old
        for node in graph.node
        for new, old in zip(node.output, before.get(node.name, ()))
        if new != old and ends.isdisjoint((new, old))
    }
    names |= {old: new for new, old in names.items() if old in made and old not in names}
    for node in graph.node:
        rename_inputs(node, names)
        node.output[:] = [names.get(name, name) for name in node.output]


def _name_casts(graph: onnx.GraphProto) -> None:
    """Name each Cast ``<keras layer>/Cast_<type>`` after the node that it reads from (in place)."""
    producer = producers(graph)
    taken = {node.name for node in graph.node}
    for node in graph.node:
        kind = _CAST_NAMES.get(_cast_to(node) or 0)
        if kind is not None and (source := producer.get(node.input[0])) is not None:
            stem = f"{keras_layer(source.name)}/Cast_{kind}"
            node.name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(2, 1000))) if name not in taken)
            taken.add(node.name)
