"""A file's twin in plain FP32: what it would compute if nothing were rounded to INT8 or FP16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.onnx_passes.cut import with_outputs
from export.onnx_passes.graph import (
    Index,
    attribute,
    before_casts,
    constants,
    consumers,
    copy_model,
    infer_shapes,
    producers,
    replace_input,
)
from export.ort_session import open_session
from pipeline.artifacts.tensor_changes import TensorChange
from pipeline.verification.explain.constants import constant_of

NO_CHANGES: Mapping[str, TensorChange] = {}
AT_ONCE = 4  # images, because all outputs of a run are in memory together


@dataclass(frozen=True)
class QuantizedTensor:
    """An activation that a pair of QuantizeLinear and DequantizeLinear rounds.

    Args:
        tensor: What is rounded.
        scale: Of QuantizeLinear.
        back: Of DequantizeLinear, which should be the same.
        zero: Zero point.
        low: Smallest integer.
        high: Largest integer.
        node: Name of the QuantizeLinear, or of the node before it.
        scale_name: Initializer of `scale`.
        back_name: Initializer of `back`.
        output: Tensor behind the pair.
        offset: What its values are lower by than those that the scale is for, see `export.int8.shift`. Defaults to 0.
    """

    tensor: str
    scale: float
    back: float
    zero: int
    low: int
    high: int
    node: str
    scale_name: str
    back_name: str
    output: str
    offset: float = 0.0

    @property
    def largest(self) -> float:
        """Return the largest absolute value that the pair can hold; of a lowered tensor, all of its steps."""
        if self.offset:
            return self.scale * (self.high - self.low)
        return self.scale * max(self.high - self.zero, self.zero - self.low)

    def reach(self, values: np.ndarray) -> float:
        """Return the largest absolute value among those of the tensor, before they are lowered."""
        return float(np.abs(values + np.float32(self.offset)).max())

    def saturated(self, values: np.ndarray) -> np.ndarray:
        """Return which values the pair clips by more than half a step."""
        steps = np.asarray(values, np.float32) / np.float32(self.scale) + self.zero
        return np.asarray((steps > self.high + 0.5) | (steps < self.low - 0.5))


def quantized_tensors(model: ModelProto, changes: Mapping[str, TensorChange] = NO_CHANGES) -> list[QuantizedTensor]:
    """Return the activations that pairs with one scale round, in the order of the file.

    Args:
        model: The file.
        changes: What its tensors hold in place of Keras' values. Defaults to none.
    """
    table, readers, written = constants(model.graph), consumers(model.graph), producers(model.graph)
    sources = {info.name for info in model.graph.input}
    found = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or (node.input[0] not in written and node.input[0] not in sources):
            continue
        for back in readers.get(node.output[0], ()):
            if back.op_type != "DequantizeLinear":
                continue
            scales = [table.get(pair.input[1]) for pair in (node, back)]
            if any(scale is None or np.prod(scale.dims) != 1 for scale in scales):
                continue
            values = [float(numpy_helper.to_array(scale).ravel()[0]) for scale in scales if scale is not None]
            point = table.get(node.input[2]) if len(node.input) > 2 else None
            zero = numpy_helper.to_array(point).ravel()[0] if point is not None else np.uint8(0)
            limits = np.iinfo(zero.dtype) if np.issubdtype(zero.dtype, np.integer) else np.iinfo(np.int8)
            found.append(
                QuantizedTensor(
                    node.input[0], values[0], values[1], int(zero), int(limits.min), int(limits.max),
                    _name_of(node, written), node.input[1], back.input[1], back.output[0],
                    _offset_of(node.input[0], written, changes),
                )
            )  # fmt: skip
    return found


def _name_of(node: NodeProto, written: Mapping[str, NodeProto]) -> str:
    before = written.get(node.input[0])
    return node.name or (before.name if before is not None else "")


def _offset_of(tensor: str, written: Mapping[str, NodeProto], changes: Mapping[str, TensorChange]) -> float:
    """Return what a tensor is lowered by, in all channels alike; a Cast before it keeps values."""
    change = changes.get(before_casts(tensor, written, changes))
    offsets = change.offsets if change is not None else np.zeros(1)
    return float(offsets[0]) if len(offsets) == 1 else 0.0


def without_rounding(model: ModelProto) -> ModelProto:
    """Return the model in FP32 and without the pairs that round activations.

    Weights have the values that the file computes with, in initializers without pairs or codes. Tensors keep their
    names, so that both models can be compared tensor by tensor.
    """
    result = in_fp32(model)
    graph = result.graph
    index = Index.of(graph)
    weights = {
        node.output[0]: value
        for node in graph.node
        if node.op_type == "DequantizeLinear" and (value := constant_of(node.output[0], index)) is not None
    }
    computed = [node for node in graph.node if node.output[0] in weights]
    for node in computed:
        graph.node.remove(node)
    for name, value in weights.items():
        graph.initializer.append(numpy_helper.from_array(value.values.astype(np.float32), name))
    outputs = {info.name for info in graph.output}
    for pair in quantized_tensors(result):
        if pair.output not in outputs:
            replace_input(graph, pair.output, pair.tensor)
    return with_outputs(result, [info.name for info in graph.output])


def in_fp32(model: ModelProto) -> ModelProto:
    """Return the model with FP32 in place of FP16 everywhere."""
    result = copy_model(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        for item in node.attribute:
            if item.type == onnx.AttributeProto.TENSOR and item.t.data_type == TensorProto.FLOAT16:
                item.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item.t).astype(np.float32), item.t.name))
        if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT16:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT16:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    return result


def run(
    model: ModelProto, inputs: np.ndarray, outputs: Sequence[str] = (), at_once: int = AT_ONCE
) -> dict[str, np.ndarray]:
    """Run a model with one input, exactly as its graph says, and return outputs by name.

    Args:
        model: The model.
        inputs: For its first input; the last is repeated to fill a batch of a fixed size.
        outputs: Tensors. Defaults to the model's first output.
        at_once: Images of a batch. Defaults to `AT_ONCE`.
    """
    names = list(dict.fromkeys(outputs)) or [model.graph.output[0].name]
    session = open_session(with_outputs(model, names), exact=True, spinning=False, log_severity=4)
    source = session.get_inputs()[0].name
    if fixed := model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        at_once = fixed
    fed = np.concatenate([inputs, np.repeat(inputs[-1:], -len(inputs) % fixed, axis=0)]) if fixed else inputs
    parts = [session.run(names, {source: fed[i : i + at_once]}) for i in range(0, len(fed), at_once)]
    return {name: np.concatenate([part[index] for part in parts])[: len(inputs)] for index, name in enumerate(names)}


def float_tensors(model: ModelProto) -> list[tuple[str, NodeProto]]:
    """Return the floating-point activations of a model with the nodes that write them, in the order of the file."""
    inferred = infer_shapes(model)
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    reached = _from_input(model)
    return [
        (name, node)
        for node in model.graph.node
        for name in node.output
        if name in reached and kinds.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16)
    ]


def _from_input(model: ModelProto) -> set[str]:
    """Return the tensors that depend on the input: activations, not weights."""
    reached = {info.name for info in model.graph.input}
    for node in model.graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
    return reached
