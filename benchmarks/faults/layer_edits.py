"""Faults inside a layer: its weights, its scale, its padding, the skip that it reads."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.faults.graph_edits import (
    add_constant,
    add_node,
    before_pair,
    convolutions,
    only_reader,
    set_values,
    shape_of,
    values,
    weight_of,
)
from benchmarks.faults.planted import Change, NoSuchPartError, draw
from benchmarks.faults.specimen import Specimen
from export.onnx_passes.graph import attribute, constants, copy_model, topological_sort
from export.onnx_passes.layer_names import keras_layer
from export.onnx_passes.repairs import set_attribute
from pipeline.artifacts.diagnosis import Cause
from pipeline.verification.explain.twin import in_fp32, run

SIGNIFICANT = 2  # weights of a layer with fewer bits in their mantissa than this are a fault in every precision


def layers_of(specimen: Specimen, node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the Keras layers that a node computes: its own, and the BatchNorm that was folded into it."""
    layer = keras_layer(node.name)
    found = specimen.normalisations.get(layer)
    return (layer,) if found is None else (layer, found.name)


def scale_weights(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Double or halve the weights of one convolution."""
    return _scaled(model, specimen, random, bias=False)


def scale_output(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Double or halve the weights of one convolution and its bias."""
    return _scaled(model, specimen, random, bias=True)


def _scaled(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator, bias: bool) -> Change:
    node, factor = draw(random, convolutions(model), "a Conv"), draw(random, (2.0, 0.5), "")
    scale, weight = _scale_of_pair(model, node.input[1]), weight_of(model, node)
    coded = bool(scale) and not is_float(model, weight)  # codes stay, and their scales grow
    for name in (*([] if coded else [weight]), *([scale] if scale else []), *([node.input[2]] if bias else [])):
        set_values(model, name, factor * values(model, name))
    what = f"weights{' and bias' if bias else ''} times {factor:g}"
    return Change(what, ("layer scale", "weights"), layers_of(specimen, node))


def _scale_of_pair(model: onnx.ModelProto, tensor: str) -> str:
    """Return the scale of the Q/DQ pair that writes a tensor; "" where none does."""
    node = next((node for node in model.graph.node if tensor in node.output), None)
    return str(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else ""


def scale_of_quantized_weights(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Dequantize the weights of one convolution with a scale that is twice or half the right one."""
    found = [node for node in convolutions(model) if _scale_of_pair(model, node.input[1])]
    node = draw(random, found, "a convolution in INT8")
    factor = _rescale(model, node.input[1], random)
    return Change(f"scale of the weights times {factor:g}", ("layer scale", "weights"), layers_of(specimen, node))


def scale_of_quantized_activation(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Dequantize one activation with a scale that is twice or half the right one."""
    found = [node for node in convolutions(model) if _scale_of_pair(model, node.input[0])]
    node = draw(random, found, "a convolution in INT8")
    source = before_pair(model, node.input[0])
    made = next(writer for writer in model.graph.node if source in writer.output)
    readers = {layer for n in model.graph.node if node.input[0] in n.input for layer in layers_of(specimen, n)}
    factor = _rescale(model, node.input[0], random)
    layers = (*layers_of(specimen, made), *sorted(readers))  # its reader computes with the wrong values first
    return Change(f"scale of an activation times {factor:g}", ("layer scale",), layers)


def _rescale(model: onnx.ModelProto, tensor: str, random: np.random.Generator) -> float:
    """Give the DequantizeLinear that writes a tensor a scale of its own; return the factor."""
    factor = draw(random, (2.0, 0.5), "")
    node = next(node for node in model.graph.node if tensor in node.output)
    kind = numpy_helper.to_array(constants(model.graph)[node.input[1]]).dtype
    scale = factor * values(model, node.input[1])
    node.input[1] = add_constant(model, f"{node.input[1]}/rescaled", scale.astype(kind))
    return factor


def overflow_weights(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Scale one convolution beyond FP16's largest number, and the next one down by as much."""
    node, reader = draw(random, _in_a_row(model), "two convolutions in a row")
    weight, factor = weight_of(model, node), 0.0
    factor = 2.0 * 65504 / np.abs(values(model, weight)).max()
    for name, by in ((weight, factor), (node.input[2], factor), (weight_of(model, reader), 1 / factor)):
        set_values(model, name, by * values(model, name))
    return Change("weights beyond 65,504", ("overflow", "not finite"), layers_of(specimen, node))


def overflow_activation(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let one convolution's values exceed FP16's largest number, with finite weights, and scale them down behind it.

    The factor is a power of two, so that in FP32 the answers stay as they are, bit for bit.
    """
    node, reader, factor = _outgrown(model, specimen, random)
    for name in (weight_of(model, node), node.input[2]):
        set_values(model, name, factor * values(model, name))
    by = add_constant(model, "overflow/factor", np.asarray(1 / factor, np.float16))
    reader.input[0] = add_node(model, "Mul", [reader.input[0], by], "overflow/scaled")
    return Change("values beyond 65,504", ("overflow",), layers_of(specimen, node))


def overflow_between(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let one convolution's values exceed FP16's largest number, and scale the weights of the next one down."""
    node, reader, factor = _outgrown(model, specimen, random)
    for name, by in ((weight_of(model, node), factor), (node.input[2], factor), (weight_of(model, reader), 1 / factor)):
        set_values(model, name, by * values(model, name))
    return Change("values beyond 65,504 between two layers", ("overflow",), layers_of(specimen, node))


def _in_a_row(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Return the convolutions whose only reader is a convolution, each with it."""
    return [
        (node, reader)
        for node in convolutions(model)
        if (reader := only_reader(model, node.output[0])) is not None and reader.op_type == "Conv"
    ]


def _outgrown(
    model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator
) -> tuple[onnx.NodeProto, onnx.NodeProto, float]:
    """Draw two convolutions in a row, and a factor by which the values between them exceed FP16, but no weight."""
    pairs = _in_a_row(model)
    between = [reader.input[0] for _, reader in pairs]
    largest = run(in_fp32(model), specimen.reference["pixels"][:4], between) if pairs else {}
    found = []
    for node, reader in pairs:
        if (top := float(largest[reader.input[0]].max())) > 0:
            factor = 2.0 ** np.ceil(np.log2(2 * 65504 / top))
            weights = (values(model, name) for name in (weight_of(model, node), node.input[2]))
            if factor * max(np.abs(weight).max() for weight in weights) < 65504:
                found.append((node, reader, factor))
    return draw(random, found, "two convolutions in a row, with values larger than the weights")


def shift_padding(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Move the padding of one convolution or pool by a pixel, in any of four directions."""
    nodes = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "MaxPool", "AveragePool") and any(attribute(node, "pads", [0]))
    ]
    node = draw(random, nodes, "padding")
    pads = list(attribute(node, "pads"))
    axis = int(random.integers(2))
    ends = [axis, axis + 2]
    if pads[ends[0]] == 0 or (pads[ends[1]] and random.integers(2)):
        ends.reverse()
    if pads[ends[0]] == 0:
        raise NoSuchPartError("Expected padding on both axes. Received: on one. Draw another layer.")
    pads[ends[0]] -= 1
    pads[ends[1]] += 1
    set_attribute(node, "pads", pads)
    return Change(f"padding {pads} of a {node.op_type}", ("padding",), layers_of(specimen, node))


def forget_border(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Drop the border of zeros before a MaxPool, as ONNX Runtime's Pad_Fusion does."""
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Max" and any(name.endswith("MaxPool:0") for name in node.input)
    ]
    node = draw(random, nodes, "a border of zeros before a MaxPool of negative values")
    name = next(name for name in node.input if name in constants(model.graph))
    border = values(model, name)
    set_values(model, name, np.full_like(border, border.min()))
    layers = layers_of(specimen, node)
    return Change("a MaxPool that forgets its border of zeros", ("padding", "pooling"), (*layers, f"{layers[0]}_pad"))


def count_padding(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let an average pool count its padding, or not count it where it should."""
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "AveragePool"
        and (any(attribute(node, "pads", [0])) or attribute(node, "auto_pad", b"NOTSET").startswith(b"SAME"))
    ]
    node = draw(random, nodes, "an average pool with padding")
    counted = 1 - attribute(node, "count_include_pad", 0)
    set_attribute(node, "count_include_pad", counted)
    what = "an average pool that counts padding" if counted else "an average pool that does not count padding"
    return Change(what, ("pooling", "padding"), layers_of(specimen, node))


def exchange_skips(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Exchange the skips of two residual blocks of one shape that do not follow each other."""
    pairs = []
    adds = _residual(model)
    for index, (first, shape) in enumerate(adds):
        for second, other in adds[index + 1 :]:
            if shape == other and _acyclic(_exchanged(model, first, second)):
                pairs.append((first.name, second.name))
    names = draw(random, pairs, "two residual blocks of one shape, neither of which follows the other")
    nodes = {node.name: node for node in model.graph.node}
    first, second = (nodes[name] for name in names)
    first.input[1], second.input[1] = second.input[1], first.input[1]
    return Change("the skips of two blocks exchanged", ("wiring",), tuple(map(keras_layer, names)))


def other_skip(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let a residual block add the skip of an earlier one."""
    adds = _residual(model)
    pairs = [
        (earlier, later)
        for index, (earlier, shape) in enumerate(adds)
        for later, other in adds[index + 1 :]
        if shape == other and earlier.input[1] != later.input[1]
    ]
    earlier, later = draw(random, pairs, "two residual blocks of one shape")
    later.input[1] = earlier.input[1]
    return Change("the skip of an earlier block added", ("wiring",), (keras_layer(later.name),))


def _residual(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, tuple[int, ...]]]:
    """Return the Adds of two activations, and their shapes."""
    table = constants(model.graph)
    adds = [node for node in model.graph.node if node.op_type == "Add" and not set(node.input) & set(table)]
    return [(node, shape) for node in adds if len(shape := shape_of(model, node.output[0])) == 3]


def _exchanged(model: onnx.ModelProto, first: onnx.NodeProto, second: onnx.NodeProto) -> onnx.ModelProto:
    result = copy_model(model)
    nodes = {node.name: node for node in result.graph.node}
    nodes[first.name].input[1], nodes[second.name].input[1] = second.input[1], first.input[1]
    return result


def _acyclic(model: onnx.ModelProto) -> bool:
    try:
        topological_sort(model)
    except Exception:
        return False
    return True


def cut_weights(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Set the end of the weights of one convolution to zero, as a file that was cut short."""
    node = draw(random, convolutions(model), "a Conv")
    name = weight_of(model, node)
    weight = values(model, name)
    share = float(random.choice([0.1, 0.25, 0.5]))
    weight.reshape(-1)[-max(1, int(share * weight.size)) :] = 0
    set_values(model, name, weight)
    return Change(f"the last {share:.0%} of the weights zero", ("weights",), layers_of(specimen, node))


def lose_channel(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Set the weights of a few output channels of one convolution to zero."""
    node = draw(random, convolutions(model), "a Conv")
    name = weight_of(model, node)
    weight = values(model, name)
    lost = random.choice(len(weight), max(1, len(weight) // 8), replace=False)
    weight[lost] = 0
    set_values(model, name, weight)
    return Change(f"weights of {len(lost)} output channels zero", ("weights",), layers_of(specimen, node))


def fewer_bits(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Cut the mantissa of the weights of one convolution, as by a conversion to a narrower type."""
    node = draw(random, convolutions(model), "a Conv")
    name = weight_of(model, node)
    bits = int(random.choice([7, 4, SIGNIFICANT])) if is_float32(model, name) else SIGNIFICANT
    fraction, exponent = np.frexp(values(model, name))
    set_values(model, name, np.ldexp(np.trunc(fraction * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent))
    causes: tuple[Cause, ...] = ("weights",)
    return Change(f"weights with {bits} bits of mantissa", causes, layers_of(specimen, node))


def is_float(model: onnx.ModelProto, name: str) -> bool:
    """Return whether an initializer holds floating-point numbers, not codes."""
    return numpy_helper.to_array(constants(model.graph)[name]).dtype.kind == "f"


def is_float32(model: onnx.ModelProto, name: str) -> bool:
    """Return whether an initializer is float32."""
    return numpy_helper.to_array(constants(model.graph)[name]).dtype == np.float32
