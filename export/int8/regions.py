"""Where the shift of `export.int8.shift` is exact: the tensors behind a ReLU, and what has to make up for it.

Every reader of a shifted tensor has to make up for the shift. A Conv with padding cannot: the zeros of its border would
stand for m. Which tensors are shifted, and why others are not, follows from the structure of the graph alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import numpy_helper

from export.int8.placement import quantized_edges, skip_input
from export.int8.report import Refusal
from export.int8.unshifted import behind, never_negative
from export.onnx_passes.graph import Index, attribute
from export.words import count

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
        refused: Quantized tensor that holds the values of ReLUs and cannot be shifted -> why; of a tensor behind a node
            that refuses, why that node does.
        nodes: Each of these tensors -> the names of those ReLUs; a tensor that is found has one.
    """

    found: Mapping[str, Region]
    refused: Mapping[str, Refusal]
    nodes: Mapping[str, tuple[str, ...]]


class _RefusedError(Exception):
    def __init__(self, kind: str, node: str = "") -> None:
        super().__init__(kind)
        self.refusal = Refusal(kind, node)


def find_regions(model: onnx.ModelProto) -> Regions:
    """Return which quantized tensors behind a ReLU can be shifted.

    The ReLU's input must come from a Conv, from an Add that a Conv ends in, or from an Add of a constant, as of a
    BatchNorm. From the ReLU on, pooling and reshaping pass the shift on, and every other reader must be a Conv without
    padding, the residual Add of a Conv, or the pooling before the head. No tensor on the way may be an output of the
    model, and exactly one may be quantized. What a reader that refuses makes of the values is refused with it, see
    `export.int8.unshifted`.

    Args:
        model: Float, without Q/DQ.
    """
    index = Index.of(model.graph)
    edges = quantized_edges(model)
    quantized = list(dict.fromkeys(edge.tensor for edge in edges))
    reading = {edge.node for edge in edges}
    found: dict[str, Region] = {}
    refused: dict[str, Refusal] = {}
    nodes: dict[str, tuple[str, ...]] = {}
    relus = [node for node in model.graph.node if _rectifies(node, index)]
    rectified = {node.output[0] for node in relus}
    positive = never_negative(model.graph, index, rectified)
    for node in relus:
        walk = _Walk({value.name for value in model.graph.output}, index, reading)
        why: Refusal | None = None
        try:
            walk.behind(node.output[0])
            of_conv = walk.before(node)
        except _RefusedError as error:
            why = error.refusal
        inside = [name for name in quantized if name in walk.tensors]
        if len(inside) > 1:
            why = why or Refusal(f"{count(len(inside), 'tensor')} behind this ReLU have scales of their own")
        if why is not None:
            refused |= dict.fromkeys(inside, why)
            nodes |= dict.fromkeys(inside, (node.name,))
            for reader, its_own in walk.refusing:
                for name in behind(reader, index, rectified, positive):
                    if name in quantized and node.name not in nodes.get(name, ()):
                        refused.setdefault(name, its_own)
                        nodes[name] = (*nodes.get(name, ()), node.name)
        elif inside:
            nodes[inside[0]] = (node.name,)
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
    refusing: list[tuple[onnx.NodeProto, Refusal]] = field(default_factory=list)

    def behind(self, start: str) -> None:
        """Walk to all readers; the tensors on the way are collected even where one refuses."""
        first: _RefusedError | None = None
        pending = [start]
        while pending:
            tensor = pending.pop(0)
            self.tensors.append(tensor)
            if tensor in self.outputs:
                first = first or _RefusedError("it is an output of the model")
            for node in {id(node): node for node in self.index.readers.get(tensor, ())}.values():
                try:
                    pending += [name for name in self._reader(node, tensor) if name not in self.tensors]
                except _RefusedError as error:
                    first = first or error
                    self.refusing.append((node, error.refusal))
        if first is not None:
            raise first

    def before(self, relu: onnx.NodeProto) -> bool:
        """Walk to the bias that loses m; return whether it is that of a Conv right before the ReLU."""
        tensor = relu.input[0]
        writer = self._writer(tensor)
        if writer.op_type == "Conv":
            self._lose(writer, tensor)
            return True
        if writer.op_type in ("Add", "Sub") and (number := self._constant(writer)) is not None:
            if writer.op_type == "Sub" and number == 0:
                raise _RefusedError("a Sub from a constant writes it", writer.name)
            self.biases.append(Bias(writer.name, number, -1.0 if writer.op_type == "Add" else 1.0))
            self.written.append(tensor)
            return False
        if writer.op_type == "Add" and (skip := skip_input(writer, self.index)) is not None:
            main = writer.input[1 - skip]
            self.written.append(tensor)
            self._lose(self._writer(main), main)
            return False
        raise _RefusedError(f"{writer.op_type} writes it, which has no bias", writer.name)

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
            raise _RefusedError("the bias of a Conv is computed", conv.name)
        if conv.input[1] not in self.index.constants:
            raise _RefusedError("the weights of a Conv are computed", conv.name)

    def _constant(self, node: onnx.NodeProto) -> int | None:
        """Return the index of the only constant among two inputs, None if there is none."""
        numbers = [number for number, name in enumerate(node.input) if name in self.index.constants]
        return numbers[0] if len(node.input) == 2 and len(numbers) == 1 else None

    def _reader(self, node: onnx.NodeProto, tensor: str) -> list[str]:
        """Make up for the shift in a reader, or return the tensors that it passes the shift on to."""
        first = tensor == node.input[0] or node.op_type in ("Add", "Max", "Min", "Sum", "Mul", "Concat")
        if list(node.input).count(tensor) > 1 or not first:
            raise _RefusedError(f"{node.op_type} reads it in another place than its first input", node.name)
        counts = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
        if counts and (_pads(node) or attribute(node, "ceil_mode", 0)):
            raise _RefusedError("AveragePool counts the zeros of its border", node.name)
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
            raise _RefusedError(f"{node.op_type} reads it", node.name)
        return []

    def _conv(self, node: onnx.NodeProto) -> None:
        if _pads(node):
            raise _RefusedError("Conv reads it with padding, whose zeros would stand for 128 scales", node.name)
        self._check_bias(node)
        self.biases.append(Bias(node.name, 2, weighted=True))

    def _add(self, node: onnx.NodeProto, tensor: str) -> None:
        main = node.input[1 - list(node.input).index(tensor)] if len(node.input) == 2 else ""
        writer = self.index.producers.get(main)
        if writer is None or writer.op_type != "Conv" or len(self.index.readers[main]) != 1:
            raise _RefusedError("Add reads it, and no Conv of its own on the other side makes up for that", node.name)
        if main in self.outputs:
            raise _RefusedError("the Conv that would make up for it in an Add is an output of the model", writer.name)
        self._check_bias(writer)
        self.biases.append(Bias(writer.name, 2))
        self.mains.append(main)


def _pads(node: onnx.NodeProto) -> bool:
    """Return whether a Conv or a pool adds a border."""
    automatic = attribute(node, "auto_pad", b"NOTSET")
    kernel = attribute(node, "kernel_shape", [])
    same = automatic in (b"SAME_UPPER", b"SAME_LOWER") and not (kernel and all(size == 1 for size in kernel))
    return bool(same or any(attribute(node, "pads", [])))
