"""The CUDA interface of the TensorRT runner, and the texts of its errors.

`pipeline.runners.cuda.bindings` implements it with cuda-bindings, `pipeline.runners.cuda.pycuda` with PyCUDA, for
programs with a context of PyCUDA. `pipeline.runners.cuda.resources` owns the memory, streams and events. Python 3.10
syntax.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

from export.errors import RunnerError

Direction = Literal["to_device", "to_host", "on_device"]
Kind = Literal["device buffer", "pinned buffer", "stream", "event", "graph"]  # of a resource

# After one of these, every later call in the process fails as well. PyCUDA reports only the text, not the name.
STICKY: dict[str, str] = {
    "cudaErrorIllegalAddress": "an illegal memory access",
    "cudaErrorLaunchTimeout": "timed out",
    "cudaErrorHardwareStackError": "hardware stack error",
    "cudaErrorIllegalInstruction": "an illegal instruction",
    "cudaErrorMisalignedAddress": "misaligned address",
    "cudaErrorInvalidAddressSpace": "not supported on global/shared address space",
    "cudaErrorInvalidPc": "invalid program counter",
    "cudaErrorLaunchFailure": "unspecified launch failure",
    "cudaErrorAssert": "device-side assert",
    "cudaErrorECCUncorrectable": "uncorrectable ECC",
    "cudaErrorNvlinkUncorrectable": "uncorrectable NVLink",
    "cudaErrorContained": "access of peer GPU memory",
    "cudaErrorTensorMemoryLeak": "tensor memory not completely freed",
    "cudaErrorExternalDevice": "external entity",
    "cudaErrorUnknown": "unknown error",
}
RESTART = " Restart this process: after this error the GPU context takes no further work."
SMALLER = " Use a smaller batch profile, or free the GPU's memory (see nvidia-smi)."


class CudaApi(ABC):
    """CUDA calls of the runner. Streams, events and graphs are opaque handles of the implementation.

    Every failure is a `RunnerError`; a lack of memory is an `OutOfMemoryError`.
    """

    name: str
    graphs: bool  # whether the work of a stream can be captured

    @abstractmethod
    def scope(self, device: int) -> AbstractContextManager[None]:
        """Make a device current in this thread for a with block, and restore the previous one after it."""

    @abstractmethod
    def malloc(self, nbytes: int) -> int:
        """Allocate device memory and return its address."""

    @abstractmethod
    def host_alloc(self, nbytes: int) -> int:
        """Allocate page-locked host memory and return its address."""

    @abstractmethod
    def release(self, kind: Kind, handle: Any) -> None:
        """Release a resource."""

    @abstractmethod
    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total memory of the device in bytes."""

    @abstractmethod
    def stream_create(self) -> Any:
        """Create a stream that does not synchronize with the default stream."""

    @abstractmethod
    def stream_number(self, stream: Any) -> int:
        """Return the handle as the integer that TensorRT and DLPack take."""

    @abstractmethod
    def stream_synchronize(self, stream: Any) -> None:
        """Wait until the stream is idle; errors of its work are raised here."""

    @abstractmethod
    def stream_wait_event(self, stream: Any, event: Any) -> None:
        """Make later work in the stream wait for an event."""

    @abstractmethod
    def event_create(self, timed: bool) -> Any:
        """Create an event; without timing it costs less."""

    @abstractmethod
    def event_record(self, event: Any, stream: Any) -> None:
        """Record the event after the work that is in the stream now."""

    @abstractmethod
    def event_synchronize(self, event: Any) -> None:
        """Wait until the event has completed."""

    @abstractmethod
    def event_elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the time between two timed, completed events in milliseconds."""

    @abstractmethod
    def memcpy_async(self, target: int, source: int, nbytes: int, direction: Direction, stream: Any) -> None:
        """Queue a copy; host memory must be page-locked."""

    @abstractmethod
    def is_on_device(self, address: int, device: int) -> bool:
        """Whether an address is in the memory of this device."""

    @abstractmethod
    def wait_for_foreign_stream(self, number: int | None) -> None:
        """Wait for another library's stream, given by its integer handle, or for the whole device (None)."""

    def capture(self, stream: Any, enqueue: Callable[[], object]) -> Any:
        """Capture the work that ``enqueue`` puts into the stream, without running it; return an executable graph."""
        raise self._lacks_graphs()

    def graph_launch(self, graph: Any, stream: Any) -> None:
        """Queue a graph."""
        raise self._lacks_graphs()

    def _lacks_graphs(self) -> RunnerError:
        return RunnerError(
            f"Expected CUDA graphs. Received: {self.name}, which has none. Choose runtime.cuda: bindings."
        )
