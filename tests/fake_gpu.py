"""A driver and a TensorRT that exist in host memory, on top of the CUDA of `tests.fake_cuda`."""

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from export.capabilities import TensorRT
from tests.fake_cuda import FakeRuntime

ACTIVATION_BYTES = 1000  # an image


class _Logger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4


class _EngineV2:
    """What `export.capabilities` looks for in the class."""

    device_memory_size_v2 = 0


class FakeEngine:
    """Logits are the means of the red, green and blue pixels, so that every image has its own answer."""

    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu
        setattr(
            self,
            "device_memory_size" if gpu.kind == "8" else "device_memory_size_v2",
            gpu.profile[2] * ACTIVATION_BYTES,
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "images":
            return (-1, *self.gpu.size, 3)
        return (-1, 2) if name.startswith("top_") else (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, *self.gpu.size, 3) for batch in self.gpu.profile]

    def create_execution_context(self, how: Any) -> Any:
        jit = isinstance(how, _RuntimeConfig)
        assert jit == (self.gpu.kind == "rtx")
        assert (how.strategy if jit else how) == _Strategy.USER_MANAGED
        if jit:
            assert how.dynamic_shapes_kernel_specialization_strategy == _Specialization.EAGER
            assert how.cache is not None
        return self._context(jit and how.cuda_graph_strategy == _GraphStrategy.WHOLE_GRAPH_CAPTURE)

    def create_execution_context_without_device_memory(self) -> Any:
        return self._context(False)

    def _context(self, own_graph: bool) -> Any:
        if self.gpu.fail == "create_execution_context":
            return None
        made = (FakeContext8 if self.gpu.kind == "8" else FakeContext)(self.gpu, own_graph)
        self.gpu.contexts.append(made)
        return made

    def create_runtime_config(self) -> Any:
        return _RuntimeConfig(self.gpu)


class _Strategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class _GraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class _Validity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class _Verbosity(enum.IntEnum):
    NONE = 1
    DETAILED = 2


class _Specialization(enum.IntEnum):
    LAZY = 0
    EAGER = 1


class _RuntimeConfig:
    strategy: Any = None
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cache: Any = None

    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu

    def create_runtime_cache(self) -> Any:
        return _RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class _RuntimeCache:
    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu

    def deserialize(self, blob: bytes) -> bool:
        self.gpu.kernels_loaded.append(blob)
        return blob.startswith(b"kernels")

    def serialize(self) -> bytes:
        return b"kernels of " + str(self.gpu.kernels).encode()


class _Context:
    """The methods that every version has."""

    def __init__(self, gpu: "FakeTensorRT", own_graph: bool) -> None:
        self.gpu, self.own_graph = gpu, own_graph
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.memory: tuple[int, int] | None = None
        self.captured = self.laid_out = False
        self.nvtx_verbosity = _Verbosity.DETAILED

    def _changed(self) -> None:
        assert not self.captured, "a context is changed that a graph refers to"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changed()
        assert address % 256 == 0
        self.addresses[name] = address
        return self.gpu.ok("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changed()
        assert (name, shape[1:]) == ("images", (*self.gpu.size, 3))
        if self.gpu.kind == "8" and not self.gpu.shares_profile and self.gpu.contexts[0] is not self:
            return self.gpu.says("profile 0 has been chosen by another context")
        self.batch, self.laid_out = shape[0], False
        return self.gpu.ok("set_input_shape") and self.gpu.profile[0] <= self.batch <= self.gpu.profile[2]

    def execute_async_v3(self, stream: int) -> bool:
        if not self.gpu.ok("execute_async_v3"):
            return False
        if self.batch > self.gpu.enough_for:
            return self.gpu.says("Error Code 2: OutOfMemory (Requested size was 1 bytes.)")
        runtime = self.gpu.runtime
        assert self.nvtx_verbosity == _Verbosity.NONE
        self.captured = stream in runtime.capturing
        if self.captured and self.gpu.fail == "capture":
            return self.gpu.says("capture said no")
        assert self.memory is not None, "a context without memory"
        address, size = self.memory
        assert size >= self.batch * ACTIVATION_BYTES
        # Less memory than the largest batch needs has to be divided anew for every shape.
        assert self.laid_out or size >= self.gpu.profile[2] * ACTIVATION_BYTES
        batch, addresses = self.batch, dict(self.addresses)
        assert set(addresses) == {"images", "logits", "probabilities", *self.gpu.top}

        def work() -> None:
            runtime.block(address, "device", size)
            first = addresses["images"] not in runtime.written  # a run of whatever lies there, when it is opened
            (self.gpu.first_runs if first else self.gpu.batches).append(batch)
            self._work(batch, addresses)

        runtime.queue(stream, work)
        return True

    def _work(self, batch: int, addresses: dict[str, int]) -> None:
        shape = (batch, *self.gpu.size, 3)
        count = int(np.prod(shape))
        raw = (ctypes.c_uint8 * count).from_address(self.gpu.runtime.block(addresses["images"], "device", count))
        logits = np.frombuffer(raw, np.uint8).reshape(shape).mean((1, 2), dtype=np.float64).astype(np.float32)
        exp = np.exp(logits - logits.max(1, keepdims=True))
        results = {"logits": logits, "probabilities": exp / exp.sum(1, keepdims=True)}
        if self.gpu.top:
            best = np.argsort(-results["probabilities"], 1, kind="stable")[:, :2].astype(np.int32)
            top = np.take_along_axis(results["probabilities"], best, 1)
            results |= {"top_probabilities": top, "top_classes": best}
        self.gpu.spoil(results)
        for name, value in results.items():
            value = np.ascontiguousarray(value)
            target = self.gpu.runtime.block(addresses[name], "device", value.nbytes)
            ctypes.memmove(target, value.ctypes.data, value.nbytes)


class FakeContext(_Context):
    """10.x and later."""

    def set_device_memory(self, address: int, size: int) -> None:
        self._changed()
        largest = self.gpu.profile[2] * ACTIVATION_BYTES
        assert self.laid_out or size >= largest, "less memory than every shape needs, before it was divided for one"
        self.memory = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.gpu.fail != "is_stream_capturable"

    def update_device_memory_size_for_shapes(self) -> int:
        self._changed()
        if self.gpu.fail == "update_device_memory_size_for_shapes":
            return 0
        self.laid_out = True
        return self.batch * ACTIVATION_BYTES


class FakeContext8(_Context):
    """TensorRT 8.6: the size of the memory is taken on trust."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            self.memory = (value, self.gpu.profile[2] * ACTIVATION_BYTES)
        else:
            super().__setattr__(name, value)


class FakeTensorRT:
    """Holds the module (`trt`) and what it did; `kind` is "10", "8" or "rtx"."""

    def __init__(
        self,
        runtime: FakeRuntime,
        size: tuple[int, int] = (4, 5),
        profile: tuple[int, ...] = (1, 2, 4),
        kind: str = "10",
    ) -> None:
        self.runtime, self.size, self.profile, self.kind = runtime, size, profile, kind
        self.fail = ""
        self.batches: list[int] = []
        self.first_runs: list[int] = []
        self.shares_profile = True
        self.enough_for = 1 << 30  # images that the fake has memory for, whatever was allocated
        self.kernels = 1
        self.kernels_loaded: list[bytes] = []
        self.contexts: list[_Context] = []
        self.top: tuple[str, ...] = ()
        self.validity = _Validity.VALID
        self.refitted: list[str] = []
        self.host_code_allowed = False
        self.logger: Any = None
        self.spoil: Callable[[dict[str, np.ndarray]], object] = lambda results: None  # makes an engine wrong
        gpu = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                gpu.logger = logger

            def __setattr__(self, name: str, value: Any) -> None:
                assert name == "engine_host_code_allowed"
                gpu.host_code_allowed = value

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                return FakeEngine(gpu) if gpu.ok("deserialize_cuda_engine") else None

        class Refitter:
            def __init__(self, engine: Any, logger: Any) -> None: ...

            def refit_cuda_engine(self) -> bool:
                return gpu.ok("refit_cuda_engine")

        class OnnxParserRefitter:
            def __init__(self, refitter: Any, logger: Any) -> None: ...

            def refit_from_file(self, path: str) -> bool:
                gpu.refitted.append(path)
                return gpu.ok("refit_from_file")

        module: Any = types.SimpleNamespace(
            ILogger=_Logger,
            ProfilingVerbosity=_Verbosity,
            Runtime=Runtime,
            IExecutionContext=_Context,
            ICudaEngine=object,
            IBuilderConfig=object,
            Refitter=Refitter,
        )
        if kind != "8":
            module.IExecutionContext, module.ICudaEngine = FakeContext, _EngineV2
            module.ExecutionContextAllocationStrategy = _Strategy
            module.OnnxParserRefitter = OnnxParserRefitter
        if kind == "rtx":
            module.CudaGraphStrategy, module.EngineValidity = _GraphStrategy, _Validity
            module.DynamicShapesKernelSpecializationStrategy = _Specialization
            module.IRuntimeConfig = _RuntimeConfig
            Runtime.get_engine_validity = lambda self, plan: (gpu.validity, 7)  # type: ignore[attr-defined]
        self.trt = TensorRT(module, "rtx" if kind == "rtx" else "tensorrt", "10.13.0")

    def ok(self, call: str) -> bool:
        return self.fail != call or self.says(f"{call} said no")

    def says(self, words: str) -> bool:
        self.logger.log(_Logger.Severity.ERROR, words)
        return False


class FakeDriver:
    """Stands for libcuda: one GPU of compute capability 8.9, unless told otherwise."""

    def __init__(self, init: int = 0, count: int = 1) -> None:
        self.init, self.count = init, count

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 13010
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, out: Any, size: int, device: Any) -> int:
        out.value = b"Fake GPU"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
        out._obj.value = 24 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        out._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def cuGetErrorName(self, code: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0
