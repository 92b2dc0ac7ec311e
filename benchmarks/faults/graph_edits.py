"""What every edit of a graph needs: values of its weights, its convolutions, nodes behind a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.faults.planted import NoSuchPartError
from export.onnx_passes.graph import constants, consumers, infer_shapes, producers

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def values(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return an initializer as float64 or int64, a copy."""
    array = numpy_helper.to_array(constants(model.graph)[name])
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def set_values(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    """Replace the values of an initializer, whose type stays (in place)."""
    tensor = constants(model.graph)[name]
    with np.errstate(over="ignore"):
        kept = np.asarray(array).astype(numpy_helper.to_array(tensor).dtype)
    tensor.CopyFrom(numpy_helper.from_array(kept, name))


def add_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    """Add an initializer and return its name (in place)."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions with constant weights and a bias, in the order of the graph."""
    table = constants(model.graph)
    found = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    return [node for node in found if before_pair(model, node.input[1]) in table and node.input[2] in table]


def before_pair(model: onnx.ModelProto, tensor: str) -> str:
    """Return the tensor before a Q/DQ pair; itself where there is none."""
    made = producers(model.graph)
    while tensor in made and made[tensor].op_type in _PAIR:
        tensor = made[tensor].input[0]
    return tensor


def weight_of(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """Return the name of a node's weight, before a Q/DQ pair."""
    return before_pair(model, node.input[1])


def moved(model: onnx.ModelProto, tensor: str) -> str:
    """Let the producer of a tensor write another one, whose name is returned, so that new nodes can write this one."""
    producer = producers(model.graph).get(tensor)
    if producer is None:
        raise NoSuchPartError(f"Expected a node that writes {tensor!r}. Received: none. Choose another tensor.")
    name = f"{tensor}/before"
    producer.output[list(producer.output).index(tensor)] = name
    return name


def add_node(model: onnx.ModelProto, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
    """Add a node that is named after its output, and return the output (in place)."""
    model.graph.node.append(helper.make_node(kind, inputs, [output], f"{output}/planted_{kind}", **attributes))
    return output


def element_type(model: onnx.ModelProto, tensor: str) -> np.dtype:
    """Return the type of a tensor's values."""
    inferred = infer_shapes(model)
    for info in (*inferred.value_info, *inferred.output, *inferred.input):
        if info.name == tensor:
            return helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    raise NoSuchPartError(f"Expected a tensor of a known type. Received: {tensor!r}. Choose another one.")


def shape_of(model: onnx.ModelProto, tensor: str) -> tuple[int, ...]:
    """Return the inferred shape without the batch; empty where it is unknown."""
    inferred = infer_shapes(model)
    for info in (*inferred.value_info, *inferred.output, *inferred.input):
        if info.name == tensor:
            return tuple(d.dim_value for d in info.type.tensor_type.shape.dim[1:])
    return ()


def only_reader(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    """Return the only node that reads a tensor, behind a Q/DQ pair; None where several do."""
    while True:
        readers = consumers(model.graph).get(tensor, [])
        if len(readers) != 1 or tensor in {output.name for output in model.graph.output}:
            return None
        if readers[0].op_type not in (*_PAIR, "Relu"):
            return readers[0]
        tensor = readers[0].output[0]
