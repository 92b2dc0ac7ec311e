"""Every layer of a file against Keras: as the file computes it, and where each layer is given Keras' values.

The second is a layer's own error. One graph, cut at the tensor of every layer, gives all of them in one run: each
tensor is computed of what is given before it. Images pass in small batches, and only sums are kept.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import numpy_helper

from export.errors import ProjectError
from export.fp16.convert import FP16_MAX
from export.onnx_passes.graph import Index
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.layer_report import LayerRow, LayerRun
from pipeline.artifacts.tensor_changes import UNCHANGED
from pipeline.verification.layers.keras_layers import KerasLayers
from pipeline.verification.layers.mapping import Mapping as LayerMapping
from pipeline.verification.layers.stream import Distance, Range, Usage
from pipeline.verification.layers.subject import FedSession, OpenSession, Subject

# Smallest SQNR of a layer's own error. The worst layers of good files, of a ResNet-20 and of ResNet-50: FP32 128 and
# 125 dB, FP16 67 and 67 dB, INT8 35 and 23 dB. A weight off by a thousandth, as by another epsilon, gives 60 dB.
THRESHOLDS_DB: Final[Mapping[Precision, float]] = {"fp32": 90.0, "fp16": 45.0, "int8": 15.0}
_BATCH_BYTES = 96 * 2**20  # outputs of all layers of a batch; the file's tensors take about twice as much again


@dataclass(frozen=True)
class LayerValues:
    """One layer on a few images, in the layout of the file.

    Args:
        inputs: What the nodes of the layer read, by name of the tensor: Keras' values as the tensor holds them, or
            inputs of the file.
        reference: Keras' output.
        own: The layer's output computed of `inputs`, as Keras would have it.
        total: The layer's output in the whole file, as Keras would have it.
    """

    inputs: Mapping[str, np.ndarray]
    reference: np.ndarray
    own: np.ndarray
    total: np.ndarray


def batch_size(keras_layers: KerasLayers, subject: Subject) -> int:
    """Return how many images are compared at once: as memory allows, or as the file asks."""
    return subject.batch or min(16, max(1, _BATCH_BYTES // keras_layers.bytes_per_image))


def compare_layers(
    keras_layers: KerasLayers,
    mapping: LayerMapping,
    subject: Subject,
    pixels: np.ndarray,
    note: str = "",
    advance: Callable[[int], object] = lambda images: None,
    open_session: OpenSession = FedSession,
) -> LayerRun:
    """Compare the layers of a file with Keras' on some images.

    Args:
        keras_layers: The reference.
        mapping: Tensors of the layers, see `pipeline.verification.layers.mapping.map_layers`.
        subject: The file.
        pixels: uint8 (N, height, width, 3) RGB.
        note: What the run does and does not show. Defaults to "".
        advance: Called with the number of images that were compared. Defaults to none.
        open_session: What computes the file. Defaults to ONNX Runtime.

    Raises:
        ProjectError: The file is fixed to a batch of more images, or no layer has a tensor.
    """
    start = time.perf_counter()
    layers = mapping.layers
    size = batch_size(keras_layers, subject)
    if not layers or len(pixels) < (subject.batch or 1):
        asked = f"{size} images, its fixed batch," if layers else "a tensor for at least one layer of the Keras model"
        raise ProjectError(
            f"Expected {asked} to compare the layers of {subject.run}. Received: {len(pixels) if layers else 'none'}. "
            "Compare a file that was exported of this model, with a free batch."
        )
    tensors = [layer.tensor for layer in layers]
    whole = open_session(subject.model, (), tensors)
    fed = open_session(subject.model, tensors, tensors)
    index = Index.of(subject.model.graph)
    totals = [Distance() for _ in layers]
    owns = [Distance() for _ in layers]
    usages: dict[str, Usage] = {}
    for first in range(0, len(pixels) - size + 1 if subject.batch else len(pixels), size):
        batch = pixels[first : first + size]
        inputs, outputs = subject.inputs(batch), keras_layers.outputs(batch)
        values = whole.run(inputs, {})
        references: dict[str, np.ndarray] = {}
        for layer, total in zip(layers, totals):
            value = values.pop(layer.tensor)
            lowered = _lowered_by(subject, layer.tensor)
            usage = usages.get(layer.tensor) or Usage(_range_of(index, layer.tensor, value, lowered))
            usages[layer.tensor] = usage
            reference = layer.in_file(outputs[layer.name], value)
            total.add(reference, subject.keras_value(layer.tensor, value))
            references[layer.tensor] = subject.file_value(layer.tensor, reference)
            usage.add(
                reference, references[layer.tensor] + np.float32(lowered) if lowered else references[layer.tensor]
            )
        del outputs
        own_values = fed.run(inputs, references)
        for layer, own in zip(layers, owns):
            known, value = references.pop(layer.tensor), own_values.pop(layer.tensor)
            own.add(subject.keras_value(layer.tensor, known), subject.keras_value(layer.tensor, value))
        advance(len(batch))
    threshold = THRESHOLDS_DB[subject.precision]
    rows = tuple(
        LayerRow(
            layer.name,
            layer.tensor,
            total.sqnr_db,
            own.sqnr_db,
            total.cosine,
            total.finite,
            usage.saturated,
            usage.range_used,
            usage.largest,
            own.finite,
        )
        for layer, total, own, usage in zip(layers, totals, owns, usages.values())
    )
    below = next((layer.name for layer, own in zip(layers, owns) if own.below(threshold)), "")
    return LayerRun(subject.run, subject.precision, threshold, rows, below, time.perf_counter() - start, note)


def _lowered_by(subject: Subject, tensor: str) -> float:
    """Return what a tensor is lowered by in all channels alike, as one that is read as INT8 is; 0 for any other."""
    change = subject.changes.get(tensor, UNCHANGED)
    return float(change.offsets[0]) if len(change.offsets) == 1 else 0.0


def layer_values(
    keras_layers: KerasLayers, mapping: LayerMapping, subject: Subject, name: str, pixels: np.ndarray
) -> LayerValues:
    """Return the values of one layer for a few images.

    Args:
        keras_layers: The reference.
        mapping: Tensors of the layers.
        subject: The file.
        name: Name of a layer that has a tensor.
        pixels: uint8 (N, height, width, 3) RGB; as many images as the file's batch where that is fixed.
    """
    layer = next(layer for layer in mapping.layers if layer.name == name)
    others = [other.tensor for other in mapping.layers]
    session = FedSession(subject.model, others, [layer.tensor])
    inputs, outputs = subject.inputs(pixels), keras_layers.outputs(pixels)
    read = [other for other in mapping.layers if other.tensor in session.reads]
    values = FedSession(subject.model, (), [layer.tensor, *(other.tensor for other in read)]).run(inputs, {})
    given = {
        other.tensor: subject.file_value(other.tensor, other.in_file(outputs[other.name], values[other.tensor]))
        for other in read
    }
    own, total = session.run(inputs, given)[layer.tensor], values[layer.tensor]
    return LayerValues(
        {**{source: inputs[source] for source in session.inputs}, **given},
        layer.in_file(outputs[layer.name], total),
        subject.keras_value(layer.tensor, own),
        subject.keras_value(layer.tensor, total),
    )


def _range_of(index: Index, tensor: str, value: np.ndarray, lowered: float = 0.0) -> Range | None:
    """Return what a tensor can hold without being cut off: by the scale of the Q/DQ pair that reads it, or in FP16.

    Args:
        index: Of the file.
        tensor: Its name.
        value: Its values, for their type.
        lowered: What it is lowered by: the range is that of the values before. Defaults to 0.
    """
    for node in index.readers.get(tensor, ()):
        parameters = [numpy_helper.to_array(index.constants[n]) for n in node.input[1:] if n in index.constants]
        if node.op_type == "QuantizeLinear" and parameters and parameters[0].size == 1:
            scale, zero = float(parameters[0].item()), [*parameters, np.zeros((), np.uint8)][1]
            limits, zero_point = np.iinfo(zero.dtype), int(zero.item())
            # What is up to half a step beyond the last level is rounded to it.
            low, high = limits.min - zero_point - 0.5, limits.max - zero_point + 0.5
            return Range(low * scale + lowered, high * scale + lowered)
    return Range(lowered - FP16_MAX, lowered + FP16_MAX) if value.dtype == np.float16 else None
