"""``pycuda.driver`` on top of the fake runtime: the real one cannot be imported without a driver."""

import enum
import types
from typing import Any

import numpy as np

from tests.fakes.cuda import FakeRuntime


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


def fake_pycuda(runtime: FakeRuntime) -> Any:
    """The names that are used, with PyCUDA's signatures."""
    stack: list[Any] = []

    def do(result: tuple[Any, ...]) -> Any:
        code, *values = result
        if code:
            kind = MemoryError if "Memory" in code.name else LogicError
            raise kind(f"cuCall failed: {'an illegal memory access' if 'Illegal' in code.name else code.name}")
        assert stack, "no context is current in this thread"
        return values[0] if values else None

    class Device:
        def __init__(self, index: int) -> None:
            if index >= runtime.devices:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")
            self.index = index

        def name(self) -> str:
            return f"fake {self.index}"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Device) and self.index == other.index

        __hash__ = None  # type: ignore[assignment]

        def retain_primary_context(self) -> Any:
            return Context(self)

        def make_context(self) -> Any:
            stack.append(Context(self))
            return stack[-1]

    class Context:
        def __init__(self, device: Device) -> None:
            self.device = device

        @staticmethod
        def get_current() -> Any:
            return stack[-1] if stack else None

        @staticmethod
        def get_device() -> Device:
            return stack[-1].device

        def push(self) -> None:
            stack.append(self)

        @staticmethod
        def pop() -> None:
            stack.pop()

        @staticmethod
        def synchronize() -> None:
            do(runtime.cudaDeviceSynchronize())

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self.address = do(runtime.cudaMalloc(size))

        def __int__(self) -> int:
            return int(self.address)

        def free(self) -> None:
            do(runtime.cudaFree(self.address))

    class HostAllocation:
        def __init__(self, size: int) -> None:
            self.address = do(runtime.cudaHostAlloc(size, 0))
            self.__array_interface__ = {
                "shape": (size,),
                "typestr": "|u1",
                "data": (self.address, False),
                "version": 3,
            }

        def free(self) -> None:
            do(runtime.cudaFreeHost(self.address))

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.asarray(HostAllocation(int(np.prod(shape)) * np.dtype(dtype).itemsize))

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert flags == runtime.cudaStreamNonBlocking
            self.handle = do(runtime.cudaStreamCreateWithFlags(flags))

        def synchronize(self) -> None:
            do(runtime.cudaStreamSynchronize(self.handle))

        def wait_for_event(self, event: Any) -> None:
            do(runtime.cudaStreamWaitEvent(self.handle, event.handle, 0))

        def __del__(self) -> None:
            if hasattr(self, "handle"):
                runtime.cudaStreamDestroy(self.handle)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            self.handle = do(runtime.cudaEventCreateWithFlags(int(flags)))

        def record(self, stream: Stream) -> Any:
            do(runtime.cudaEventRecord(self.handle, stream.handle))
            return self

        def synchronize(self) -> Any:
            do(runtime.cudaEventSynchronize(self.handle))
            return self

        def time_since(self, other: Any) -> float:
            return float(do(runtime.cudaEventElapsedTime(other.handle, self.handle)))

        def __del__(self) -> None:
            if hasattr(self, "handle"):
                runtime.cudaEventDestroy(self.handle)

    class event_flags(enum.IntFlag):
        DEFAULT = 0
        DISABLE_TIMING = 2

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        do(runtime.cudaMemcpyAsync(dest, src.ctypes.data, src.nbytes, 1, stream.handle))

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        do(runtime.cudaMemcpyAsync(dest.ctypes.data, src, dest.nbytes, 2, stream.handle))

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        do(runtime.cudaMemcpyAsync(dest, src, size, 3, stream.handle))

    def mem_get_address_range(address: int) -> tuple[int, int]:
        attributes = runtime.cudaPointerGetAttributes(address)[1]
        if not attributes.type or attributes.device != stack[-1].device.index:
            raise LogicError("cuMemGetAddressRange failed: invalid argument")
        return address, 1

    module: Any = types.ModuleType("pycuda.driver")
    for name, value in {
        **{one.__name__: one for one in (Error, MemoryError, LogicError, Device, Context, Stream, Event, event_flags)},
        "init": lambda: None,
        "mem_alloc": DeviceAllocation,
        "pagelocked_empty": pagelocked_empty,
        "mem_get_info": lambda: do((*runtime.cudaMemGetInfo()[:1], runtime.cudaMemGetInfo()[1:])),
        "mem_get_address_range": mem_get_address_range,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
        "memcpy_dtod_async": memcpy_dtod_async,
    }.items():
        setattr(module, name, value)
    return module
