"""Faults of a BatchNorm that the export folded into a convolution: another epsilon, statistics of the batch."""

from __future__ import annotations

import numpy as np
import onnx

from benchmarks.faults.graph_edits import (
    add_constant,
    add_node,
    convolutions,
    element_type,
    moved,
    set_values,
    values,
    weight_of,
)
from benchmarks.faults.layer_edits import layers_of
from benchmarks.faults.planted import Change, draw
from benchmarks.faults.specimen import Normalisation, Specimen
from export.onnx_passes.graph import opset
from export.onnx_passes.layer_names import keras_layer


def change_epsilon(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Fold one BatchNorm with another epsilon."""
    node = draw(random, _normalised(model, specimen), "a BatchNorm behind a convolution")
    found = specimen.normalisations[keras_layer(node.name)]
    epsilon = _other_epsilon(found, random)
    _fold_epsilon(model, node, found, epsilon)
    return Change(f"epsilon {epsilon:g} for {found.epsilon:g}", ("epsilon",), layers_of(specimen, node))


def change_every_epsilon(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Fold all BatchNorms with another epsilon, as a converter with a default of its own does."""
    nodes = _normalised(model, specimen)
    first = draw(random, nodes[:1], "a BatchNorm behind a convolution")
    epsilon = _other_epsilon(specimen.normalisations[keras_layer(first.name)], random)
    for node in nodes:
        _fold_epsilon(model, node, specimen.normalisations[keras_layer(node.name)], epsilon)
    return Change(f"epsilon {epsilon:g} everywhere", ("epsilon",), layers_of(specimen, first))


def _normalised(model: onnx.ModelProto, specimen: Specimen) -> list[onnx.NodeProto]:
    return [node for node in convolutions(model) if keras_layer(node.name) in specimen.normalisations]


def _other_epsilon(found: Normalisation, random: np.random.Generator) -> float:
    """Return the default of another framework, a factor of ten or more away."""
    others = [value for value in (1e-2, 1e-3, 1e-5) if not 0.11 < value / found.epsilon < 9]
    return draw(random, others, "")


def _fold_epsilon(model: onnx.ModelProto, node: onnx.NodeProto, found: Normalisation, epsilon: float) -> None:
    ratio = np.sqrt((found.variance + found.epsilon) / (found.variance + epsilon))
    weight = weight_of(model, node)
    set_values(model, weight, values(model, weight) * ratio[:, None, None, None])
    set_values(model, node.input[2], found.beta + ratio * (values(model, node.input[2]) - found.beta))


def training_mode(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Normalise behind one convolution with the statistics of the batch, by nodes that compute them."""
    node, found = _unfolded(model, specimen, random)
    output, kind = node.output[0], element_type(model, node.output[0])
    x = moved(model, output)
    column = (1, len(found.gamma), 1, 1)
    axes = add_constant(model, f"{output}/axes", np.array([0, 2, 3], np.int64))
    by_input = opset(model) >= 18

    def mean(of: str, name: str) -> str:
        if by_input:
            return add_node(model, "ReduceMean", [of, axes], f"{output}/{name}", keepdims=1)
        return add_node(model, "ReduceMean", [of], f"{output}/{name}", axes=[0, 2, 3], keepdims=1)

    def constant(name: str, value: np.ndarray | float) -> str:
        shaped = np.asarray(value) if np.ndim(value) == 0 else np.reshape(value, column)
        return add_constant(model, f"{output}/{name}", shaped.astype(kind))

    centred = add_node(model, "Sub", [x, mean(x, "batch_mean")], f"{output}/centred")
    variance = mean(add_node(model, "Mul", [centred, centred], f"{output}/squared"), "batch_variance")
    shifted = add_node(model, "Add", [variance, constant("epsilon", found.epsilon)], f"{output}/shifted")
    deviation = add_node(model, "Sqrt", [shifted], f"{output}/deviation")
    scaled = add_node(model, "Div", [centred, deviation], f"{output}/scaled")
    product = add_node(model, "Mul", [scaled, constant("gamma", found.gamma)], f"{output}/product")
    add_node(model, "Add", [product, constant("beta", found.beta)], output)
    return Change("BatchNorm with the statistics of the batch", ("training mode",), layers_of(specimen, node))


def training_attribute(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Normalise behind one convolution by a BatchNormalization node with ``training_mode``."""
    node, found = _unfolded(model, specimen, random)
    output = node.output[0]
    kind = element_type(model, output)
    parts = {"gamma": found.gamma, "beta": found.beta, "mean": found.mean, "variance": found.variance}
    names = [add_constant(model, f"{output}/{name}", value.astype(kind)) for name, value in parts.items()]
    inputs = [moved(model, output), *names]
    add_node(model, "BatchNormalization", inputs, output, epsilon=found.epsilon, training_mode=1)
    model.graph.node[-1].output.extend([f"{output}/running_mean", f"{output}/running_variance"])
    return Change("a BatchNormalization with training_mode", ("training mode",), layers_of(specimen, node))


def _unfolded(
    model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator
) -> tuple[onnx.NodeProto, Normalisation]:
    """Take a BatchNorm out of the weights of a convolution; its node is still to be added."""
    nodes = [
        node
        for node in _normalised(model, specimen)
        if np.abs(specimen.normalisations[keras_layer(node.name)].gamma).min() > 1e-3
    ]
    node = draw(random, nodes, "a BatchNorm behind a convolution")
    found = specimen.normalisations[keras_layer(node.name)]
    factor = found.gamma / np.sqrt(found.variance + found.epsilon)
    weight, bias = weight_of(model, node), node.input[2]
    set_values(model, weight, values(model, weight) / factor[:, None, None, None])
    set_values(model, bias, (values(model, bias) - found.beta) / factor + found.mean)
    return node, found
