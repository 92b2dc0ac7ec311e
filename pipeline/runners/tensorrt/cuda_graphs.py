"""CUDA graphs: a small batch costs mostly the launching of its kernels, and a graph launches them with one call.

A graph holds the state of its execution context, so each has a context of its own (as NVIDIA's developer guide
advises, "CUDA Graphs"); they share the activation memory of the lane that they run in. TensorRT-RTX captures graphs
itself. Python 3.10 syntax.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from export.errors import RunnerError
from pipeline.runners.cuda.resources import DeviceBuffer, Graph
from pipeline.runners.tensorrt.buffers import BufferRing, Lane
from pipeline.runners.tensorrt.engine import EngineContext, EngineSession

log = logging.getLogger(__name__)

LIMIT = 8  # each keeps a context; who runs more batch sizes than this runs the others without a graph
_AFTER = 2  # the request of a batch size that gets a graph: what comes once is not worth one

Key = tuple[int, tuple[str, ...]]


class Graphs:
    """A graph for each batch size that comes again; it computes the first slot's batch and fetches outputs.

    Args:
        session: the engine.
        memory: activation memory, that of the lane.
        lane: where they run.
        ring: its first slot is what they work on.
        wanted: whether to make any.

    Attributes:
        refusals: batch sizes that came again and run without a graph although they are wanted, and why.
    """

    def __init__(
        self, session: EngineSession, memory: DeviceBuffer, lane: Lane, ring: BufferRing, wanted: bool
    ) -> None:
        self.refusals: dict[int, str] = {}
        self._wanted = wanted
        self._session = session
        self._memory = memory
        self._lane = lane
        self._ring = ring
        self._asked: Counter[Key] = Counter()
        self._refused: set[Key] = set()
        self._launchers: dict[Key, Callable[[], None]] = {}
        self._stack = ExitStack()  # the graphs and contexts of the launchers

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that there are graphs for."""
        return tuple(sorted({batch for batch, _ in self._launchers}))

    def launch(self, batch: int, names: Sequence[str]) -> bool:
        """Queue the computing of a batch and the download of its rows, if there is a graph for it.

        Returns:
            bool: False where nothing was queued: the caller goes the way without a graph.
        """
        key = (batch, tuple(names))
        if key not in self._launchers and not (self._wanted and self._make(key)):
            return False
        self._launchers[key]()
        return True

    def _make(self, key: Key) -> bool:
        self._asked[key] += 1
        if self._asked[key] < _AFTER or key in self._refused:
            return False
        cuda = self._lane.stream.cuda
        if not (cuda.graphs or self._session.trt.jit):
            return self._refuse(key, f"{cuda.name} has none; runtime.cuda: bindings has", logging.INFO)
        if len(self._launchers) >= LIMIT:
            return self._refuse(key, f"there are {LIMIT} already, which is as many as are kept", logging.INFO)
        try:
            with ExitStack() as made:
                self._launchers[key] = self._record(key, made)
                self._stack.push(made.pop_all())
        except RunnerError as error:
            return self._refuse(key, str(error), logging.WARNING)
        self._session.keep_kernels()
        return True

    def _refuse(self, key: Key, why: str, level: int) -> bool:
        """Note why a batch size gets no graph, and say it once."""
        self._refused.add(key)
        if key[0] not in self.refusals:
            self.refusals[key[0]] = why
            log.log(level, "batches of %d run without a CUDA graph: %s", key[0], why)
        return False

    def _record(self, key: Key, stack: ExitStack) -> Callable[[], None]:
        """Prepare a context, and a graph unless TensorRT makes its own; give what queues the work."""
        stream = self._lane.stream
        context = self._session.context(stream, graph=True)
        stack.callback(context.close)
        context.use_memory(self._memory)
        context.prepare(key[0], self._ring.slots[0].addresses)
        # Once without a graph: TensorRT finishes its preparations for a new shape in the first run, and what fails in
        # it shows here.
        context.enqueue(stream)
        stream.synchronize()
        if not context.capturable(stream):
            raise RunnerError("Expected an engine that can be captured. Received: one that TensorRT says cannot be.")
        enqueue = partial(self._enqueue, context, key)
        if self._session.trt.jit:
            return enqueue
        return partial(stack.enter_context(Graph(stream.cuda, stream, enqueue)).launch, stream)

    def _enqueue(self, context: EngineContext, key: Key) -> None:
        batch, names = key
        context.enqueue(self._lane.stream)
        self._ring.download(self._ring.slots[0], names, batch, self._lane.stream)

    def close(self) -> None:
        """Give back the graphs, each before the context that it refers to."""
        self._launchers.clear()
        self._stack.close()
