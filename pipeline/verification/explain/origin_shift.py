"""What makes up for lowered activations in an INT8 file: the bounds of ReLUs, the biases, and borders of zeros.

An activation behind a ReLU is lowered by an offset, see `export.int8.shift`. Then its ReLU has to end at minus the
offset, its writer's bias is lower by it, and each reader's bias is higher by the offset times the sum of the weights,
as the file has them; a border of zeros would stand for the offset. The correction of INT8 changes biases, too: by no
more than rounding moves a mean, and by exactly what quantize recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto

from export.fp16.convert import FP16_MAX
from export.onnx_passes.graph import Index, attribute, before_casts
from export.onnx_passes.layer_names import keras_layer
from export.words import count
from pipeline.artifacts.tensor_changes import UNCHANGED, TensorChange
from pipeline.verification.checks.rounded import Misfit
from pipeline.verification.explain.constants import constant_of
from pipeline.verification.explain.origin_weights import WEIGHTED, by_output, equalized, input_of
from pipeline.verification.explain.twin import QuantizedTensor, quantized_tensors

UNITS = {"fp32": 1e-5, "fp16": 2.0**-9}  # of all terms of a bias: rounding of the bias and of what it is made of
LEAST = {"fp32": 1e-12, "fp16": 2.0**-24}  # a bias near zero is a whole multiple of FP16's smallest value
MEAN_STEPS = 2.0  # by which rounding and clipping move the mean of an activation at most


def wrong_offsets(
    model: ModelProto,
    source: ModelProto,
    changes: Mapping[str, TensorChange],
    corrections: Mapping[str, np.ndarray] | None = None,
) -> list[Misfit]:
    """Return what does not make up for lowered activations, in the order of the FP32 file.

    Args:
        model: The INT8 file.
        source: The FP32 file.
        changes: What the tensors of the INT8 file hold in place of Keras' values.
        corrections: What bias correction added, by node. Defaults to None: unknown, so that biases are held against
            the most that it can add.
    """
    return _Comparison(model, source, changes, corrections).misfits()


class _Comparison:
    """Both files, by the names of their nodes."""

    def __init__(
        self,
        model: ModelProto,
        source: ModelProto,
        changes: Mapping[str, TensorChange],
        corrections: Mapping[str, np.ndarray] | None,
    ) -> None:
        self._source, self._changes, self._corrections = source, changes, corrections
        self._nodes = {node.name: node for node in model.graph.node}
        self._index, self._original = Index.of(model.graph), Index.of(source.graph)
        self._pairs = {pair.output: pair for pair in quantized_tensors(model, changes)}

    def misfits(self) -> list[Misfit]:
        found: list[Misfit | None] = []
        for node in self._source.graph.node:
            other = self._nodes.get(node.name)
            if other is None:
                continue
            if node.op_type in ("Relu", "Clip"):
                found.append(self._bounds(node, other))
            if node.op_type == other.op_type == "Conv":
                found.append(self._border(node, other))
            if node.op_type in WEIGHTED and node.op_type == other.op_type:
                found.append(self._bias(node, other))
        return [misfit for misfit in found if misfit is not None]

    def _offset(self, tensor: str) -> np.ndarray:
        return self._changes.get(tensor, UNCHANGED).offsets

    def _bounds(self, node: NodeProto, other: NodeProto) -> Misfit | None:
        """Hold the ends of a ReLU or a Clip against those of the FP32 file."""
        offset, layer = self._offset(node.output[0]), keras_layer(node.name)
        expected, received = _ends(node, self._original), _ends(other, self._index)
        if expected is None or len(offset) != 1:
            return None
        low, high = (end - float(offset[0]) for end in expected)
        if received is None:
            said = f"it is a {other.op_type}"
        elif not _near(received[0], low):
            said = f"it ends at {received[0]:.6g}"
        elif not (_near(received[1], high) or min(received[1], high) >= FP16_MAX):
            said, low = f"it ends at {received[1]:.6g}", high
        else:
            return None
        text = f"layer {layer!r}: its {node.op_type} has to end at {low:.6g}, as its values are lowered, and {said}"
        return Misfit("attribute", layer, text)

    def _border(self, node: NodeProto, other: NodeProto) -> Misfit | None:
        layer, (before, after) = keras_layer(node.name), (tuple(attribute(one, "pads", ())) for one in (node, other))
        if before == after or not any((*before, *after)):
            return None
        text = f"layer {layer!r}: its border is {after or 'none'}, and that of FP32's {before or 'none'}"
        lowered = self._offset(node.input[0]).any()
        why = ", whose zeros stand for values that its input does not hold" if lowered and any(after) else ""
        return Misfit("padding", layer, f"{text}{why}")

    def _bias(self, node: NodeProto, other: NodeProto) -> Misfit | None:
        """Hold a bias against that of the FP32 file, with what it has to make up for."""
        written, (name, after) = self._biases(node, other)
        before = constant_of(name, self._original)
        received, weight = constant_of(after, self._index), constant_of(input_of(other, 1), self._index)
        exact = constant_of(input_of(node, 1), self._original)
        if received is None or weight is None or exact is None or weight.values.shape != exact.values.shape:
            return None
        rows, exact_rows = (
            by_output(node, values) for values in (weight.values, equalized(node, exact.values, self._changes))
        )
        change, lowered = self._changes.get(written, UNCHANGED), self._offset(node.input[0])
        if len(lowered) != 1 or received.values.size != len(rows):
            return None
        own = (before.values.reshape(-1) if before is not None else np.zeros(len(rows))) / change.factors
        expected = own - change.offsets + lowered * rows.sum(axis=1)
        terms = np.abs(own) + np.abs(change.offsets) + lowered * np.abs(rows).sum(axis=1)
        kind = "fp16" if received.kind == "fp16" else "fp32"
        allowed = UNITS[kind] * terms + LEAST[kind]
        most = self._most_correction(node, other, rows, exact_rows)
        if self._corrections is None:
            allowed = allowed + most
        elif (correction := self._corrections.get(node.name)) is not None and correction.shape == expected.shape:
            # A record is believed only as far as rounding can move a mean at all.
            expected = expected + np.clip(correction, -most, most)
        far = ~(np.abs(received.values.reshape(-1) - expected) <= allowed)
        if not far.any():
            return None
        layer = keras_layer(node.name)
        worst = int(np.argmax(np.where(far, np.abs(received.values.reshape(-1) - expected) / allowed, 0.0)))
        text = (
            f"layer {layer!r}: {far.sum():,} of its {count(len(far), 'bias', 'biases')} do not follow from FP32's and "
            f"from what makes up for lowered activations (output {worst}: {received.values.reshape(-1)[worst]:.4g}, "
            f"and {expected[worst]:.4g} within {allowed[worst]:.2g} is expected)"
        )
        return Misfit("weights", layer, text)

    def _biases(self, node: NodeProto, other: NodeProto) -> tuple[str, tuple[str, str]]:
        """Return the tensor behind the bias, and the bias's names in both files; that of a MatMul is added behind."""
        if node.op_type != "MatMul":
            return node.output[0], (input_of(node, 2), input_of(other, 2))
        readers = self._original.readers.get(node.output[0], [])
        add = readers[0] if len(readers) == 1 and readers[0].op_type == "Add" else None
        twin = self._nodes.get(add.name) if add is not None else None
        if add is None or twin is None or len(twin.input) != 2:
            return node.output[0], ("", "")
        number = next((i for i, name in enumerate(add.input) if name in self._original.constants), 1)
        return add.output[0], (add.input[number], twin.input[number])

    def _most_correction(
        self, node: NodeProto, other: NodeProto, rows: np.ndarray, exact: np.ndarray
    ) -> np.ndarray | float:
        """Return by how much the correction of rounding can move each bias of a Conv; 0 for other nodes."""
        if node.op_type != "Conv":
            return 0.0
        most: np.ndarray | float = 0.0
        if (pair := self._pair(other.input[0])) is not None:
            moved = np.abs(rows - exact).sum(axis=1) * pair.largest
            most = moved + np.abs(rows).sum(axis=1) * MEAN_STEPS * pair.scale
        readers = self._index.readers.get(other.output[0], [])
        while len(readers) == 1 and readers[0].op_type == "Cast":
            readers = self._index.readers.get(readers[0].output[0], [])
        for add in readers if len(readers) == 1 and readers[0].op_type == "Add" else []:
            skips = [skip for name in add.input if (skip := self._pair(name)) is not None]
            most = most + sum(MEAN_STEPS * skip.scale for skip in skips)
        return most

    def _pair(self, tensor: str) -> QuantizedTensor | None:
        """Return the pair that writes a tensor, behind casts; None where none does."""
        return self._pairs.get(before_casts(tensor, self._index.producers))


def _ends(node: NodeProto, index: Index) -> tuple[float, float] | None:
    """Return the ends of a ReLU or a Clip; None for another node, and for ends that are computed."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    ends = [-math.inf, math.inf]
    for number, name in enumerate(node.input[1:3]):
        value = constant_of(name, index) if name else None
        if name and (value is None or value.values.size != 1):
            return None
        ends[number] = ends[number] if value is None else float(value.values.reshape(()))
    return ends[0], ends[1]


def _near(one: float, other: float) -> bool:
    return one == other or (math.isfinite(other) and abs(one - other) <= UNITS["fp16"] * abs(other))
