"""A driver and a TensorRT that exist in host memory, on top of the CUDA of `tests.fakes.cuda`."""

import enum
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from export.tensorrt.library import TensorRT
from tests.fakes import builder
from tests.fakes.contexts import (
    ACTIVATION_BYTES,
    FakeContext,
    GraphStrategy,
    Specialization,
    Strategy,
    Validity,
    Verbosity,
)
from tests.fakes.cuda import FakeRuntime
from tests.fakes.names import Module


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Any, msg: str) -> None: ...


class FakeEngine:
    """What TensorRT loads; its contexts answer."""

    _gpu: "FakeTensorRT"

    def __init__(self, plan: bytes) -> None:
        self.gpu = self._gpu
        self.contexts: list[FakeContext] = []
        self._built: dict[str, Any] = {}
        if plan.startswith(b"{"):  # of the fake builder
            self._built = json.loads(plan)
            self.gpu.size, self.gpu.profile = tuple(self._built["size"]), tuple(self._built["batches"])
            self.gpu.classes = self._built["classes"]

    @property
    def device_memory_size(self) -> int:
        return self.gpu.profile[2] * ACTIVATION_BYTES

    device_memory_size_v2 = device_memory_size

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "images":
            return (-1, *self.gpu.size, 3)
        return (-1, 2) if name.startswith("top_") else (-1, self.gpu.classes)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("images", 0)
        return [(batch, *self.gpu.size, 3) for batch in self.gpu.profile]

    def create_execution_context(self, how: Any = Strategy.STATIC) -> Any:
        assert self.gpu.kind != "8", "in 8.6 it takes no strategy, and allocates memory of its own"
        if not isinstance(how, RuntimeConfig):
            # Our builds for TensorRT-RTX are made with REQUIRE_USER_ALLOCATION.
            if self.gpu.kind == "rtx" and how != Strategy.USER_MANAGED:
                self.gpu.says("the engine requires user allocation: the strategy has to be USER_MANAGED")
                return None
            return self._context(False, Specialization.LAZY if self.gpu.kind == "rtx" else None)
        assert self.gpu.kind == "rtx"
        assert how._strategy == Strategy.USER_MANAGED
        self.gpu.configs.append(how)
        own_graph = how.cuda_graph_strategy == GraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._context(own_graph, how.dynamic_shapes_kernel_specialization_strategy)

    def create_engine_inspector(self) -> Any:
        return self.gpu.module.EngineInspector(self._built)

    def create_execution_context_without_device_memory(self) -> Any:
        assert self.gpu.kind == "8", "gone from 11, and from TensorRT-RTX"
        return self._context(False, None)

    def _context(self, own_graph: bool, kernels: Specialization | None) -> Any:
        if not self.gpu.ok("create_execution_context"):
            return None
        made = self.gpu.module.IExecutionContext(self, own_graph, kernels)
        for contexts in (self.contexts, self.gpu.contexts):
            contexts.append(made)
        return made

    def create_runtime_config(self) -> Any:
        return self.gpu.module.IRuntimeConfig() if self.gpu.ok("create_runtime_config") else None


class EngineInspector:
    """Types depend on the batch: without a context that has one, they are not known."""

    _gpu: "FakeTensorRT"
    execution_context: Any = None

    def __init__(self, built: dict[str, Any]) -> None:
        self._built = built

    def get_engine_information(self, form: Any) -> str:
        assert form.name == "JSON"
        if self._gpu.information is not None:
            return self._gpu.information(self.execution_context)
        if not self._built:
            return '{"Layers": []}'
        known = self.execution_context is not None and self.execution_context.batch
        tensor = {"Name": "x", "Format/Datatype": self._built["type"] if known else "N/A due to dynamic shapes"}
        layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]}
        return json.dumps({"Layers": [{**layer, "Metadata": "[ONNX Layer: conv]"}]})


class RuntimeConfig:
    _gpu: "FakeTensorRT"
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = Specialization.LAZY
    _strategy: Any = None
    _cache: Any = None

    def create_runtime_cache(self) -> Any:
        return self._gpu.module.IRuntimeCache() if self._gpu.ok("create_runtime_cache") else None

    def set_runtime_cache(self, cache: Any) -> bool:
        if not self._gpu.ok("set_runtime_cache"):
            return False
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class RuntimeCache:
    _gpu: "FakeTensorRT"

    def deserialize(self, blob: bytes) -> bool:
        self._gpu.kernels_loaded.append(blob)
        return blob.startswith(b"kernels")

    def serialize(self) -> bytes:
        return b"kernels of " + str(self._gpu.kernels).encode()


class Runtime:
    _gpu: "FakeTensorRT"

    def __init__(self, logger: Any) -> None:
        self._gpu.logger = logger

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._gpu.host_code_allowed

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, value: bool) -> None:
        self._gpu.host_code_allowed = value

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        content = bytes(memoryview(plan))  # a path, say, is refused by a TypeError
        return self._gpu.module.ICudaEngine(content) if self._gpu.ok("deserialize_cuda_engine") else None

    def get_engine_validity(self, plan: Any) -> tuple[Validity, int]:
        return self._gpu.validity, 7


class Refitter:
    _gpu: "FakeTensorRT"

    def __init__(self, engine: Any, logger: Any) -> None: ...

    def refit_cuda_engine(self) -> bool:
        return self._gpu.ok("refit_cuda_engine")


class OnnxParserRefitter:
    _gpu: "FakeTensorRT"

    def __init__(self, refitter: Any, logger: Any) -> None: ...

    def refit_from_file(self, path: str) -> bool:
        self._gpu.refitted.append(path)
        return self._gpu.ok("refit_from_file")


FAKES: dict[str, Any] = {
    **builder.FAKES,
    "CudaGraphStrategy": GraphStrategy,
    "DynamicShapesKernelSpecializationStrategy": Specialization,
    "EngineInspector": EngineInspector,
    "EngineValidity": Validity,
    "ExecutionContextAllocationStrategy": Strategy,
    "ICudaEngine": FakeEngine,
    "IExecutionContext": FakeContext,
    "ILogger": ILogger,
    "IRuntimeCache": RuntimeCache,
    "IRuntimeConfig": RuntimeConfig,
    "LayerInformationFormat": enum.IntEnum("LayerInformationFormat", ["ONELINE", "JSON"]),
    "OnnxParserRefitter": OnnxParserRefitter,
    "ProfilingVerbosity": Verbosity,
    "Refitter": Refitter,
    "Runtime": Runtime,
}


class FakeTensorRT:
    """Holds the library (`trt`) and what it did.

    Args:
        runtime: the CUDA that it runs on.
        size: of the images, in pixels.
        profile: the smallest, best and largest batch.
        kind: "10" (10 and 11), "8" or "rtx".
        version: what it calls itself. Of the kind "10" it has the names of that version.
    """

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
        self.shares_profile = True  # 8.6: built with PROFILE_SHARING_0806, as `export.tensorrt.network` does
        self.classes = 3
        # Means of the red, green and blue pixels, so that every image has its own answer.
        self.answer: Callable[[np.ndarray], np.ndarray] = lambda images: images.mean((1, 2), dtype=np.float64)
        self.enough_for = 1 << 30  # images that the fake has memory for, whatever was allocated
        self.kernels = 1
        self.kernels_loaded: list[bytes] = []
        self.configs: list[RuntimeConfig] = []
        self.compiled: list[int] = []  # batch sizes that RTX compiled kernels of their own for
        self.contexts: list[FakeContext] = []
        self.top: tuple[str, ...] = ()
        self.validity = Validity.VALID
        self.refitted: list[str] = []
        # What the engine inspector says, by the context that it was given. None: what the fake builder built.
        self.information: Callable[[FakeContext | None], str] | None = None
        self.host_code_allowed = False
        self.logger: Any = None
        self.spoil: Callable[[dict[str, np.ndarray]], object] = lambda results: None  # makes an engine wrong
        names = {"rtx": "rtx1.7.1", "8": "8.6.1"}.get(kind) or ".".join(version.split(".")[:2])
        self.module: Any = Module(names, FAKES, _gpu=self)
        self.module.__version__ = version
        self.trt = TensorRT(self.module, "rtx" if kind == "rtx" else "tensorrt", version)

    @property
    def strong(self) -> bool:
        """Whether networks take their types from the ONNX file."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    def ok(self, call: str) -> bool:
        return self.fail != call or self.says(f"{call} said no")

    def says(self, words: str) -> bool:
        self.logger.log(self.module.ILogger.Severity.ERROR, words)
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
