"""A driver and a TensorRT that exist in host memory, on top of the CUDA of `tests.fake_cuda`."""

import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from export.capabilities import TensorRT
from tests.fake_contexts import (
    ACTIVATION_BYTES,
    BaseContext,
    FakeContext,
    FakeContext8,
    GraphStrategy,
    Specialization,
    Strategy,
    Validity,
    Verbosity,
)
from tests.fake_cuda import FakeRuntime


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
    """What TensorRT loads; its contexts answer."""

    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu
        self.contexts: list[BaseContext] = []
        setattr(
            self,
            "device_memory_size" if gpu.kind == "8" else "device_memory_size_v2",
            gpu.profile[2] * ACTIVATION_BYTES,
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "images":
            return (-1, *self.gpu.size, 3)
        return (-1, 2) if name.startswith("top_") else (-1, self.gpu.classes)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("images", 0)
        return [(batch, *self.gpu.size, 3) for batch in self.gpu.profile]

    def create_execution_context(self, how: Any = Strategy.STATIC) -> Any:
        assert self.gpu.kind != "8", "in 8.6 it takes no strategy, and allocates memory of its own"
        if not isinstance(how, _RuntimeConfig):
            # Our builds for TensorRT-RTX are made with REQUIRE_USER_ALLOCATION.
            if self.gpu.kind == "rtx" and how != Strategy.USER_MANAGED:
                self.gpu.says("the engine requires user allocation: the strategy has to be USER_MANAGED")
                return None
            return self._context(False, Specialization.LAZY if self.gpu.kind == "rtx" else None)
        assert self.gpu.kind == "rtx"
        assert how.strategy == Strategy.USER_MANAGED
        self.gpu.configs.append(how)
        own_graph = how.cuda_graph_strategy == GraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._context(own_graph, how.dynamic_shapes_kernel_specialization_strategy)

    def create_engine_inspector(self) -> Any:
        inspector = types.SimpleNamespace(execution_context=None)
        inspector.get_engine_information = lambda form: self.gpu.information(inspector.execution_context)
        return inspector

    def create_execution_context_without_device_memory(self) -> Any:
        assert self.gpu.kind == "8", "gone from 11, and from TensorRT-RTX"
        return self._context(False, None)

    def _context(self, own_graph: bool, kernels: Specialization | None) -> Any:
        if not self.gpu.ok("create_execution_context"):
            return None
        made = (FakeContext8 if self.gpu.kind == "8" else FakeContext)(self, own_graph, kernels)
        for contexts in (self.contexts, self.gpu.contexts):
            contexts.append(made)
        return made

    def create_runtime_config(self) -> Any:
        return _RuntimeConfig(self.gpu) if self.gpu.ok("create_runtime_config") else None


class _RuntimeConfig:
    strategy: Any = None
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = Specialization.LAZY
    cache: Any = None

    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu

    def create_runtime_cache(self) -> Any:
        return _RuntimeCache(self.gpu) if self.gpu.ok("create_runtime_cache") else None

    def set_runtime_cache(self, cache: Any) -> bool:
        if not self.gpu.ok("set_runtime_cache"):
            return False
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


class FakeTensorRT:
    """Holds the module (`trt`) and what it did; `kind` is "10", "8" or "rtx"."""

    def __init__(
        self,
        runtime: FakeRuntime,
        size: tuple[int, int] = (4, 5),
        profile: tuple[int, ...] = (1, 2, 4),
        kind: str = "10",
        version: str = "10.13.0",
    ) -> None:
        self.runtime, self.size, self.profile, self.kind = runtime, size, profile, kind
        self.fail = ""
        self.batches: list[int] = []
        self.first_runs: list[int] = []
        self.shares_profile = True  # 8.6: built with PROFILE_SHARING_0806, as `export.build_steps` does
        self.classes = 3
        # Means of the red, green and blue pixels, so that every image has its own answer.
        self.answer: Callable[[np.ndarray], np.ndarray] = lambda images: images.mean((1, 2), dtype=np.float64)
        self.enough_for = 1 << 30  # images that the fake has memory for, whatever was allocated
        self.kernels = 1
        self.kernels_loaded: list[bytes] = []
        self.configs: list[_RuntimeConfig] = []
        self.compiled: list[int] = []  # batch sizes that RTX compiled kernels of their own for
        self.contexts: list[BaseContext] = []
        self.top: tuple[str, ...] = ()
        self.validity = Validity.VALID
        self.refitted: list[str] = []
        # What the engine inspector says, by the context that it was given.
        self.information: Callable[[BaseContext | None], str] = lambda context: '{"Layers": []}'
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

            def deserialize_cuda_engine(self, plan: Any) -> Any:
                memoryview(plan)  # a path, say, is refused by a TypeError
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
            ProfilingVerbosity=Verbosity,
            LayerInformationFormat=enum.IntEnum("LayerInformationFormat", ["ONELINE", "JSON"]),
            Runtime=Runtime,
            IExecutionContext=BaseContext,
            ICudaEngine=object,
            IBuilderConfig=object,
            Refitter=Refitter,
        )
        if kind != "8":
            module.IExecutionContext, module.ICudaEngine = FakeContext, _EngineV2
            module.ExecutionContextAllocationStrategy = Strategy
            module.OnnxParserRefitter = OnnxParserRefitter
        if kind == "rtx":
            module.CudaGraphStrategy, module.EngineValidity = GraphStrategy, Validity
            module.DynamicShapesKernelSpecializationStrategy = Specialization
            module.IRuntimeConfig = _RuntimeConfig
            Runtime.get_engine_validity = lambda self, plan: (gpu.validity, 7)  # type: ignore[attr-defined]
        self.trt = TensorRT(module, "rtx" if kind == "rtx" else "tensorrt", version)

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
