"""An open engine and its resources on the GPU: contexts, streams, buffers and graphs.

Python 3.10 syntax, numpy alone.
"""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import OutOfMemoryError, RunnerError
from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import INPUT, OUTPUTS, TOP_OUTPUTS, Sidecar
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.cuda.api import CudaApi
from pipeline.runners.cuda.resources import DeviceBuffer, PinnedBuffer, Stream
from pipeline.runners.tensorrt.buffers import BufferRing, Lane, Tensor
from pipeline.runners.tensorrt.cuda_graphs import CudaGraphs
from pipeline.runners.tensorrt.engine import EngineContext, EngineSession

log = logging.getLogger(__name__)


class _WholeMemoryError(OutOfMemoryError):
    """A lack of memory whose amount does not depend on the batch size."""


class OpenEngine:
    """A loaded engine and the memory for its batches. Its device must be current when it is opened and closed.

    Args:
        cuda: the CUDA that runs it.
        trt: the TensorRT that loads it.
        plan_path: the plan.
        sidecar: returned for it by `export.tensorrt.compatibility.check_engine`.
        options: how to run it.

    Attributes:
        tensors: by name, the input first.
        min_batch: the smallest batch of the engine.
        max_batch: the largest batch of a slot: that of the profile, or a smaller one that fits into GPU memory.
        ring: moves batches.
        graphs: launches repeated batch sizes.

    Raises:
        OutOfMemoryError: not even the engine's smallest batch fits.
        RunnerError: the engine does not match its sidecar, or TensorRT or CUDA failed. All memory is released then.
    """

    def __init__(
        self, cuda: CudaApi, trt: TensorRT, plan_path: Path, sidecar: Sidecar, options: RuntimeOptions
    ) -> None:
        self.cuda = cuda
        self.tensors = tensors_of(plan_path, sidecar)
        self.min_batch: int = sidecar.profile.min
        self.max_batch: int = sidecar.profile.max
        self._profile = sidecar.profile
        self._plan_path = plan_path
        self._options = options
        self._pinned: list[PinnedBuffer] = []
        self._rows: dict[str, DeviceBuffer] = {}
        with ExitStack() as stack:
            session = EngineSession(trt, plan_path, sidecar, options.host_code)
            stack.callback(session.close)
            self._check_tensors(session.engine)
            stack.push(self._allocate_what_fits(session))
            self._stack = stack.pop_all()

    def _allocate_what_fits(self, session: EngineSession) -> ExitStack:
        while True:
            try:
                with ExitStack() as attempt:
                    self._allocate(session, attempt)
                    return attempt.pop_all()
            except OutOfMemoryError as error:
                smaller = max(self.max_batch // 2, self.min_batch)
                if smaller == self.max_batch or isinstance(error, _WholeMemoryError):
                    raise
                free, total = self.cuda.memory_info()
                fixed = f"; {session.activation_bytes / 2**20:.0f} MiB of activation memory stay, whatever the batch"
                log.warning(
                    "%s: the GPU lacks memory for batches of %d (%.0f of %.0f MiB are free); it runs batches of %d%s",
                    self._plan_path,
                    self.max_batch,
                    free / 2**20,
                    total / 2**20,
                    smaller,
                    "" if session.memory_follows_batch else fixed,
                )
                self.max_batch = smaller

    def _allocate(self, session: EngineSession, stack: ExitStack) -> None:
        """Create contexts, streams and buffers for batches up to `max_batch`; they are released in reverse order."""
        lanes, memories = zip(*(self._make_lane(session, stack) for _ in range(self._options.contexts)))
        self.ring = BufferRing(self.cuda, stack, list(self.tensors.values()), self.max_batch, self.min_batch, lanes)
        self.graphs = CudaGraphs(session, memories[0], lanes[0], self.ring, self._options.graphs)
        stack.callback(self._release)
        # Run the largest batch once: libraries load and compile kernels in the first run, and may lack memory for it.
        for lane in lanes:
            lane.run(self.max_batch, self.ring.slots[0].addresses)
            lane.stream.synchronize()
        session.keep_kernels()

    def _make_lane(self, session: EngineSession, stack: ExitStack) -> tuple[Lane, DeviceBuffer]:
        """Create a stream, its contexts and their activation memory.

        On TensorRT-RTX the batch sizes of the profile, and the largest that fits, get their own kernels, with and
        without a graph. All others share one set of kernels until they are repeated (see `Graphs`), so that a last
        batch of 7 images does not wait for the compiler.
        """
        stream = stack.enter_context(Stream(self.cuda))
        tuned = session.context(stream)
        stack.callback(tuned.close)
        memory = self._activations(session, tuned, stack)
        tuned.use_memory(memory)
        sizes = frozenset({self.min_batch, min(self._profile.opt, self.max_batch), self.max_batch})
        context = tuned
        if session.trt.jit and len(sizes) <= self.max_batch - self.min_batch:  # there are other sizes
            context = session.context(stream, own_kernels=False)
            stack.callback(context.close)
            context.use_memory(memory)
        return Lane(stream, context, tuned, sizes), memory

    def _activations(self, session: EngineSession, context: EngineContext, stack: ExitStack) -> DeviceBuffer:
        follows = session.memory_follows_batch
        whole = self.max_batch == self._profile.max or not follows
        needed = session.activation_bytes if whole else context.bytes_for(self.max_batch)
        try:
            return stack.enter_context(DeviceBuffer(self.cuda, max(needed, 1)))
        except OutOfMemoryError as error:
            if follows:
                raise
            raise _WholeMemoryError(
                f"Expected {needed / 2**20:.0f} MiB of GPU memory for the activations of {self._plan_path}: "
                f"{session.trt.flavour} {session.trt.version} needs all of it for every batch size. "
                f"Received: {error} Fewer runtime.contexts need less too."
            ) from error

    def _release(self) -> None:
        """Release what was allocated after the opening. Nothing runs: every call waits for its work."""
        self.graphs.close()
        for buffer in (*self._pinned, *self._rows.values()):
            buffer.close()

    def _check_tensors(self, engine: Any) -> None:
        """Compare the engine with its sidecar, which the sizes of buffers come from."""
        for name, tensor in self.tensors.items():
            shape = (self.max_batch, *tensor.row)
            received = (self.max_batch, *map(int, tuple(engine.get_tensor_shape(name))[1:]))
            if name == INPUT and received == shape:
                received = tuple(map(int, engine.get_tensor_profile_shape(name, 0)[2]))
            if received != shape:
                raise RunnerError(
                    f"Expected {name} of shape {shape} at the largest batch, as the sidecar says. "
                    f"Received: an engine with {received}. Rebuild the engine."
                )

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        """Allocate page-locked uint8 memory, released when the engine is closed."""
        self._pinned.append(PinnedBuffer(self.cuda, shape, np.uint8))
        return self._pinned[-1].array

    def is_pinned(self, pixels: np.ndarray) -> bool:
        """Whether pixels are contiguous in memory that `pinned` allocated."""
        start = pixels.ctypes.data
        return pixels.flags.c_contiguous and any(
            buffer.handle <= start and start + pixels.nbytes <= buffer.handle + buffer.nbytes for buffer in self._pinned
        )

    def rows(self, name: str, count: int) -> DeviceBuffer:
        """Return device memory for ``count`` rows of an output, the same memory until more rows are needed."""
        nbytes = count * self.tensors[name].row_bytes
        if name in self._rows and self._rows[name].nbytes < nbytes:
            self._rows.pop(name).close()
        if name not in self._rows:
            self._rows[name] = DeviceBuffer(self.cuda, nbytes)
        return self._rows[name]

    def close(self) -> None:
        """Release everything."""
        self._stack.close()


def tensors_of(plan_path: Path, sidecar: Sidecar) -> dict[str, Tensor]:
    """Return the tensors of an engine by name, from its sidecar, the input first.

    Raises:
        RunnerError: a tensor is missing, or has a wrong shape or dtype.
    """
    listed = {tensor.name: tensor for tensor in sidecar.tensors}
    names = [INPUT, *OUTPUTS, *(name for name in TOP_OUTPUTS if name in listed)]
    try:
        tensors = {name: Tensor(name, listed[name].shape[1:], np.dtype(listed[name].dtype)) for name in names}
        if [len(tensor.row) for tensor in tensors.values()] != [3] + [1] * (len(names) - 1):
            raise ValueError("wrong shapes")
    except (KeyError, TypeError, ValueError) as error:
        received = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in sidecar.tensors) or "none"
        raise RunnerError(
            f"Expected the tensors {INPUT} and {', '.join(OUTPUTS)} in the sidecar of {plan_path}. "
            f"Received: {received}. Rebuild the engine."
        ) from error
    return tensors
