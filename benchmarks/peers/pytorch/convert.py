"""An exported FP32 ONNX file as a PyTorch model: the same weights in layers as a PyTorch engineer would write them.

The graph becomes a `torch.fx.GraphModule`: nn.Conv2d and nn.Linear with the file's weights, functions around them, and
a plain `forward` that torch.compile and CUDA graphs take as it is. Needs numpy, onnx and torch; Python 3.10 syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from benchmarks.peers.pytorch.device import Precision
from benchmarks.peers.pytorch.operators import HANDLERS
from export.errors import RunnerError
from export.fp16.convert import preprocessing_nodes
from export.onnx_passes.file import load_model
from export.onnx_passes.graph import attribute, constants, consumers, producers


def load_onnx(path: str | Path, precision: Precision = "fp32") -> torch.nn.Module:
    """Make a PyTorch model of an exported file, on the CPU and in channels-last.

    Args:
        path: FP32 ONNX file with one input, uint8 (batch, height, width, 3).
        precision: ``"fp16"`` rounds weights and activations as our FP16 graph does: the preprocessing stays FP32 up to
            the first Conv, Softmax is FP32, outputs are float32. Defaults to ``"fp32"``.

    Returns:
        torch.nn.Module: in eval mode; takes the pixels, gives the tuple of the file's outputs, in its order. Its
        attributes: ``output_names``, ``output_widths`` (of the last dimension), ``input_size`` (height, width).

    Raises:
        ProjectError: the file is none of ours, or holds an operator or attribute that is not known here.
    """
    return Converter(load_model(path), str(path), precision).convert()


class Converter:
    """Turns nodes into fx nodes, one after the other.

    Args:
        model: the graph, its nodes in order.
        where: the file, for messages.
        precision: of weights and activations.
    """

    def __init__(self, model: onnx.ModelProto, where: str, precision: Precision) -> None:
        self.where = where
        self.model = model
        self.table = {name: numpy_helper.to_array(tensor) for name, tensor in constants(model.graph).items()}
        self.made, self.readers = producers(model.graph), consumers(model.graph)
        self.outputs = {one.name: one.type.tensor_type.elem_type for one in model.graph.output}
        self.values: dict[str, Any] = {}  # ONNX tensor to fx node
        self.root, self.graph = torch.nn.Module(), torch.fx.Graph()
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        steps = preprocessing_nodes(model)
        self.prepared = {node.name for node in steps}
        self._last_prepared = steps[-1].output[0] if steps else None

    def convert(self) -> torch.nn.Module:
        """Make the module; see `load_onnx`."""
        name, size = self._input()
        self.values[name] = self.graph.placeholder(name)
        for node in self.model.graph.node:
            if all(output in self.values for output in node.output):
                continue  # a node before it did its work too
            self.expect(node.op_type in HANDLERS, node, f"operators of {', '.join(HANDLERS)}", node.op_type)
            result = HANDLERS[node.op_type](self, node)
            if node.output[0] == self._last_prepared and self.dtype != torch.float32:
                result = self.call_method("to", result, self.dtype)
            self.values[node.output[0]] = result
        results = []
        for output, kind in self.outputs.items():
            half = kind == TensorProto.FLOAT and self.dtype != torch.float32
            results.append(self.call_method("float", self.values[output]) if half else self.values[output])
        self.graph.output(tuple(results))
        self.graph.lint()
        module = torch.fx.GraphModule(self.root, self.graph, "ExportedModel").eval().requires_grad_(False)
        module = module.to(memory_format=torch.channels_last)
        module.output_names, module.input_size = tuple(self.outputs), size
        module.output_widths = tuple(one.type.tensor_type.shape.dim[-1].dim_value for one in self.model.graph.output)
        return module

    def _input(self) -> tuple[str, tuple[int, int]]:
        """Give the name of the input, and the height and width of its images."""
        inputs = [one for one in self.model.graph.input if one.name not in self.table]
        kinds = [one.type.tensor_type for one in inputs]
        shapes = [[dim.dim_value for dim in kind.shape.dim] for kind in kinds]
        if len(inputs) != 1 or kinds[0].elem_type != TensorProto.UINT8 or len(shapes[0]) != 4 or shapes[0][3] != 3:
            raise RunnerError(
                "Expected one uint8 input of shape (batch, height, width, 3). Received: "
                f"{[one.name for one in inputs]} of shape {shapes} in {self.where}. Name an exported model.onnx."
            )
        return inputs[0].name, (shapes[0][1], shapes[0][2])

    def expect(self, fits: bool, node: onnx.NodeProto, expected: str, received: str) -> None:
        """Refuse a node that is not as it is known here."""
        if not fits:
            raise RunnerError(
                f"Expected {expected}. Received: {received} in node {node.name!r} of {self.where}. "
                "Add it to benchmarks/peers/pytorch/operators.py."
            )

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function."""
        return self.graph.call_function(function, arguments, options)

    def call_method(self, name: str, *arguments: Any) -> Any:
        """Call a method of the first argument."""
        return self.graph.call_method(name, arguments)

    def layer(self, node: onnx.NodeProto, module: torch.nn.Module, *arguments: Any) -> Any:
        """Call a module, which is kept under the node's name."""
        name = self._free_name(node)
        self.root.add_module(name, module)
        return self.graph.call_module(name, arguments)

    def _free_name(self, node: onnx.NodeProto) -> str:
        base = re.sub(r"\W", "_", node.name or node.output[0]) or "node"
        base = f"_{base}" if base[0].isdigit() else base
        name, number = base, 1
        while hasattr(self.root, name):
            name, number = f"{base}_{number}", number + 1
        return name

    def value(self, node: onnx.NodeProto, index: int = 0) -> Any:
        """The fx node of an input; a constant becomes a buffer, in FP16 where the model computes in it."""
        name = node.input[index]
        if name in self.values:
            return self.values[name]
        buffer = self._free_name(node)
        keep = node.name in self.prepared
        self.root.register_buffer(buffer, self.tensor(self.constant(node, index), keep=keep))
        return self.graph.get_attr(buffer)

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray:
        """An input that must be a constant."""
        name = node.input[index]
        expected = f"a constant as input {index} of {node.op_type}"
        self.expect(name in self.table, node, expected, f"the tensor {name!r}")
        return self.table[name]

    def optional(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """An input that must be a constant where there is one."""
        return self.constant(node, index) if len(node.input) > index and node.input[index] else None

    def integers(self, node: onnx.NodeProto, name: str, index: int) -> list[int] | None:
        """An attribute that newer opsets have as an input."""
        held = self.optional(node, index)
        found = attribute(node, name) if held is None else np.atleast_1d(held)
        return None if found is None else [int(one) for one in found]

    def tensor(self, values: np.ndarray, keep: bool = False) -> torch.Tensor:
        """A constant as a tensor; numbers in the model's precision, unless it is to keep its own."""
        made = torch.from_numpy(np.array(values))
        return made.to(self.dtype) if made.is_floating_point() and not keep else made

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that reads a tensor that nobody else does."""
        readers = self.readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None
