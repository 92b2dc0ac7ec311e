"""A CUDA runtime that exists in host memory, to run the code around it without a GPU.

It checks what a GPU would punish: every address must be allocated and large enough, copies go only where they may,
nothing is freed twice or while work is pending; `live` says what was never freed. Work is done as late as possible,
when somebody waits for it, and only what the waiting asks for: a stream that does not wait for an event reads old
bytes, and page-locked memory that is written too early changes what is uploaded.
"""

import ctypes
import enum
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any


class Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


Work = Callable[[], object]


class FakeRuntime(types.ModuleType):
    """Stands for ``cuda.bindings.runtime``."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2
        cudaMemcpyDeviceToDevice = 3

    class cudaMemoryType(enum.IntEnum):
        cudaMemoryTypeDevice = 2
        cudaMemoryTypeManaged = 3

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, devices: int = 1, memory: int = 1 << 30) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.device, self.total = devices, 0, memory
        self.memory: dict[int, tuple[str, Any]] = {}
        self.handles: dict[int, str] = {}
        self.fail: dict[str, Code] = {}  # call to the code it returns
        self.calls: list[str] = []
        self.queues: dict[int, deque[tuple[int, Work]]] = {}
        self.events: dict[int, tuple[int, int] | None] = {}  # event to (stream, ticket)
        self.capturing: dict[int, list[Work]] = {}
        self._capturers: dict[int, int] = {}  # stream to the thread that captures it
        self.graphs: dict[int, list[Work]] = {}
        self.on_other_device: set[int] = set()
        self.waited_for: list[int | None] = []
        self.written: set[int] = set()  # addresses on the device that something was copied to
        self.context = 0  # the driver's current context: 0 for none, 1 + index for a primary one, others are foreign
        self._next = 1000

    # --- what tests ask ---

    @property
    def live(self) -> int:
        return len(self.memory) + len(self.handles)

    @property
    def device_bytes(self) -> int:
        return sum(len(block) for where, block in self.memory.values() if where == "device")

    def block(self, address: int, where: str, size: int) -> int:
        """The address, if ``size`` bytes from it on are allocated there."""
        for start, (kind, block) in self.memory.items():
            if start <= address < start + len(block):
                assert kind == where, f"{address} is {kind} memory"
                assert address + size <= start + len(block), f"{size} bytes do not fit"
                return int(address)
        raise AssertionError(f"{address} is not allocated")

    def queue(self, stream: int, work: Work) -> None:
        """Put work into a stream, as a library does that was given the stream's number."""
        assert self.handles[stream] == "stream"
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            self.queues[stream].append((self._ticket(), work))

    # --- how it works ---

    def _ticket(self) -> int:
        self._next += 1
        return self._next

    def _advance(self, stream: int, ticket: int | None = None) -> None:
        """Do the work of a stream up to a ticket, or all of it."""
        queue = self.queues[stream]
        while queue and (ticket is None or queue[0][0] <= ticket):
            queue.popleft()[1]()

    def _code(self, name: str) -> Code:
        self.calls.append(name)
        return self.fail.get(name, Code.cudaSuccess)

    def _allocate(self, name: str, where: str, size: int) -> tuple[Any, ...]:
        self._outside_of_captures(name)
        if code := self._code(name):
            return code, None
        if where == "device" and self.device_bytes + size > self.total:
            return Code.cudaErrorMemoryAllocation, None
        whole = (ctypes.c_uint8 * (max(size, 1) + 256))()
        start = -(-ctypes.addressof(whole) // 256) * 256  # aligned, as CUDA does
        block = (ctypes.c_uint8 * max(size, 1)).from_buffer(whole, start - ctypes.addressof(whole))
        self.memory[start] = (where, block)
        return Code.cudaSuccess, start

    def _free(self, name: str, where: str, address: int) -> tuple[Any, ...]:
        self._outside_of_captures(name)
        assert not any(self.queues.values()), "memory is freed while the GPU may still use it"
        assert self.memory.pop(int(address))[0] == where
        self.written.discard(int(address))
        return (self._code(name),)

    def _outside_of_captures(self, name: str) -> None:
        """What CUDA refuses in a thread that captures, in the mode ThreadLocal."""
        assert threading.get_ident() not in self._capturers.values(), f"{name} while this thread captures a graph"

    def _make(self, name: str, what: str) -> tuple[Any, ...]:
        if code := self._code(name):
            return code, None
        handle = self._ticket()
        self.handles[handle] = what
        return Code.cudaSuccess, handle

    # --- the API ---

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return self._code("cudaGetDevice"), self.device

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        if index >= self.devices:
            return (Code.cudaErrorInvalidDevice,)
        self.device, self.context = index, 1 + index
        return (self._code("cudaSetDevice"),)

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return Code.cudaSuccess, self.context

    def cuCtxSetCurrent(self, context: int) -> tuple[Any, ...]:
        self.context = context
        if 1 <= context <= self.devices:
            self.device = context - 1
        return (Code.cudaSuccess,)

    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, ...]:
        where = [kind for start, (kind, block) in self.memory.items() if start <= address < start + len(block)]
        kind = self.cudaMemoryType.cudaMemoryTypeDevice if "device" in where else 0
        elsewhere = address in self.on_other_device
        return Code.cudaSuccess, types.SimpleNamespace(type=kind, device=1 if elsewhere else 0)

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        self.waited_for.append(None)
        for stream in self.queues:
            self._advance(stream)
        return (self._code("cudaDeviceSynchronize"),)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self._code("cudaMemGetInfo"), self.total - self.device_bytes, self.total

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFree", "device", address)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("cudaHostAlloc", "host", size)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", "host", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        code, handle = self._make("cudaStreamCreateWithFlags", "stream")
        if handle is not None:
            self.queues[handle] = deque()
        return code, handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if stream not in self.handles:  # another library's
            self.waited_for.append(stream)
            return (self._code("cudaStreamSynchronize"),)
        assert self.handles[stream] == "stream"
        assert stream not in self.capturing, "a stream is waited for while it is captured"
        if code := self._code("cudaStreamSynchronize"):
            self.queues[stream].clear()
            return (code,)
        self._advance(stream)
        return (Code.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        recorded = self.events[event]
        if recorded is not None:
            self.queue(stream, lambda: self._advance(*recorded))
        return (self._code("cudaStreamWaitEvent"),)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        assert self.handles.pop(stream) == "stream"
        self._advance(stream)
        del self.queues[stream]
        return (self._code("cudaStreamDestroy"),)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        code, handle = self._make("cudaEventCreateWithFlags", "event" if flags & 2 else "timed event")
        if handle is not None:
            self.events[handle] = None
        return code, handle

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        assert self.handles[event] in ("event", "timed event")
        self.queue(stream, lambda: None)
        self.events[event] = (stream, self.queues[stream][-1][0])
        return (self._code("cudaEventRecord"),)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        if recorded := self.events[event]:
            self._advance(*recorded)
        return (self._code("cudaEventSynchronize"),)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        assert self.handles[start] == self.handles[end] == "timed event"
        first, last = self.events[start], self.events[end]
        assert first is not None
        assert last is not None
        assert not any(ticket <= last[1] for ticket, _ in self.queues[last[0]]), "the event has not happened"
        return self._code("cudaEventElapsedTime"), float(last[1] - first[1])

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        assert self.handles.pop(event) in ("event", "timed event")
        del self.events[event]
        return (self._code("cudaEventDestroy"),)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        to, of = {1: ("device", "host"), 2: ("host", "device"), 3: ("device", "device")}[int(kind)]
        self.block(target, to, size), self.block(source, of, size)
        if to == "device":
            self.written.add(int(target))
        self.queue(stream, lambda: ctypes.memmove(self.block(target, to, size), self.block(source, of, size), size))
        return (self._code("cudaMemcpyAsync"),)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        self.capturing[stream] = []
        self._capturers[stream] = threading.get_ident()
        return (self._code("cudaStreamBeginCapture"),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        work = self.capturing.pop(stream)
        assert self._capturers.pop(stream) == threading.get_ident(), "another thread ends a capture"
        code, handle = self._make("cudaStreamEndCapture", "recorded graph")
        if handle is None:
            return code, None
        self.graphs[handle] = work
        return code, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        code, handle = self._make("cudaGraphInstantiate", "graph")
        if handle is not None:
            self.graphs[handle] = list(self.graphs[graph])
        return code, handle

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        assert self.handles.pop(graph) == "recorded graph"
        del self.graphs[graph]
        return (self._code("cudaGraphDestroy"),)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        assert self.handles[graph] == "graph"
        for work in self.graphs[graph]:
            self.queue(stream, work)
        return (self._code("cudaGraphLaunch"),)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        assert self.handles.pop(graph) == "graph"
        assert not any(self.queues.values()), "a graph is destroyed while it may run"
        del self.graphs[graph]
        return (self._code("cudaGraphExecDestroy"),)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (Code.cudaSuccess,)

    def cudaGetErrorString(self, code: Code) -> tuple[Any, ...]:
        return Code.cudaSuccess, f"text of {code.name}".encode()
