"""The eighth bit behind a ReLU: lower an activation by 128 scales, so that all 255 levels of INT8 cover it.

Symmetric INT8 has a zero point of 0, and an activation behind a ReLU uses half of its levels. With ``m = 128 * scale``
the graph computes ``x - m`` instead of ``x``: the ReLU becomes a Clip with the minimum ``-m``, the bias of what writes
the tensor loses m, and the bias of each reader gains m times the sum of its weights, as they are rounded. The function
of the graph is the same, up to rounding of float32, and TensorRT sees a Clip in the place of a ReLU.

The pooling before the head gets an Add of m behind it. The bias of the classifier could make up for m, too, but m may
be a hundred times a mean that is pooled, and FP16, or TF32, would round the mean to the grid of m.

Which tensors can be shifted is in `export.int8.regions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.int8.regions import Bias, Region, find_regions
from export.onnx_passes.graph import Index, copy_model, topological_sort

HIGHEST = np.finfo(np.float32).max  # the maximum of the Clip in place of a ReLU: TensorRT wants a finite one
LIFTED = "/lifted"  # ends the name of the Add of m behind a pooling
SHIFTED = "a Clip that lowers it by 128 scales: 255 levels instead of 128"


@dataclass(frozen=True)
class Shifted:
    """A shifted model.

    Args:
        model: It computes the same outputs.
        offsets: Tensor -> float64 (1,): what has to be added to its values to have those of the original.
        lifted: Names of the poolings before the head that read a shifted tensor, and of the Adds behind them. FP16
            would round a mean to the grid of m.
        largest: Name of a node -> the largest absolute value among its constants that make up for shifts.
        notes: Name of a ReLU before a quantized tensor -> what became of it, for people; not of one that could be
            shifted and is not.
    """

    model: onnx.ModelProto
    offsets: Mapping[str, np.ndarray]
    lifted: frozenset[str]
    largest: Mapping[str, float]
    notes: Mapping[str, str]


def shift(
    model: onnx.ModelProto, amounts: Mapping[str, float], weights: Callable[[onnx.NodeProto], np.ndarray | None]
) -> Shifted:
    """Return the model with some activations lowered.

    Args:
        model: Float, without Q/DQ.
        amounts: Quantized tensor -> what it is lowered by; each has a region, see `find_regions`.
        weights: Returns the weight that a Conv computes with, (out, in / groups, ...): rounded, where it will
            be quantized. With the weights as they are 9 dB of ResNet-50's INT8 logits are lost. None for the model's.

    Raises:
        KeyError: A tensor has no region.
    """
    regions = find_regions(model)
    notes: dict[str, str] = {}
    for tensor, why in regions.refused.items():
        for relu in regions.nodes[tensor]:
            notes.setdefault(relu, f"not shifted: {why}")
    notes |= {relu: SHIFTED for tensor in amounts for relu in regions.nodes[tensor]}
    if not amounts:
        return Shifted(model, {}, frozenset(), {}, notes)
    result = copy_model(model)
    rewrite = _Rewrite(result, weights)
    for tensor, amount in amounts.items():
        rewrite.lower(regions.found[tensor], amount)
    lifted = frozenset(rewrite.lifted)
    return Shifted(topological_sort(result), rewrite.offsets, lifted, rewrite.largest(), notes)


class _Rewrite:
    """Lowers regions of a model (in place)."""

    def __init__(self, model: onnx.ModelProto, weights: Callable[[onnx.NodeProto], np.ndarray | None]) -> None:
        self._graph, self._weights = model.graph, weights
        self._index = Index.of(model.graph)
        self._nodes = {node.name: node for node in model.graph.node}
        self._own: dict[tuple[str, int], onnx.TensorProto] = {}  # constants that no other node reads
        self._exact: dict[tuple[str, int], np.ndarray] = {}  # what they have to be, float64: large amounts cancel
        self.offsets: dict[str, np.ndarray] = {}
        self.lifted: set[str] = set()

    def lower(self, region: Region, amount: float) -> None:
        """Lower one region."""
        for bias in region.biases:
            gain = bias.gain * amount
            self._add(bias, gain * self._sums(self._nodes[bias.node]) if bias.weighted else gain)
        for name in region.bounds:
            self._bound(self._nodes[name], amount)
        self._clip(self._nodes[region.node], amount)
        for name in (*region.before, *region.behind):
            self._offset(name, np.full(1, amount))
        for name in region.pools:
            self._lift(self._nodes[name], amount)
        for name in region.mains:  # the skip branch of the Add is lower, so the main branch is higher
            self._offset(name, np.full(1, -amount))

    def largest(self) -> dict[str, float]:
        """Return the largest absolute constant of each node that has one of its own."""
        found: dict[str, float] = {}
        for (name, _), tensor in self._own.items():
            values = numpy_helper.to_array(tensor)
            values = values[np.abs(values) != HIGHEST]  # which stands for no value in a Max or a Min
            found[name] = max(found.get(name, 0.0), float(np.abs(values).max(initial=0.0)))
        return found

    def _offset(self, tensor: str, values: np.ndarray) -> None:
        self.offsets[tensor] = self.offsets.get(tensor, 0.0) + values

    def _lift(self, pool: onnx.NodeProto, amount: float) -> None:
        """Add m behind a pooling; the sum has the name that the mean had."""
        name, mean, result = f"{pool.name}{LIFTED}", f"{pool.name}/mean", pool.output[0]
        pool.output[0] = mean
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(amount, self._kind()), f"{pool.name}/amount"))
        self._graph.node.append(helper.make_node("Add", [mean, f"{pool.name}/amount"], [result], name))
        self.lifted |= {pool.name, name}

    def _sums(self, conv: onnx.NodeProto) -> np.ndarray:
        """Return the sum of the weights of each output channel, float64 (out,)."""
        values = self._weights(conv)
        if values is None:
            values = numpy_helper.to_array(self._index.constants[conv.input[1]])
        return np.asarray(values.reshape(len(values), -1).sum(axis=1, dtype=np.float64))

    def _constant_of(self, node: onnx.NodeProto, index: int) -> onnx.TensorProto:
        """Return the constant that a node reads, as one that no other node reads; zeros for a Conv without a bias."""
        key = node.name, index
        if key not in self._own:
            name = node.input[index] if index < len(node.input) else ""
            tensor = self._index.constants.get(name)
            if tensor is None or len(self._index.readers[name]) > 1:
                before, tensor = tensor, self._graph.initializer.add()
                tensor.CopyFrom(before if before is not None else self._no_bias(node))
                tensor.name = f"{node.name}/shifted"
                while len(node.input) <= index:
                    node.input.append("")
                node.input[index] = tensor.name
            self._own[key] = tensor
        return self._own[key]

    def _no_bias(self, conv: onnx.NodeProto) -> onnx.TensorProto:
        weight = self._index.constants[conv.input[1]]
        return numpy_helper.from_array(np.zeros(weight.dims[0], helper.tensor_dtype_to_np_dtype(weight.data_type)))

    def _add(self, bias: Bias, amount: np.ndarray | float) -> None:
        self._change(self._nodes[bias.node], bias.index, amount)

    def _bound(self, node: onnx.NodeProto, amount: float) -> None:
        number = next(number for number, name in enumerate(node.input) if name in self._index.constants)
        self._change(node, number, -amount)  # float32's lowest, a border's, stays as it is

    def _change(self, node: onnx.NodeProto, index: int, amount: np.ndarray | float) -> None:
        """Add to a constant, rounding the sum of all amounts once."""
        tensor = self._constant_of(node, index)
        values = numpy_helper.to_array(tensor)
        exact = self._exact.get((node.name, index), values.astype(np.float64)) + amount
        self._exact[node.name, index] = exact
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(exact, values.dtype), tensor.name))

    def _clip(self, node: onnx.NodeProto, amount: float) -> None:
        bounds = [numpy_helper.to_array(self._index.constants[name]) for name in node.input[1:]]
        kind = bounds[0].dtype if bounds else self._kind()
        highest = float(bounds[1]) - amount if len(bounds) > 1 else HIGHEST
        node.op_type = "Clip"
        del node.input[1:]
        for name, value in ((f"{node.name}/lowest", -amount), (f"{node.name}/highest", highest)):
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
            node.input.append(name)

    def _kind(self) -> np.dtype:
        """Return the type of the model's weights."""
        return next(
            (
                numpy_helper.to_array(tensor).dtype
                for tensor in self._graph.initializer
                if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
            ),
            np.dtype(np.float32),
        )
