"""Faults of INT8's lowered activations and of the codes of its weights: what has to make up for an offset does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from benchmarks.faults.graph_edits import add_constant, add_node, before_pair, moved, set_values, shape_of, values
from benchmarks.faults.layer_edits import layers_of
from benchmarks.faults.planted import Change, draw
from benchmarks.faults.specimen import Specimen
from export.onnx_passes.graph import Index, constants
from export.onnx_passes.layer_names import keras_layer
from export.onnx_passes.repairs import set_attribute
from pipeline.artifacts.paths import ONNX, TENSORS
from pipeline.artifacts.tensor_changes import TensorChange, read_changes
from pipeline.verification.explain.constants import constant_of
from pipeline.verification.explain.origin_weights import equalized
from pipeline.verification.explain.twin import QuantizedTensor, quantized_tensors

_PART = "an activation that is lowered by 128 scales"
_READER = "a convolution that reads a lowered activation"


@dataclass(frozen=True)
class _Reader:
    """A convolution that reads a lowered activation.

    Attributes:
        node: the Conv.
        bias: name of the constant that makes up for the offset.
        offset: of the activation.
    """

    node: onnx.NodeProto
    bias: str
    offset: float


def _changes(specimen: Specimen) -> dict[str, TensorChange]:
    path = specimen.path(TENSORS)
    return read_changes(path) if path.is_file() else {}


def _lowered(model: onnx.ModelProto, specimen: Specimen) -> list[QuantizedTensor]:
    return [pair for pair in quantized_tensors(model, _changes(specimen)) if pair.offset]


def _readers(model: onnx.ModelProto, specimen: Specimen) -> Iterator[_Reader]:
    """Yield the convolutions whose bias makes up for an offset."""
    offsets = {name: float(c.offsets[0]) for name, c in _changes(specimen).items() if len(c.offsets) == 1}
    offsets |= {pair.output: pair.offset for pair in _lowered(model, specimen)}
    table = constants(model.graph)
    for node in model.graph.node:
        if node.op_type == "Conv" and offsets.get(node.input[0]) and node.input[2] in table:
            yield _Reader(node, node.input[2], offsets[node.input[0]])


def _sums(weight: np.ndarray) -> np.ndarray:
    return np.asarray(weight.sum(axis=(1, 2, 3)))


def forget_in_reader(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Leave what makes up for a lowered activation out of the bias of a node that reads it."""
    reader = draw(random, list(_readers(model, specimen)), _READER)
    weight = constant_of(reader.node.input[1], Index.of(model.graph))
    assert weight is not None
    set_values(model, reader.bias, values(model, reader.bias) - reader.offset * _sums(weight.values))
    return Change("an offset that a bias does not make up for", ("weights",), layers_of(specimen, reader.node))


def sum_unrounded_weights(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let the bias of a convolution make up for a lowered activation with the weights before they were rounded."""
    reader = draw(random, list(_readers(model, specimen)), _READER)
    source = specimen.load(ONNX["fp32"])
    before = next(node for node in source.graph.node if node.name == reader.node.name)
    rounded = constant_of(reader.node.input[1], Index.of(model.graph))
    exact = constant_of(before.input[1], Index.of(source.graph))
    assert rounded is not None
    assert exact is not None
    difference = _sums(equalized(before, exact.values, _changes(specimen)) - rounded.values)
    set_values(model, reader.bias, values(model, reader.bias) + reader.offset * difference)
    return Change("an offset made up for with unrounded weights", ("weights",), layers_of(specimen, reader.node))


def raise_minimum(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let the Clip in place of a ReLU end at half of its offset, or at 0 as the ReLU did."""
    clips = [node for node in model.graph.node if node.op_type == "Clip" and node.output[0] in _changes(specimen)]
    node = draw(random, clips, _PART)
    share = draw(random, (0.0, 0.5), "")
    name = str(node.input[1])
    kind = constants(model.graph)[name]
    node.input[1] = add_constant(
        model, f"{name}/raised", (share * values(model, name)).astype(onnx.numpy_helper.to_array(kind).dtype)
    )
    what = f"a Clip that ends at {share:g} of minus its offset"
    return Change(what, ("attribute", "layer scale", "weights"), (keras_layer(node.name),))


def halve_lowered_scale(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Halve the scale of both nodes of a lowered activation's pair."""
    pair = draw(random, _lowered(model, specimen), _PART)
    for name in dict.fromkeys((pair.scale_name, pair.back_name)):
        set_values(model, name, values(model, name) / 2)
    made = next(node for node in model.graph.node if pair.tensor in node.output)
    return Change("half the scale of a lowered activation", ("layer scale", "saturation"), (keras_layer(made.name),))


def pad_reader(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Move what a convolution reads by a pixel, with a border of zeros, where its input is lowered."""
    found = [reader.node for reader in _readers(model, specimen) if len(shape_of(model, reader.node.output[0])) == 3]
    node = draw(random, found, _READER)
    _, height, width = shape_of(model, node.output[0])
    output = node.output[0]
    before = moved(model, output)
    set_attribute(node, "pads", [1, 1, 0, 0])
    ends = [
        add_constant(model, f"{output}/{name}", np.asarray(numbers, np.int64))
        for name, numbers in (("starts", [0, 0]), ("ends", [height, width]), ("axes", [2, 3]))
    ]
    add_node(model, "Slice", [before, *ends], output)
    return Change("a border of zeros beside a lowered activation", ("padding",), layers_of(specimen, node))


def change_codes(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Move a few INT8 codes of one convolution by one: less than rounding may."""
    table = constants(model.graph)
    found = [
        (node, name)
        for node in model.graph.node
        if node.op_type == "Conv" and (name := before_pair(model, node.input[1])) in table
        and table[name].data_type == onnx.TensorProto.INT8
    ]  # fmt: skip
    node, name = draw(random, found, "a convolution in INT8")
    codes = values(model, name)
    places = random.choice(codes.size, max(1, codes.size // 500), replace=False)
    codes.reshape(-1)[places] += np.where(codes.reshape(-1)[places] > 0, -1, 1)
    set_values(model, name, codes)
    return Change(f"{len(places)} INT8 codes moved by one", ("weights",), layers_of(specimen, node))
