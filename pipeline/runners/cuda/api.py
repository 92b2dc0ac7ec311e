"""What the TensorRT runner asks of CUDA: a protocol, and the choice between its two implementations.

`cuda_bindings` follows it by cuda-bindings, `cuda_pycuda` by PyCUDA, for programs that bring its context. What CUDA
gave is owned by the classes of `cuda_resources`. Python 3.10 syntax; both packages are imported when they are chosen.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

from export.errors import RunnerError

Direction = Literal["to_device", "to_host", "on_device"]
Kind = Literal["device buffer", "pinned buffer", "stream", "event", "graph"]  # of what CUDA gives

# After one of these every later call in the process fails as well; the words are PyCUDA's, which has no names.
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
    """CUDA as the runner needs it. Streams, events and graphs are whatever the implementation returned for them.

    Every failure is a `RunnerError`; what is a lack of memory, an `OutOfMemoryError`.
    """

    name: str
    graphs: bool  # whether the work of a stream can be captured

    @abstractmethod
    def scope(self, device: int) -> AbstractContextManager[None]:
        """Make a device current in this thread for a with block; afterwards it is as it was."""

    @abstractmethod
    def malloc(self, nbytes: int) -> int:
        """Allocate device memory; give its address."""

    @abstractmethod
    def host_alloc(self, nbytes: int) -> int:
        """Allocate page-locked host memory; give its address."""

    @abstractmethod
    def release(self, kind: Kind, handle: Any) -> None:
        """Give back what was given."""

    @abstractmethod
    def memory_info(self) -> tuple[int, int]:
        """Give the free and the total memory of the device in bytes."""

    @abstractmethod
    def stream_create(self) -> Any:
        """Make a stream that does not wait for the default stream."""

    @abstractmethod
    def stream_number(self, stream: Any) -> int:
        """Give the handle as the number that TensorRT and DLPack take."""

    @abstractmethod
    def stream_synchronize(self, stream: Any) -> None:
        """Wait until everything in the stream is done; errors of that work are raised here."""

    @abstractmethod
    def stream_wait_event(self, stream: Any, event: Any) -> None:
        """Let what is put into the stream from now on wait for an event."""

    @abstractmethod
    def event_create(self, timed: bool) -> Any:
        """Make an event; untimed ones cost less."""

    @abstractmethod
    def event_record(self, event: Any, stream: Any) -> None:
        """Put the event behind what is in the stream now."""

    @abstractmethod
    def event_synchronize(self, event: Any) -> None:
        """Wait until the event has happened."""

    @abstractmethod
    def event_elapsed_ms(self, start: Any, end: Any) -> float:
        """Give the time between two timed events that have happened, in milliseconds."""

    @abstractmethod
    def memcpy_async(self, target: int, source: int, nbytes: int, direction: Direction, stream: Any) -> None:
        """Queue a copy; host memory must be page-locked."""

    @abstractmethod
    def is_on_device(self, address: int, device: int) -> bool:
        """Whether an address is in the memory of this device."""

    @abstractmethod
    def wait_for_foreign_stream(self, number: int | None) -> None:
        """Wait for another library's stream, given as its number, or for the whole device (None)."""

    def capture(self, stream: Any, enqueue: Callable[[], object]) -> Any:
        """Record what this thread puts into the stream, instead of running it; give a graph that can be launched."""
        raise self._lacks_graphs()

    def graph_launch(self, graph: Any, stream: Any) -> None:
        """Queue a graph."""
        raise self._lacks_graphs()

    def _lacks_graphs(self) -> RunnerError:
        return RunnerError(
            f"Expected CUDA graphs. Received: {self.name}, which has none. Choose runtime.cuda: bindings."
        )
