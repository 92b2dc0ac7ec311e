"""Runs a TensorRT engine: uint8 pixels over the bus, what was asked for back.

The parts: `session` is TensorRT, `cuda` is CUDA, `opened` allocates, `ring` moves batches, `graphs` launches those that
come again with one call, `on_device` takes what lies on the GPU already. Python 3.10 syntax, numpy alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export.errors import DeviceUnavailableError, ProjectError, RunnerError
from export.tensorrt.compatibility import UnsupportedGpuError, check_engine, require_plan, unsupported_gpu
from export.tensorrt.driver import driver_status, supports
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from export.tensorrt.sidecar import INPUT, OUTPUTS, TOP_OUTPUTS, Sidecar, read_sidecar
from export.words import count
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import GraphRunner, check_pixels
from pipeline.runners.cuda.open import find_cuda
from pipeline.runners.cuda.resources import Event
from pipeline.runners.tensorrt.device_input import run_on_device
from pipeline.runners.tensorrt.open_engine import OpenEngine, tensors_of


class DeviceOutputs(NamedTuple):
    """What `TensorRTRunner.infer_device` wrote, on the GPU; valid until the next call unless the caller gave them."""

    logits: Any  # (N, classes) float32
    probabilities: Any  # (N, classes) float32


class TensorRTRunner(GraphRunner):
    """Classifies batches with an engine; by the protocol of `pipeline.runners.base.Runner`. For one thread at a time.

    Buffers are allocated once, for the largest batch; what is larger is split, and its parts overlap.

    Args:
        plan_path: the engine; its sidecar lies beside it.
        options: how it is run. Defaults to `RuntimeOptions()`.

    Attributes:
        sidecar: what the engine's sidecar says.
        precision: "fp32", "fp16" or "int8", from the sidecar.
        max_batch: the largest batch of the engine's profile; while open, the largest that the GPU had memory for.
        graph_top_k: how many best classes the engine itself picks; 0: none.
        classes: how many classes it tells apart.
        metadata: what the ONNX file that it was built from said of itself.

    Raises:
        ProjectError: the sidecar is missing or malformed.
    """

    backend = "tensorrt"

    def __init__(self, plan_path: str | os.PathLike[str], options: RuntimeOptions | None = None) -> None:
        self.plan_path = Path(plan_path)
        self.options = options or RuntimeOptions()
        require_plan(self.plan_path)
        self._describe(read_sidecar(self.plan_path))
        self._engine: OpenEngine | None = None
        self._refusals: Mapping[int, str] = {}
        self._busy = threading.Lock()

    def _describe(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.precision: str = sidecar.precision
        self.max_batch: int = sidecar.profile.max
        tensors = tensors_of(self.plan_path, sidecar)
        height, width, _ = tensors[INPUT].row
        self._size = (height, width)
        (self.classes,) = tensors[OUTPUTS[0]].row
        said = {"classes": sidecar.classes and list(sidecar.classes), "preprocessing": sidecar.preprocessing}
        self.metadata: dict[str, object] = {**sidecar.metadata, **said}
        self.graph_top_k: int = tensors[TOP_OUTPUTS[0]].row[0] if TOP_OUTPUTS[0] in tensors else 0

    def __enter__(self) -> TensorRTRunner:
        """Load the engine and allocate.

        Raises:
            DeviceUnavailableError: no driver, no such GPU, no TensorRT of the engine's flavour, or one that does not
                support the GPU.
            OutOfMemoryError: not even the engine's smallest batch fits.
            RefusedEngineError: see `check_engine`.
            RunnerError: cuda-bindings is missing, or the engine failed.
        """
        # The driver comes first: some TensorRT versions crash the process without one.
        status = driver_status()
        device = self.options.device
        if not status or not 0 <= device < len(status.devices):
            had = status.reason or f"{count(len(status.devices), 'GPU')} and runtime.device {device}"
            raise DeviceUnavailableError(
                f"Expected an NVIDIA GPU to run {self.plan_path}. Received: {had}. "
                "Run it on the GPU machine, or use the ONNX file on this one.",
                reason=had,
            )
        here = status.devices[device].compute_capability
        try:
            trt = self._library(here)
            self._describe(check_engine(self.plan_path, trt, here, status.cuda_version))
        except UnsupportedGpuError as error:
            raise DeviceUnavailableError(str(error), reason=error.reason) from None
        cuda = find_cuda(self.options.cuda)
        with cuda.scope(device):
            self._engine = OpenEngine(cuda, trt, self.plan_path, self.sidecar, self.options)
        self._refusals = self._engine.graphs.refusals
        self.max_batch = self._engine.max_batch
        return self

    def _library(self, compute_capability: str) -> TensorRT:
        flavour, version = self.sidecar.flavour, self.sidecar.tensorrt_version
        try:
            trt = find_tensorrt(flavour)
        except ProjectError as error:
            raise RunnerError(f"{error} The sidecar of {self.plan_path} names it.") from error
        if trt is None and supports(flavour, version, compute_capability) is False:  # installing it would not help
            raise unsupported_gpu(self.plan_path, self.sidecar, version, compute_capability)
        if trt is None:
            why = why_missing().get(flavour, "none")
            raise DeviceUnavailableError(
                f"Expected TensorRT of the flavour {flavour} to run {self.plan_path}. Received: {why}.",
                reason=f"no TensorRT of the flavour {flavour} here",
            )
        return trt

    def __exit__(self, *exc: object) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with engine.cuda.scope(self.options.device):
                engine.close()

    @contextmanager
    def _open(self) -> Iterator[OpenEngine]:
        """Give the engine with its device current; what fails leaves nothing in its streams."""
        engine = self._engine
        if engine is None:
            raise RunnerError("Expected an open runner. Received: one outside its with block. Use `with runner:`.")
        if not self._busy.acquire(blocking=False):
            raise RunnerError(
                "Expected one thread at a time. Received: a call while another one runs. Open a runner for each thread."
            )
        try:
            with engine.cuda.scope(self.options.device):  # a thread has a current device of its own
                try:
                    yield engine
                except BaseException:
                    engine.ring.settle()
                    raise
        finally:
            self._busy.release()

    def _fetch(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        with self._open() as engine:
            check_pixels(pixels, self._size)
            count, kinds = len(pixels), [engine.tensors[name] for name in names]
            results = [np.empty((count, *kind.row), kind.dtype) for kind in kinds]
            pieces = (
                [(0, self._run_one(engine, pixels, names))]
                if count <= engine.max_batch
                else engine.ring.run(pixels, engine.is_pinned(pixels), names)
            )
            for start, rows in pieces:
                for result, part in zip(results, rows):
                    result[start : start + len(part)] = part
        return results

    @staticmethod
    def _run_one(engine: OpenEngine, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run what fits into one batch, on one stream, with a graph where there is one; the rows are page-locked."""
        ring, lane, slot, count = engine.ring, engine.ring.lanes[0], engine.ring.slots[0], len(pixels)
        batch = ring.upload(slot, pixels, engine.is_pinned(pixels), lane.stream)
        if not engine.graphs.launch(batch, names):
            lane.run(batch, slot.addresses)
            ring.download(slot, names, count, lane.stream)
        lane.stream.synchronize()
        return [slot.host[name].array[:count] for name in names]

    def pinned_pixels(self, count: int) -> np.ndarray:
        """Allocate page-locked memory for images, once, not for each request: `infer` of a part is spared a copy.

        Args:
            count: images.

        Returns:
            np.ndarray: uint8, (count, height, width, 3), not set; the runner's own, not to be used once it is closed.
        """
        if count < 1:
            raise RunnerError(f"Expected a count of images of at least 1. Received: {count}.")
        with self._open() as engine:
            return engine.pinned((count, *self._size, 3))

    def infer_device(self, images: Any, outputs: Sequence[Any] | None = None) -> DeviceOutputs:
        """Classify images that are on the GPU already; results stay there. Returns when they are computed.

        Nothing is copied where addresses are multiples of 256 bytes (those of whole arrays of CuPy and PyTorch are)
        and the engine takes a batch as small.

        Args:
            images: uint8, (N, height, width, 3), on the runner's GPU, with DLPack or ``__cuda_array_interface__``.
            outputs: float32 arrays (N, classes) for logits and probabilities to write to. Defaults to None: memory of
                the runner, valid until the next call.

        Returns:
            DeviceOutputs: ``outputs``, or `DeviceArray`, which CuPy and PyTorch take without a copy.

        Raises:
            RunnerError: arrays that do not fit, a closed runner, or a failure of TensorRT or CUDA.
        """
        with self._open() as engine:
            written = run_on_device(engine, self.options.device, images, outputs)
        return DeviceOutputs(*(written if outputs is None else outputs))

    @property
    def graph_batches(self) -> tuple[int, ...]:
        """The batch sizes that run by a CUDA graph by now."""
        return self._engine.graphs.batches if self._engine is not None else ()

    @property
    def graph_refusals(self) -> Mapping[int, str]:
        """Batch sizes that came again and got no CUDA graph although ``options.graphs`` asks for them, and why.

        Also after the runner is closed, until it is opened again. Pieces of larger input and `infer_device` never run
        by graphs; they are not listed.
        """
        return dict(sorted(self._refusals.items()))

    def compute_ms(self, pixels: np.ndarray, repeats: int) -> list[float]:
        """Time the GPU's computing alone: no copies, the images lie on the device and the results stay there.

        Args:
            pixels: uint8, (N, height, width, 3), N from the engine's smallest batch to `max_batch`.
            repeats: how many times, one right behind the other.

        Returns:
            list[float]: milliseconds of each, between two events.
        """
        with self._open() as engine, ExitStack() as stack:
            check_pixels(pixels, self._size)
            batch = len(pixels)
            if not engine.min_batch <= batch <= engine.max_batch or repeats < 1:
                raise RunnerError(
                    f"Expected a batch from {engine.min_batch} to {engine.max_batch} and repeats of at least 1. "
                    f"Received: {batch} and {repeats}."
                )
            lane, slot = engine.ring.lanes[0], engine.ring.slots[0]
            engine.ring.upload(slot, pixels, engine.is_pinned(pixels), lane.stream)

            def compute() -> None:
                if not engine.graphs.launch(batch, ()):
                    lane.run(batch, slot.addresses)

            for _ in range(3):  # the graph, if there is one, is made here
                compute()
            marks = [stack.enter_context(Event(engine.cuda, timed=True)) for _ in range(repeats + 1)]
            marks[0].record(lane.stream)
            for mark in marks[1:]:
                compute()
                mark.record(lane.stream)
            lane.stream.synchronize()
            return [after.elapsed_ms(before) for before, after in pairwise(marks)]
