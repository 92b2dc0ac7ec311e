"""An engine with its memory on the GPU: contexts, streams, buffers and graphs, from opening to closing.

Python 3.10 syntax, numpy alone.
"""

import logging
from collections.abc import Sequence
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
from pipeline.runners.tensorrt.cuda_graphs import Graphs
from pipeline.runners.tensorrt.engine import EngineContext, EngineSession

log = logging.getLogger(__name__)


class _WholeMemoryError(OutOfMemoryError):
    """Memory that a smaller batch does not need less of."""


class OpenEngine:
    """An engine that is loaded, and the memory for its batches. Made and closed in a scope of its device.

    Args:
        cuda: the CUDA that it is run by.
        trt: the TensorRT that loads it.
        plan_path: the plan.
        sidecar: what `export.tensorrt.sidecar.check_engine` gave for it.
        options: how it is run.

    Attributes:
        tensors: by name, the input first.
        min_batch: the smallest batch that the engine takes.
        max_batch: images a slot: those of the profile, or what the GPU has memory for.
        ring: moves batches.
        graphs: launches batches that come again.

    Raises:
        OutOfMemoryError: not even the engine's smallest batch fits.
        RunnerError: the engine is not what its sidecar says, or TensorRT or CUDA failed. Nothing stays allocated.
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
                self._halve(session, error)

    def _halve(self, session: EngineSession, error: OutOfMemoryError) -> None:
        smaller = max(self.max_batch // 2, self.min_batch)
        if smaller == self.max_batch or isinstance(error, _WholeMemoryError):
            raise error
        free, total = self.cuda.memory_info()
        whole = f"; {session.activation_bytes / 2**20:.0f} MiB of activation memory stay, whatever the batch"
        log.warning(
            "%s: the GPU has not the memory for batches of %d (%.0f of %.0f MiB are free); it runs batches of %d%s",
            self._plan_path,
            self.max_batch,
            free / 2**20,
            total / 2**20,
            smaller,
            "" if session.memory_follows_batch else whole,
        )
        self.max_batch = smaller

    def _allocate(self, session: EngineSession, stack: ExitStack) -> None:
        """Make contexts, streams and buffers for batches up to `max_batch`; they are released in reverse."""
        pairs = [self._make_lane(session, stack) for _ in range(self._options.contexts)]
        lanes = [lane for lane, _ in pairs]
        tensors = list(self.tensors.values())
        self.ring = BufferRing(self.cuda, stack, tensors, self.max_batch, self.min_batch, lanes)
        self.graphs = Graphs(session, pairs[0][1], lanes[0], self.ring, self._options.graphs)
        stack.callback(self._release)
        self._run_once(lanes)
        session.keep_kernels()

    def _make_lane(self, session: EngineSession, stack: ExitStack) -> tuple[Lane, DeviceBuffer]:
        """Make a stream, its contexts and their activation memory.

        On TensorRT-RTX the sizes that the profile names, and the largest that fits, get kernels of their own, with and
        without a graph. All others share a set until they come again (see `Graphs`): a last piece of 7 images must not
        wait for a compiler.
        """
        stream = stack.enter_context(Stream(self.cuda))
        tuned = session.context(stream)
        stack.callback(tuned.close)
        memory = self._activations(session, tuned, stack)
        tuned.use_memory(memory)
        named = (self.min_batch, self._profile.opt, self.max_batch)
        sizes = frozenset(size for size in named if size <= self.max_batch)
        context = tuned
        if session.trt.jit and len(sizes) <= self.max_batch - self.min_batch:  # there are others
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
                f"{session.trt.flavour} {session.trt.version} wants them whole, however small the batch. "
                f"Received: {error} Fewer runtime.contexts need less too."
            ) from error

    def _run_once(self, lanes: Sequence[Lane]) -> None:
        """Run the largest batch: libraries load and compile kernels in the first run, and may lack memory for it."""
        for lane in lanes:
            lane.run(self.max_batch, self.ring.slots[0].addresses)
            lane.stream.synchronize()

    def _release(self) -> None:
        """Give back what was made after the opening. Nothing runs: every call waits for its work."""
        self.graphs.close()
        for buffer in (*self._pinned, *self._rows.values()):
            buffer.close()

    def _check_tensors(self, engine: Any) -> None:
        """Compare the engine with its sidecar: buffers are allocated from the sidecar."""
        for name, tensor in self.tensors.items():
            shape = (self.max_batch, *tensor.row)
            found = (self.max_batch, *(int(size) for size in tuple(engine.get_tensor_shape(name))[1:]))
            if name == INPUT and found == shape:
                found = tuple(int(size) for size in engine.get_tensor_profile_shape(name, 0)[2])
            if found != shape:
                raise RunnerError(
                    f"Expected {name} of shape {shape} at the largest batch, as the sidecar says. "
                    f"Received: an engine with {found}. Rebuild the engine."
                )

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        """Allocate page-locked uint8 memory, given back when the engine is closed."""
        self._pinned.append(PinnedBuffer(self.cuda, shape, np.uint8))
        return self._pinned[-1].array

    def is_pinned(self, pixels: np.ndarray) -> bool:
        """Whether pixels lie without gaps in memory that `pinned` gave."""
        if not pixels.flags.c_contiguous:
            return False
        start = pixels.ctypes.data
        return any(
            buffer.handle <= start and start + pixels.nbytes <= buffer.handle + buffer.nbytes for buffer in self._pinned
        )

    def rows(self, name: str, count: int) -> DeviceBuffer:
        """Give device memory for ``count`` rows of an output, the same again until more rows are asked for."""
        nbytes = count * self.tensors[name].row_bytes
        have = self._rows.pop(name, None)
        if have is None or have.nbytes < nbytes:
            if have is not None:
                have.close()
            have = DeviceBuffer(self.cuda, nbytes)
        self._rows[name] = have
        return have

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()


def tensors_of(plan_path: Path, sidecar: Sidecar) -> dict[str, Tensor]:
    """Give the tensors that the sidecar lists, the input first."""
    listed = {one.name: one for one in sidecar.tensors}
    names = [INPUT, *OUTPUTS, *(name for name in TOP_OUTPUTS if name in listed)]
    try:
        tensors = {name: Tensor(name, listed[name].shape[1:], np.dtype(listed[name].dtype)) for name in names}
        if [len(tensor.row) for tensor in tensors.values()] != [3] + [1] * (len(names) - 1):
            raise ValueError("wrong shapes")
    except (KeyError, TypeError, ValueError) as error:
        had = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in sidecar.tensors) or "none"
        raise RunnerError(
            f"Expected the tensors {INPUT} and {', '.join(OUTPUTS)} in the sidecar of {plan_path}. "
            f"Received: {had}. Rebuild the engine."
        ) from error
    return tensors
