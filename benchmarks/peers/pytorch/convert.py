"""Convert an exported FP32 ONNX file to an idiomatic PyTorch model with the same weights.

The graph becomes a `torch.fx.GraphModule`: nn.Conv2d and nn.Linear with the file's weights, functions around them, and
a plain `forward` for torch.compile and CUDA graphs. The module needs Python 3.10, numpy, onnx and torch.
"""

from __future__ import annotations

import itertools
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
    """Convert an exported file to a PyTorch model, on the CPU and in channels-last.

    Args:
        path: FP32 ONNX file with one input, uint8 (batch, height, width, 3).
        precision: ``"fp16"`` rounds weights and activations as our FP16 graph does: the preprocessing stays FP32 up to
            the first Conv, Softmax is FP32, outputs are float32. Defaults to ``"fp32"``.

    Returns:
        torch.nn.Module: in eval mode; maps pixels to the tuple of the file's outputs, in its order. It has the
        attributes ``output_names``, ``output_widths`` (of the last dimension) and ``input_size`` (height, width).

    Raises:
        ProjectError: the file was not exported by this project, or has an operator or attribute without a handler.
    """
    return Converter(load_model(path), str(path), precision).convert()


class Converter:
    """Converts ONNX nodes to fx nodes, in order.

    Args:
        model: the model, its nodes in order.
        where: path of the file, for messages.
        precision: of weights and activations.
    """

    def __init__(self, model: onnx.ModelProto, where: str, precision: Precision) -> None:
        self.where = where
        self.model = model
        self.table = {name: numpy_helper.to_array(tensor) for name, tensor in constants(model.graph).items()}
        self.producers, self.readers = producers(model.graph), consumers(model.graph)
        self.outputs = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
        self.values: dict[str, Any] = {}  # ONNX tensor to fx node
        self.root, self.graph = torch.nn.Module(), torch.fx.Graph()
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        steps = preprocessing_nodes(model)
        self.prepared = {node.name for node in steps}
        self._last_prepared = steps[-1].output[0] if steps else None

    def convert(self) -> torch.nn.Module:
        """Return the module; see `load_onnx`."""
        name, size = self._input()
        self.values[name] = self.graph.placeholder(name)
        for node in self.model.graph.node:
            if all(output in self.values for output in node.output):
                continue  # converted together with an earlier node
            self.expect(node.op_type in HANDLERS, node, f"operators of {', '.join(HANDLERS)}", node.op_type)
            result = HANDLERS[node.op_type](self, node)
            if node.output[0] == self._last_prepared and self.dtype != torch.float32:
                result = self.call_method("to", result, self.dtype)
            self.values[node.output[0]] = result
        self.graph.output(
            tuple(
                self.call_method("float", self.values[output])
                if self.dtype != torch.float32 and kind == TensorProto.FLOAT
                else self.values[output]
                for output, kind in self.outputs.items()
            )
        )
        self.graph.lint()
        module = torch.fx.GraphModule(self.root, self.graph, "ExportedModel").eval().requires_grad_(False)
        module = module.to(memory_format=torch.channels_last)
        module.output_names, module.input_size = tuple(self.outputs), size
        module.output_widths = tuple(
            output.type.tensor_type.shape.dim[-1].dim_value for output in self.model.graph.output
        )
        return module

    def _input(self) -> tuple[str, tuple[int, int]]:
        """Return the name of the input, and the height and width of its images."""
        inputs = [value for value in self.model.graph.input if value.name not in self.table]
        kinds = [value.type.tensor_type for value in inputs]
        shapes = [[dim.dim_value for dim in kind.shape.dim] for kind in kinds]
        if len(inputs) != 1 or kinds[0].elem_type != TensorProto.UINT8 or len(shapes[0]) != 4 or shapes[0][3] != 3:
            raise RunnerError(
                "Expected one uint8 input of shape (batch, height, width, 3). Received: "
                f"{[value.name for value in inputs]} of shape {shapes} in {self.where}. Name an exported model.onnx."
            )
        return inputs[0].name, (shapes[0][1], shapes[0][2])

    def expect(self, fits: bool, node: onnx.NodeProto, expected: str, received: str) -> None:
        """Refuse a node that the handlers do not support."""
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
        """Call a module, registered under the node's name."""
        name = self._free_name(node)
        self.root.add_module(name, module)
        return self.graph.call_module(name, arguments)

    def _free_name(self, node: onnx.NodeProto) -> str:
        base = re.sub(r"\W", "_", node.name or node.output[0]) or "node"
        base = f"_{base}" if base[0].isdigit() else base
        names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        return next(name for name in names if not hasattr(self.root, name))

    def value(self, node: onnx.NodeProto, index: int = 0) -> Any:
        """Return the fx node of an input; a constant becomes a buffer, in FP16 where the model computes in it."""
        name = node.input[index]
        if name in self.values:
            return self.values[name]
        buffer = self._free_name(node)
        self.root.register_buffer(buffer, self.tensor(self.constant(node, index), keep=node.name in self.prepared))
        return self.graph.get_attr(buffer)

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray:
        """Return an input that must be a constant."""
        name = node.input[index]
        self.expect(name in self.table, node, f"a constant as input {index} of {node.op_type}", f"the tensor {name!r}")
        return self.table[name]

    def optional(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """Return an input that must be a constant, or None where it is missing."""
        return self.constant(node, index) if len(node.input) > index and node.input[index] else None

    def integers(self, node: onnx.NodeProto, name: str, index: int) -> list[int] | None:
        """Return an attribute that is an input in newer opsets."""
        constant = self.optional(node, index)
        values = attribute(node, name) if constant is None else np.atleast_1d(constant)
        return None if values is None else list(map(int, values))

    def tensor(self, values: np.ndarray, keep: bool = False) -> torch.Tensor:
        """Convert a constant; floats get the model's precision, unless they ``keep`` their own."""
        tensor = torch.from_numpy(np.array(values))
        return tensor.to(self.dtype) if tensor.is_floating_point() and not keep else tensor

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """Return the only node that reads a tensor; None where there are several, or it is an output."""
        readers = self.readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None
