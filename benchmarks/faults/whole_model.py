"""Faults of a whole model: channels, mean, softmax, order of the classes, batch, rows."""

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
    shape_of,
    values,
    weight_of,
)
from benchmarks.faults.planted import Change, NoSuchPartError, draw
from benchmarks.faults.specimen import Specimen
from export.onnx_passes.graph import replace_input
from export.onnx_passes.layer_names import keras_layer
from export.tensorrt.sidecar import INPUT, OUTPUTS

LOGITS, PROBABILITIES = OUTPUTS


def swap_channels(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Exchange red and blue of the pixels."""
    _refuse_grey(specimen)
    order = add_constant(model, "swapped/order", np.array([2, 1, 0], np.int64))
    replace_input(model.graph, INPUT, "swapped")
    add_node(model, "Gather", [INPUT, order], "swapped", axis=3)
    return Change("red and blue of the pixels exchanged", ("channel order",))


def swap_weights(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Exchange red and blue in the weights of the first convolution, behind mean and scale."""
    _refuse_grey(specimen)
    first = convolutions(model)[0]
    name = weight_of(model, first)
    set_values(model, name, values(model, name)[:, ::-1])
    return Change("red and blue of the first weights exchanged", ("channel order",))


def _refuse_grey(specimen: Specimen) -> None:
    pixels = specimen.reference["pixels"]
    if (pixels == pixels[..., ::-1]).all():
        raise NoSuchPartError("Expected images with colours. Received: grey ones. Plant it into the small model.")


def _preprocessing(model: onnx.ModelProto, kind: str, part: str) -> str:
    """Return the name of the constant of a preprocessing node."""
    nodes = [node for node in model.graph.node if node.op_type == kind and keras_layer(node.name) == "preprocessing"]
    if not nodes:
        raise NoSuchPartError(f"Expected a model with {part}. Received: one without. Plant it into the small model.")
    return str(nodes[-1].input[1])


def drop_mean(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Subtract no mean."""
    name = _preprocessing(model, "Sub", "a mean")
    set_values(model, name, 0 * values(model, name))
    return Change("no mean subtracted", ("mean missing", "preprocessing"))


def double_mean(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Subtract the mean twice."""
    name = _preprocessing(model, "Sub", "a mean")
    set_values(model, name, 2 * values(model, name))
    return Change("the mean subtracted twice", ("preprocessing", "mean missing"))


def mean_of_unit_pixels(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Subtract the mean of pixels from 0 to 1."""
    name = _preprocessing(model, "Sub", "a mean")
    set_values(model, name, values(model, name) / 255)
    return Change("the mean in units of 0 to 1 subtracted from 0 to 255", ("mean missing", "preprocessing"))


def drop_scale(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Do not scale the pixels."""
    name = _preprocessing(model, "Mul", "a scale of pixels")
    set_values(model, name, np.ones_like(values(model, name)))
    return Change("pixels not scaled", ("preprocessing",))


def softmax_in_logits(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Apply the softmax before the logits, and again behind them."""
    add_node(model, "Softmax", [moved(model, LOGITS)], LOGITS, axis=-1)
    return Change("the logits are probabilities", ("softmax twice",))


def softmax_of_probabilities(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Apply the softmax to the probabilities."""
    add_node(model, "Softmax", [moved(model, PROBABILITIES)], PROBABILITIES, axis=-1)
    return Change("the softmax of the probabilities", ("softmax twice",))


def permute_classes(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Put all classes into another order."""
    order = np.arange(len(specimen.card.classes))
    while (order == np.arange(len(order))).any():
        order = random.permutation(len(order))
    return _ordered(model, order, "all classes in another order")


def reverse_classes(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Reverse the order of the classes."""
    return _ordered(model, np.arange(len(specimen.card.classes))[::-1], "the classes in reversed order")


def exchange_classes(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Exchange two classes that the model gives."""
    given = np.unique(specimen.reference["logits"].argmax(axis=1))
    if len(given) < 2:
        raise NoSuchPartError("Expected a model that gives two classes. Received: one class. Take more images.")
    first, second = random.choice(given, 2, replace=False)
    order = np.arange(len(specimen.card.classes))
    order[[first, second]] = second, first
    names = specimen.card.classes[first], specimen.card.classes[second]
    return _ordered(model, order, f"the classes {names[0]} and {names[1]} exchanged")


def _ordered(model: onnx.ModelProto, order: np.ndarray, what: str) -> Change:
    name = add_constant(model, "permuted/order", np.ascontiguousarray(order, np.int64))
    add_node(model, "Gather", [moved(model, LOGITS), name], LOGITS, axis=1)
    return Change(what, ("class order",))


def declare_batch_1(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """State the batch of one image for inputs and outputs."""
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return Change("a batch of one image stated", ("fixed batch",))


def reshape_to_batch_1(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Give the logits the shape of one image."""
    target = add_constant(model, "baked/shape", np.array([1, len(specimen.card.classes)], np.int64))
    add_node(model, "Reshape", [moved(model, LOGITS), target], LOGITS)
    return Change("a Reshape to a batch of 1", ("fixed batch",))


def repeat_row(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Return the logits of the first image for all."""
    return _repeated(model, 0, "the first row")


def repeat_last_row(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Return the logits of the last image for all."""
    return _repeated(model, -1, "the last row")


def _repeated(model: onnx.ModelProto, row: int, which: str) -> Change:
    before = moved(model, LOGITS)
    index = add_constant(model, "repeated/index", np.array([row], np.int64))
    add_node(model, "Gather", [before, index], "repeated/row", axis=0)
    add_node(model, "Shape", [before], "repeated/shape")
    add_node(model, "Expand", ["repeated/row", "repeated/shape"], LOGITS)
    return Change(f"{which} for all", ("repeated row",))


def nan_in_row(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Make the logits of one row of every batch NaN."""
    row = int(random.integers(1, 4))
    _nan_at(model, LOGITS, row)
    return Change(f"NaN in row {row} of every batch", ("not finite",))


def nan_of_an_image(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Make the logits of the image with the largest logit of a class NaN."""
    logits = specimen.reference["logits"]
    scores = logits[:, int(random.integers(logits.shape[1]))]
    column = int(np.flatnonzero(logits[scores.argmax()] == scores.max())[0])
    second, first = np.sort(scores)[-2:]
    before = moved(model, LOGITS)
    add_node(
        model, "Gather", [before, add_constant(model, "nan/class", np.array([column], np.int64))], "nan/score", axis=1
    )
    limit = add_constant(model, "nan/limit", np.array((first + second) / 2, np.float32))
    add_node(model, "Greater", ["nan/score", limit], "nan/found")
    add_node(
        model, "Where", ["nan/found", add_constant(model, "nan/value", np.array(np.nan, np.float32)), before], LOGITS
    )
    return Change("NaN for one image", ("not finite",))


def nan_in_a_layer(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Make the output of one layer NaN for one row of every batch."""
    node = draw(random, [node for node in model.graph.node if node.op_type == "Relu"], "a ReLU")
    row = int(random.integers(1, 4))
    _nan_at(model, node.output[0], row)
    return Change(f"NaN in row {row} of every batch", ("not finite",), (keras_layer(node.name),))


def _nan_at(model: onnx.ModelProto, tensor: str, row: int) -> None:
    kind, rank = element_type(model, tensor), len(shape_of(model, tensor)) + 1
    before = moved(model, tensor)
    for name, value in {"zero": 0, "one": 1, "row": row}.items():
        add_constant(model, f"nan/{name}", np.array(value, np.int64))
    add_constant(model, "nan/axes", np.arange(1, rank, dtype=np.int64))
    add_constant(model, "nan/value", np.array(np.nan, kind))
    add_node(model, "Shape", [before], "nan/shape")
    add_node(model, "Gather", ["nan/shape", "nan/zero"], "nan/batch", axis=0)
    add_node(model, "Range", ["nan/zero", "nan/batch", "nan/one"], "nan/rows")
    add_node(model, "Equal", ["nan/rows", "nan/row"], "nan/chosen")
    add_node(model, "Unsqueeze", ["nan/chosen", "nan/axes"], "nan/mask")
    add_node(model, "Where", ["nan/mask", "nan/value", before], tensor)
