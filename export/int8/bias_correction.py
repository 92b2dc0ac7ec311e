"""Bias correction: subtract the mean quantization error of each channel from the bias before it.

Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, section 4.2,
with the means measured on calibration images.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.calibration import run_batches
from export.int8.placement import quantizable_tensors, quantized_edges
from export.int8.qdq import insert_lowered_pair
from export.int8.scales import Scales
from export.int8.weights import RoundedWeight, round_to_nearest
from export.onnx_passes.graph import Index, copy_model
from export.ort_session import open_session


@dataclass(frozen=True)
class MeanMaps:
    """An activation's mean over images at each position, (1, C, ...) float32; (1, C, height, width) for a 2-D Conv.

    Args:
        exact: Of the activation itself.
        quantized: Of the activation rounded to INT8 and back.
    """

    exact: np.ndarray
    quantized: np.ndarray


def collect_mean_maps(model: onnx.ModelProto, batches: Iterable[np.ndarray], scales: Scales) -> dict[str, MeanMaps]:
    """Return the mean of each quantized activation over all images, in one pass, reduced inside the graph.

    Args:
        model: The float32 model that the scales belong to.
        batches: uint8 (N, height, width, 3) RGB.
        scales: One for each of `quantizable_tensors`.

    Raises:
        ProjectError: If there are no images, or a batch has another type or shape than the model takes.
    """
    probe, outputs = _with_means(model, scales)
    total: dict[str, np.ndarray] = {}
    seen = 0
    for batch, values in run_batches(probe, batches, outputs):
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + len(batch) * value.astype(np.float64)
        seen += len(batch)
    means = {name: (value / seen).astype(np.float32) for name, value in total.items()}
    return {
        tensor: MeanMaps(means[exact], means[rounded])
        for tensor, exact, rounded in zip(quantizable_tensors(model), outputs[::2], outputs[1::2])
    }


@dataclass(frozen=True)
class BiasError:
    """The mean error that quantizing one node adds to each channel, and the node whose bias can correct it.

    Args:
        node: Name of the node whose input is quantized.
        target: Name of the node whose bias corrects the error.
        error: float64 (C,).
    """

    node: str
    target: str
    error: np.ndarray


def bias_errors(
    model: onnx.ModelProto, maps: Mapping[str, MeanMaps], weights: Mapping[str, RoundedWeight] | None = None
) -> list[BiasError]:
    """Return the mean error of each quantized node, in the order of the graph.

    A Conv is linear, so its error follows exactly from the mean of its input, with and without rounding. The error of
    a residual Add's skip branch is corrected in the Conv of the main branch. The error of the pooling before the head
    is not corrected.

    Args:
        model: float32; `export.int8.qdq.quantize` will round its weights.
        maps: From `collect_mean_maps`.
        weights: Name of a weight -> its codes; the others are rounded to nearest. Defaults to none.
    """
    codes = weights or {}
    index = Index.of(model.graph)
    nodes = {node.name: node for node in model.graph.node}
    errors = []
    for edge in quantized_edges(model):
        node, means = nodes[edge.node], maps[edge.tensor]
        if node.op_type == "Conv":
            weight = numpy_helper.to_array(index.constants[node.input[1]])
            code = codes.get(node.input[1]) or round_to_nearest(weight)
            rounded, exact = _convolve(node, [(means.quantized, code.values), (means.exact, weight)])
            error, target = rounded - exact, node
        elif node.op_type == "Add":
            error, target = means.quantized - means.exact, index.producers[node.input[1 - edge.index]]
        else:
            continue
        errors.append(BiasError(node.name, target.name, error.mean(axis=(0, *range(2, error.ndim)), dtype=np.float64)))
    return errors


def correct_biases(
    model: onnx.ModelProto, errors: Iterable[BiasError], kept: Collection[str] = ()
) -> tuple[onnx.ModelProto, int]:
    """Return the model with corrected biases, and the number of corrected biases.

    Args:
        model: float32.
        errors: From `bias_errors`, of this model.
        kept: Names of nodes that stay in float and have no error. Defaults to none.
    """
    result = copy_model(model)
    index = Index.of(result.graph)
    nodes = {node.name: node for node in result.graph.node}
    sums: dict[str, np.ndarray] = {}
    for error in errors:
        if error.node not in kept:
            sums[error.target] = sums.get(error.target, 0.0) + error.error
    corrected = 0
    for name, error_sum in sums.items():
        bias = nodes[name].input[2] if len(nodes[name].input) > 2 else ""
        if nodes[name].op_type == "Conv" and bias in index.constants and len(index.readers[bias]) == 1:
            tensor = index.constants[bias]
            value = numpy_helper.to_array(tensor) - error_sum
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), bias))
            corrected += 1
    return result, corrected


def added_to_biases(
    before: onnx.ModelProto, after: onnx.ModelProto, factors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return what was added to the bias of each Conv, float64 (C,) by the name of its node; all that has one.

    Args:
        before: The FP32 model.
        after: The equalized model with corrected biases.
        factors: From `export.int8.equalization.Equalized`.
    """
    nodes = {node.name: node for node in after.graph.node}
    tables = [Index.of(model.graph).constants for model in (before, after)]
    added = {}
    for node in before.graph.node:
        other = nodes.get(node.name)
        if node.op_type != "Conv" or len(node.input) < 3 or other is None or len(other.input) < 3:
            continue
        if node.input[2] in tables[0] and other.input[2] in tables[1]:
            old, new = (numpy_helper.to_array(t[n.input[2]]) for t, n in zip(tables, (node, other)))
            added[node.name] = new.astype(np.float64) - old / factors.get(node.output[0], np.ones(1))
    return added


def _with_means(model: onnx.ModelProto, scales: Scales) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with two (1, C, ...) means of each quantized activation as outputs: exact, and rounded."""
    result = copy_model(model)
    graph = result.graph
    outputs = []
    for tensor in quantizable_tensors(model):
        rounded_values = insert_lowered_pair(graph, tensor, scales)
        exact, rounded = f"{tensor}/mean", f"{tensor}/rounded_mean"
        for source, output in ((tensor, exact), (rounded_values, rounded)):
            graph.node.append(helper.make_node("ReduceMean", [source], [output], output, axes=[0], keepdims=1))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
            outputs.append(output)
    return result, outputs


def _convolve(node: onnx.NodeProto, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Return the node's convolution of each input with its weight, without a bias; float32."""
    conv = helper.make_node("Conv", ["x", "weight"], ["y"])
    conv.attribute.extend(node.attribute)
    graph = helper.make_graph(
        [conv],
        "conv",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "weight")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    session = open_session(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), spinning=False
    )
    return [session.run(None, {"x": x, "weight": weight.astype(np.float32)})[0] for x, weight in pairs]
