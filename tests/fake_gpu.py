"""A driver, a CUDA runtime and a TensorRT that exist in host memory, to run the code around them without a GPU.

The fake checks what a GPU would punish: every address must be allocated and large enough, copies go only where they
may, work happens only when somebody waits for it, nothing is freed twice or while work is pending; `live` says what
was never freed.
"""

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from export.capabilities import TensorRT


class Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700


class FakeRuntime(types.ModuleType):
    """Stands for ``cuda.bindings.runtime``."""

    cudaStreamNonBlocking = 1

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    def __init__(self, devices: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices = devices
        self.memory: dict[int, tuple[str, Any]] = {}
        self.handles: dict[int, str] = {}
        self.fail: dict[str, Code] = {}  # call to the code it returns
        self.calls: list[str] = []
        self.pending: list[Callable[[], object]] = []  # work in the stream, done when somebody waits for it
        self._next = 1000

    @property
    def live(self) -> int:
        return len(self.memory) + len(self.handles)

    def _code(self, name: str) -> Code:
        self.calls.append(name)
        return self.fail.get(name, Code.cudaSuccess)

    def _allocate(self, name: str, where: str, size: int) -> tuple[Any, ...]:
        if code := self._code(name):
            return code, None
        block = (ctypes.c_uint8 * max(size, 1))()
        self.memory[ctypes.addressof(block)] = (where, block)
        return Code.cudaSuccess, ctypes.addressof(block)

    def _free(self, name: str, where: str, address: int) -> tuple[Any, ...]:
        assert not self.pending, "memory is freed while the GPU may still use it"
        assert self.memory.pop(int(address))[0] == where
        return (self._code(name),)

    def _make(self, name: str, what: str) -> tuple[Any, ...]:
        if code := self._code(name):
            return code, None
        self._next += 1
        self.handles[self._next] = what
        return Code.cudaSuccess, self._next

    def block(self, address: int, where: str, size: int) -> Any:
        kind, block = self.memory[int(address)]
        assert kind == where
        assert size <= len(block)
        return block

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return (self._code("cudaSetDevice") if index < self.devices else Code.cudaErrorInvalidDevice,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFree", "device", address)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("cudaHostAlloc", "host", size)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", "host", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._make("cudaStreamCreateWithFlags", "stream")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert self.handles[stream] == "stream"
        work, self.pending = self.pending, []
        if code := self._code("cudaStreamSynchronize"):
            return (code,)
        for one in work:
            one()
        return (Code.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        assert self.handles.pop(stream) == "stream"
        return (self._code("cudaStreamDestroy"),)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        return self._make("cudaEventCreate", "event")

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        assert (self.handles[event], self.handles[stream]) == ("event", "stream")
        return (self._code("cudaEventRecord"),)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        return (self._code("cudaEventSynchronize"),)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        return self._code("cudaEventElapsedTime"), float(end - start)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        assert self.handles.pop(event) == "event"
        return (self._code("cudaEventDestroy"),)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        assert self.handles[stream] == "stream"
        up = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        to, of = ("device", "host") if up else ("host", "device")
        self.block(target, to, size), self.block(source, of, size)
        self.pending.append(lambda: ctypes.memmove(self.block(target, to, size), self.block(source, of, size), size))
        return (self._code("cudaMemcpyAsync"),)

    def cudaGetErrorString(self, code: Code) -> tuple[Any, ...]:
        return Code.cudaSuccess, f"text of {code.name}".encode()


class _Logger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4


class FakeEngine:
    """Logits are the means of the red, green and blue pixels, so that every image has its own answer."""

    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.gpu.size, 3) if name == "images" else (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, *self.gpu.size, 3) for batch in self.gpu.profile]

    def create_execution_context(self) -> Any:
        return None if self.gpu.fail == "create_execution_context" else FakeContext(self.gpu)


class FakeContext:
    def __init__(self, gpu: "FakeTensorRT") -> None:
        self.gpu = gpu
        self.addresses: dict[str, int] = {}
        self.batch = 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.gpu.ok("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert (name, shape[1:]) == ("images", (*self.gpu.size, 3))
        self.batch = shape[0]
        return self.gpu.ok("set_input_shape") and self.gpu.profile[0] <= self.batch <= self.gpu.profile[2]

    def execute_async_v3(self, stream: int) -> bool:
        if not self.gpu.ok("execute_async_v3"):
            return False
        self.gpu.batches.append(self.batch)
        assert self.gpu.runtime.handles[stream] == "stream"
        batch = self.batch
        self.gpu.runtime.pending.append(lambda: self._work(batch))
        return True

    def _work(self, batch: int) -> None:
        shape = (batch, *self.gpu.size, 3)
        raw = self.gpu.runtime.block(self.addresses["images"], "device", int(np.prod(shape)))
        images = np.frombuffer(raw, np.uint8, int(np.prod(shape))).reshape(shape)
        logits = images.mean((1, 2), dtype=np.float64).astype(np.float32)
        exp = np.exp(logits - logits.max(1, keepdims=True))
        for name, value in (("logits", logits), ("probabilities", exp / exp.sum(1, keepdims=True))):
            target = self.gpu.runtime.block(self.addresses[name], "device", value.nbytes)
            ctypes.memmove(target, np.ascontiguousarray(value, np.float32).ctypes.data, value.nbytes)


class FakeTensorRT:
    """Holds the module (`trt`) and what it did."""

    def __init__(
        self, runtime: FakeRuntime, size: tuple[int, int] = (4, 5), profile: tuple[int, ...] = (1, 2, 4)
    ) -> None:
        self.runtime, self.size, self.profile = runtime, size, profile
        self.fail = ""
        self.batches: list[int] = []
        self.logger: Any = None
        gpu = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                gpu.logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                return FakeEngine(gpu) if gpu.ok("deserialize_cuda_engine") else None

        module = types.SimpleNamespace(ILogger=_Logger, Runtime=Runtime)
        self.trt = TensorRT(module, "tensorrt", "10.13.0")

    def ok(self, call: str) -> bool:
        if self.fail != call:
            return True
        self.logger.log(_Logger.Severity.ERROR, f"{call} said no")
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
