"""A fake TensorRT that builds any ONNX graph and computes it with ONNX Runtime; its kernels can be made wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from export.ort_session import open_session
from export.tensorrt.library import TensorRT
from tests.fakes import gpu
from tests.fakes.builder import Builder, INetworkDefinition, IOptimizationProfile
from tests.fakes.contexts import ACTIVATION_BYTES, FakeContext
from tests.fakes.cuda import FakeRuntime
from tests.fakes.names import Module


class GraphNetwork(INetworkDefinition):
    def _read(self, path: str) -> None:
        self._model = onnx.load(path)


class GraphProfile(IOptimizationProfile):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self._shapes[name] = shapes


class GraphBuilder(Builder):
    _gpu: FakeOfGraphs

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        (profile,) = config._profiles
        assert set(profile._shapes) == {info.name for info in network._model.graph.input}
        self._gpu.built.append(network._model)
        return network._model.SerializeToString() if self._gpu.ok("build_serialized_network") else None


class GraphEngine(gpu.FakeEngine):
    def __init__(self, plan: bytes) -> None:
        self.gpu, self.contexts, self._built = self._gpu, [], {}
        self._model = ModelProto.FromString(bytes(plan))

    device_memory_size = device_memory_size_v2 = property(lambda self: ACTIVATION_BYTES)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (info,) = (one for one in (*self._model.graph.input, *self._model.graph.output) if one.name == name)
        return tuple(dim.dim_value or -1 for dim in info.type.tensor_type.shape.dim)


class GraphContext(FakeContext):
    engine: GraphEngine
    gpu: FakeOfGraphs

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return self.gpu.ok("set_input_shape")

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory is not None
        assert self._profile_copied
        graph = self.engine._model.graph
        assert set(self.addresses) == {info.name for info in (*graph.input, *graph.output)}
        assert set(self._shapes) == {info.name for info in graph.input}
        self.gpu.runtime.queue(stream, self._compute)
        return self.gpu.ok("execute_async_v3")

    def _compute(self) -> None:
        runtime, model = self.gpu.runtime, self.engine._model
        inputs = {}
        for info in model.graph.input:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
            count = int(np.prod(self._shapes[info.name]))
            address = runtime.block(self.addresses[info.name], "device", count * dtype.itemsize)
            raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
            inputs[info.name] = np.frombuffer(raw, dtype).reshape(self._shapes[info.name]).copy()
        names = [info.name for info in model.graph.output]
        values = open_session(self.gpu.kernels_of(model), exact=True).run(names, inputs)
        for name, value in zip(names, values):
            value = np.ascontiguousarray(value)
            target = runtime.block(self.addresses[name], "device", value.nbytes)
            ctypes.memmove(target, value.ctypes.data, value.nbytes)


class FakeOfGraphs(gpu.FakeTensorRT):
    """Holds the library and what it built.

    Attributes:
        built: every graph that was built.
        kernels_of: what an engine of a graph computes, as a graph: plant a fault here.
    """

    def __init__(self, runtime: FakeRuntime, kind: str = "10", version: str = "10.13.0") -> None:
        super().__init__(runtime, kind=kind, version=version)
        self.built: list[ModelProto] = []
        self.kernels_of: Callable[[ModelProto], ModelProto] = lambda model: model
        fakes = {
            **gpu.FAKES,
            "Builder": GraphBuilder,
            "ICudaEngine": GraphEngine,
            "IExecutionContext": GraphContext,
            "INetworkDefinition": GraphNetwork,
            "IOptimizationProfile": GraphProfile,
        }
        names = {"rtx": "rtx1.7.1", "8": "8.6.1"}.get(kind) or ".".join(version.split(".")[:2])
        self.module: Any = Module(names, fakes, _gpu=self)
        self.module.__version__ = version
        self.trt = TensorRT(self.module, "rtx" if kind == "rtx" else "tensorrt", version)
