"""The eighth bit behind a ReLU: lower an activation by 128 scales, so that all 255 levels of INT8 cover it.

Symmetric INT8 has a zero point of 0, and an activation behind a ReLU uses half of its levels. With ``m = 128 * scale``
the graph computes ``x - m`` instead of ``x``: the ReLU becomes a Clip with the minimum ``-m``, the bias of what writes
the tensor loses m, and the bias of each reader gains m times the sum of its weights, as they are rounded. The function
of the graph is the same, up to rounding of float32, and TensorRT sees a Clip in the place of a ReLU.

The pooling before the head gets an Add of m behind it. The bias of the classifier could make up for m, too, but m may
be a hundred times a mean that is pooled, and FP16, or TF32, would round the mean to the grid of m.

It is exact only where every reader can make up for it. A Conv with padding cannot: the zeros of its border would stand
for m. Which tensors are shifted, and why others are not, follows from the structure of the graph, see `find_regions`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.int8.placement import quantized_edges, skip_input
from export.onnx_passes.graph import Index, attribute, copy_model, topological_sort

HIGHEST = np.finfo(np.float32).max  # the maximum of the Clip in place of a ReLU: TensorRT wants a finite one
SHIFTED = "a Clip that lowers it by 128 scales: 255 levels instead of 128"
_MOVING = ("Identity", "Dropout", "Squeeze", "Unsqueeze", "Flatten", "Reshape", "Transpose")
_MEANS = ("GlobalAveragePool", "AveragePool", "ReduceMean")


@dataclass(frozen=True)
class Bias:
    """A constant that makes up for a shift.

    Args:
        node: Name of the node that reads it.
        index: Index of that input; a Conv without a bias gets one.
        gain: Factor of m that it gains.
        weighted: Whether m is multiplied by the sum of the node's weights, too, for each output channel.
    """

    node: str
    index: int
    gain: float = 1.0
    weighted: bool = False


@dataclass(frozen=True)
class Region:
    """The tensors that a ReLU passes its shift on to.

    Args:
        node: Name of the Relu, or of the Clip whose minimum is 0.
        tensor: The one of the tensors that is quantized.
        before: Tensors between the bias that loses m and the ReLU.
        behind: The ReLU's output, and what pooling and reshaping make of it.
        bounds: Names of the Max and Min nodes with a constant among them.
        biases: The constants that make up for the shift.
        pools: Names of the poolings before the head among the readers, behind which m is added.
        mains: Outputs of the Convs that make up for a skip branch, up to the residual Add.
        of_conv: Whether a Conv writes the ReLU's input itself, without an Add between.
    """

    node: str
    tensor: str
    before: tuple[str, ...]
    behind: tuple[str, ...]
    bounds: tuple[str, ...]
    biases: tuple[Bias, ...]
    pools: tuple[str, ...]
    mains: tuple[str, ...]
    of_conv: bool


@dataclass(frozen=True)
class Regions:
    """What can be shifted in a model.

    Args:
        found: Quantized tensor -> its region.
        refused: Quantized tensor behind a ReLU that cannot be shifted -> why, for people.
        nodes: Quantized tensor behind a ReLU -> the name of that ReLU.
    """

    found: Mapping[str, Region]
    refused: Mapping[str, str]
    nodes: Mapping[str, str]


@dataclass(frozen=True)
class Shifted:
    """A shifted model.

    Args:
        model: It computes the same outputs.
        offsets: Tensor -> float64 (1,): what has to be added to its values to have those of the original.
        lifted: Names of the poolings before the head that read a shifted tensor, and of the Adds behind them. FP16
            would round a mean to the grid of m.
        notes: Name of a ReLU before a quantized tensor -> what became of it, for people.
    """

    model: onnx.ModelProto
    offsets: Mapping[str, np.ndarray]
    lifted: frozenset[str]
    notes: Mapping[str, str]


class _RefusedError(Exception):
    pass


def find_regions(model: onnx.ModelProto) -> Regions:
    """Return which quantized tensors behind a ReLU can be shifted.

    The ReLU's input must come from a Conv, from an Add that a Conv ends in, or from an Add of a constant, as of a
    BatchNorm. From the ReLU on, pooling and reshaping pass the shift on, and every other reader must be a Conv without
    padding, the residual Add of a Conv, or the pooling before the head. No tensor on the way may be an output of the
    model, and exactly one may be quantized.

    Args:
        model: Float, without Q/DQ.
    """
    index = Index.of(model.graph)
    edges = quantized_edges(model)
    quantized = list(dict.fromkeys(edge.tensor for edge in edges))
    reading = {edge.node for edge in edges}
    found: dict[str, Region] = {}
    refused: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for node in model.graph.node:
        if not _rectifies(node, index):
            continue
        walk = _Walk({value.name for value in model.graph.output}, index, reading)
        reason = ""
        try:
            walk.behind(node.output[0])
            of_conv = walk.before(node)
        except _RefusedError as error:
            reason = str(error)
        inside = [name for name in quantized if name in walk.tensors]
        nodes |= dict.fromkeys(inside, node.name)
        if len(inside) > 1:
            reason = reason or f"{len(inside)} tensors behind this ReLU have scales of their own"
        if reason:
            refused |= dict.fromkeys(inside, reason)
        elif inside:
            found[inside[0]] = Region(
                node.name,
                inside[0],
                tuple(walk.written),
                tuple(walk.tensors),
                tuple(walk.bounds),
                tuple(walk.biases),
                tuple(walk.pools),
                tuple(walk.mains),
                of_conv,
            )
    return Regions(found, refused, nodes)


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
    if not amounts:
        return Shifted(model, {}, frozenset(), {})
    regions = find_regions(model)
    result = copy_model(model)
    rewrite = _Rewrite(result, weights)
    for tensor, amount in amounts.items():
        rewrite.lower(regions.found[tensor], amount)
    notes = {
        node: SHIFTED if tensor in amounts else f"not shifted: {regions.refused[tensor]}"
        for tensor, node in regions.nodes.items()
        if tensor in amounts or tensor in regions.refused
    }
    return Shifted(topological_sort(result), rewrite.offsets, frozenset(rewrite.lifted), notes)


def allowed(regions: Regions, mode: str) -> tuple[str, ...]:
    """Return the quantized tensors that a mode of ``quantize.shift`` lets be shifted, in the order of the graph.

    ``"conv"`` leaves out those behind a residual Add, as only a GPU can tell whether TensorRT fuses Conv, Add and Clip
    as it does Conv, Add and Relu.
    """
    if mode == "never":
        return ()
    return tuple(tensor for tensor, region in regions.found.items() if mode != "conv" or region.of_conv)


def _rectifies(node: onnx.NodeProto, index: Index) -> bool:
    """Return whether a node is a ReLU, or a Clip at 0 and a constant, as ReLU6."""
    if node.op_type == "Relu":
        return True
    bounds = [index.constants[name] for name in node.input[1:] if name in index.constants]
    constant = node.op_type == "Clip" and len(bounds) == len(node.input) - 1 > 0
    return constant and not numpy_helper.to_array(bounds[0]).any()


@dataclass
class _Walk:
    """A walk from a ReLU to everything that has to change if its output is lowered."""

    outputs: Collection[str]
    index: Index
    quantized: Collection[str]  # names of the nodes that read an INT8 tensor
    tensors: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    bounds: list[str] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    pools: list[str] = field(default_factory=list)
    mains: list[str] = field(default_factory=list)

    def behind(self, start: str) -> None:
        """Walk to all readers; the tensors on the way are collected even where one refuses."""
        why = ""
        pending = [start]
        while pending:
            tensor = pending.pop(0)
            self.tensors.append(tensor)
            if tensor in self.outputs:
                why = why or "it is an output of the model"
            for node in {id(node): node for node in self.index.readers.get(tensor, ())}.values():
                try:
                    pending += [name for name in self._reader(node, tensor) if name not in self.tensors]
                except _RefusedError as error:
                    why = why or str(error)
        if why:
            raise _RefusedError(why)

    def before(self, relu: onnx.NodeProto) -> bool:
        """Walk to the bias that loses m; return whether it is that of a Conv right before the ReLU."""
        tensor = relu.input[0]
        writer = self._writer(tensor)
        if writer.op_type == "Conv":
            self._lose(writer, tensor)
            return True
        if writer.op_type in ("Add", "Sub") and (number := self._constant(writer)) is not None:
            if writer.op_type == "Sub" and number == 0:
                raise _RefusedError("a Sub from a constant writes it")
            self.biases.append(Bias(writer.name, number, -1.0 if writer.op_type == "Add" else 1.0))
            self.written.append(tensor)
            return False
        if writer.op_type == "Add" and (skip := skip_input(writer, self.index)) is not None:
            main = writer.input[1 - skip]
            self.written.append(tensor)
            self._lose(self._writer(main), main)
            return False
        raise _RefusedError(f"{writer.op_type} {writer.name!r} writes it, which has no bias")

    def _writer(self, tensor: str) -> onnx.NodeProto:
        writer = self.index.producers.get(tensor)
        if writer is None or len(self.index.readers[tensor]) != 1:
            raise _RefusedError("what the ReLU reads has other readers")
        if tensor in self.outputs:
            raise _RefusedError("what the ReLU reads is an output of the model")
        return writer

    def _lose(self, conv: onnx.NodeProto, tensor: str) -> None:
        self._check_bias(conv)
        self.biases.append(Bias(conv.name, 2, -1.0))
        self.written.append(tensor)

    def _check_bias(self, conv: onnx.NodeProto) -> None:
        if len(conv.input) > 2 and conv.input[2] and conv.input[2] not in self.index.constants:
            raise _RefusedError(f"the bias of Conv {conv.name!r} is computed")
        if conv.input[1] not in self.index.constants:
            raise _RefusedError(f"the weights of Conv {conv.name!r} are computed")

    def _constant(self, node: onnx.NodeProto) -> int | None:
        """Return the index of the only constant among two inputs, None if there is none."""
        numbers = [number for number, name in enumerate(node.input) if name in self.index.constants]
        return numbers[0] if len(node.input) == 2 and len(numbers) == 1 else None

    def _reader(self, node: onnx.NodeProto, tensor: str) -> list[str]:
        """Make up for the shift in a reader, or return the tensors that it passes the shift on to."""
        first = tensor == node.input[0] or node.op_type in ("Add", "Max", "Min")
        if list(node.input).count(tensor) > 1 or not first:
            raise _RefusedError(f"{node.op_type} {node.name!r} reads it in another place than its first input")
        counts = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
        if counts and (_pads(node) or attribute(node, "ceil_mode", 0)):
            raise _RefusedError(f"AveragePool {node.name!r} counts the zeros of its border")
        if node.op_type in _MEANS and node.name in self.quantized:
            self.pools.append(node.name)
            return []
        if node.op_type in (*_MOVING, *_MEANS) or (node.op_type == "MaxPool" and len(node.output) == 1):
            return [node.output[0]]
        if node.op_type in ("Max", "Min") and self._constant(node) is not None:
            self.bounds.append(node.name)
            return [node.output[0]]
        if node.op_type == "Conv":
            self._conv(node)
        elif node.op_type == "Add":
            self._add(node, tensor)
        else:
            raise _RefusedError(f"{node.op_type} {node.name!r} reads it")
        return []

    def _conv(self, node: onnx.NodeProto) -> None:
        if _pads(node):
            raise _RefusedError(f"Conv {node.name!r} reads it with padding, whose zeros would stand for 128 scales")
        self._check_bias(node)
        self.biases.append(Bias(node.name, 2, weighted=True))

    def _add(self, node: onnx.NodeProto, tensor: str) -> None:
        main = node.input[1 - list(node.input).index(tensor)] if len(node.input) == 2 else ""
        writer = self.index.producers.get(main)
        if writer is None or writer.op_type != "Conv" or len(self.index.readers[main]) != 1:
            raise _RefusedError(
                f"Add {node.name!r} reads it, and no Conv of its own on the other side makes up for that"
            )
        if main in self.outputs:
            raise _RefusedError(
                f"Conv {writer.name!r}, which would make up for it in Add {node.name!r}, is an output of the model"
            )
        self._check_bias(writer)
        self.biases.append(Bias(writer.name, 2))
        self.mains.append(main)


def _pads(node: onnx.NodeProto) -> bool:
    """Return whether a Conv or a pool adds a border."""
    automatic = attribute(node, "auto_pad", b"NOTSET")
    kernel = attribute(node, "kernel_shape", [])
    same = automatic in (b"SAME_UPPER", b"SAME_LOWER") and not (kernel and all(size == 1 for size in kernel))
    return bool(same or any(attribute(node, "pads", [])))


class _Rewrite:
    """Lowers regions of a model (in place)."""

    def __init__(self, model: onnx.ModelProto, weights: Callable[[onnx.NodeProto], np.ndarray | None]) -> None:
        self._graph, self._weights = model.graph, weights
        self._index = Index.of(model.graph)
        self._nodes = {node.name: node for node in model.graph.node}
        self._own: dict[tuple[str, int], onnx.TensorProto] = {}  # constants that no other node reads
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

    def _offset(self, tensor: str, values: np.ndarray) -> None:
        self.offsets[tensor] = self.offsets.get(tensor, 0.0) + values

    def _lift(self, pool: onnx.NodeProto, amount: float) -> None:
        """Add m behind a pooling; the sum has the name that the mean had."""
        name, mean, result = f"{pool.name}/lifted", f"{pool.name}/mean", pool.output[0]
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
        tensor = self._constant_of(self._nodes[bias.node], bias.index)
        values = numpy_helper.to_array(tensor)
        _set(tensor, values.astype(np.float64) + amount, values.dtype)

    def _bound(self, node: onnx.NodeProto, amount: float) -> None:
        number = next(number for number, name in enumerate(node.input) if name in self._index.constants)
        tensor = self._constant_of(node, number)
        values = numpy_helper.to_array(tensor)
        _set(tensor, values.astype(np.float64) - amount, values.dtype)  # float32's lowest, a border's, stays as it is

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


def _set(tensor: onnx.TensorProto, values: np.ndarray, kind: np.dtype) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, kind), tensor.name))
