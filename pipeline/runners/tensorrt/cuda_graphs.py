"""CUDA graphs for repeated batch sizes: a graph launches all kernels with one call, which dominates small batches.

A graph depends on the state of its execution context, so each has its own context (as NVIDIA's developer guide
advises, "CUDA Graphs"); they share the activation memory of their lane. TensorRT-RTX captures graphs itself. Python
3.10 syntax.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from export.errors import RunnerError
from pipeline.runners.cuda.resources import DeviceBuffer, Graph
from pipeline.runners.tensorrt.buffers import BufferRing, Lane
from pipeline.runners.tensorrt.engine import EngineSession

log = logging.getLogger(__name__)

MAX_GRAPHS = 8  # graphs, because each needs a context; further batch sizes run without one
_AFTER = 2  # requests of a batch size before it gets a graph

Key = tuple[int, tuple[str, ...]]


class CudaGraphs:
    """A graph for each repeated batch size; it runs the batch of the first slot and downloads the outputs.

    Args:
        session: the engine.
        memory: activation memory of the lane.
        lane: where the graphs run.
        ring: whose first slot the graphs use.
        enabled: whether to use graphs.

    Attributes:
        refusals: repeated batch sizes that run without a graph although graphs are enabled, and why.
    """

    def __init__(
        self, session: EngineSession, memory: DeviceBuffer, lane: Lane, ring: BufferRing, enabled: bool
    ) -> None:
        self.refusals: dict[int, str] = {}
        self._enabled = enabled
        self._session = session
        self._memory = memory
        self._lane = lane
        self._ring = ring
        self._requests: Counter[Key] = Counter()
        self._refused: set[Key] = set()
        self._launchers: dict[Key, Callable[[], None]] = {}
        self._stack = ExitStack()  # the graphs and contexts of the launchers

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that run by a graph."""
        return tuple(sorted({batch for batch, _ in self._launchers}))

    def launch(self, batch: int, names: Sequence[str]) -> bool:
        """Queue the inference of a batch and the download of its rows, if there is a graph for it.

        Returns:
            bool: False where nothing was queued and the caller has to run the batch without a graph.
        """
        key = (batch, tuple(names))
        if key not in self._launchers and not (self._enabled and self._add(key)):
            return False
        self._launchers[key]()
        return True

    def _add(self, key: Key) -> bool:
        self._requests[key] += 1
        if self._requests[key] < _AFTER or key in self._refused:
            return False
        cuda = self._lane.stream.cuda
        if not (cuda.graphs or self._session.trt.jit):
            return self._refuse(key, f"{cuda.name} has none; runtime.cuda: bindings has", logging.INFO)
        if len(self._launchers) >= MAX_GRAPHS:
            return self._refuse(key, f"there are {MAX_GRAPHS} already, which is the limit", logging.INFO)
        try:
            with ExitStack() as stack:
                self._launchers[key] = self._capture(key, stack)
                self._stack.push(stack.pop_all())
        except RunnerError as error:
            return self._refuse(key, str(error), logging.WARNING)
        self._session.keep_kernels()
        return True

    def _refuse(self, key: Key, reason: str, level: int) -> bool:
        """Record why a batch size gets no graph, and log it once."""
        self._refused.add(key)
        if key[0] not in self.refusals:
            self.refusals[key[0]] = reason
            log.log(level, "batches of %d run without a CUDA graph: %s", key[0], reason)
        return False

    def _capture(self, key: Key, stack: ExitStack) -> Callable[[], None]:
        """Prepare a context, and a graph unless TensorRT captures its own; return the function that queues the work."""
        (batch, names), stream, slot = key, self._lane.stream, self._ring.slots[0]
        context = self._session.context(stream, graph=True)
        stack.callback(context.close)
        context.use_memory(self._memory)
        context.prepare(batch, slot.addresses)
        # Run once without a graph: TensorRT completes its setup for a new shape in the first run, and errors of that
        # run are raised here.
        context.enqueue(stream)
        stream.synchronize()
        if not context.capturable(stream):
            raise RunnerError("Expected an engine that can be captured. Received: one that TensorRT says cannot be.")

        def enqueue() -> None:
            context.enqueue(stream)
            self._ring.download(slot, names, batch, stream)

        if self._session.trt.jit:
            return enqueue
        return partial(stack.enter_context(Graph(stream.cuda, stream, enqueue)).launch, stream)

    def close(self) -> None:
        """Release the graphs, each before its context."""
        self._launchers.clear()
        self._stack.close()
