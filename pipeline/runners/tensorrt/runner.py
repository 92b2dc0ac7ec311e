"""The runner of TensorRT engines: uint8 pixels are copied to the GPU, and only the requested outputs back.

`engine` wraps TensorRT, `open_engine` allocates, `buffers` moves batches, `cuda_graphs` launches repeated batch sizes
with one call, and `device_input` takes arrays that are on the GPU already. Python 3.10 syntax, numpy alone.
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
    """Results of `TensorRTRunner.infer_device` on the GPU; the runner's own arrays are valid until the next call."""

    logits: Any  # (N, classes) float32
    probabilities: Any  # (N, classes) float32


class TensorRTRunner(GraphRunner):
    """Classifies batches with an engine, as a `pipeline.runners.base.Runner`. Not thread-safe.

    Buffers are allocated once, for the largest batch; a larger input is split into overlapping batches.

    Args:
        plan_path: the engine, with its sidecar in the same folder.
        options: how to run it. Defaults to None: `RuntimeOptions()`.

    Attributes:
        sidecar: the engine's sidecar.
        precision: "fp32", "fp16" or "int8", from the sidecar.
        max_batch: the largest batch of the engine's profile; while open, the largest that fits into GPU memory.
        graph_top_k: number of best classes that the engine itself selects; 0: none.
        classes: number of classes.
        metadata: of the ONNX file that the engine was built from.

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
        self.metadata: dict[str, object] = {
            **sidecar.metadata,
            "classes": sidecar.classes and list(sidecar.classes),
            "preprocessing": sidecar.preprocessing,
        }
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
            reason = status.reason or f"{count(len(status.devices), 'GPU')} and runtime.device {device}"
            raise DeviceUnavailableError(
                f"Expected an NVIDIA GPU to run {self.plan_path}. Received: {reason}. "
                "Run it on the GPU machine, or use the ONNX file on this one.",
                reason=reason,
            )
        compute_capability = status.devices[device].compute_capability
        try:
            trt = self._library(compute_capability)
            self._describe(check_engine(self.plan_path, trt, compute_capability, status.cuda_version))
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
            raise DeviceUnavailableError(
                f"Expected TensorRT of the flavour {flavour} to run {self.plan_path}. "
                f"Received: {why_missing().get(flavour, 'none')}.",
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
        """Yield the engine with its device current, and wait until its streams are idle after a failure."""
        engine = self._engine
        if engine is None:
            raise RunnerError("Expected an open runner. Received: one outside its with block. Use `with runner:`.")
        if not self._busy.acquire(blocking=False):
            raise RunnerError(
                "Expected one thread at a time. Received: a call while another one runs. Open a runner for each thread."
            )
        try:
            with engine.cuda.scope(self.options.device):  # each thread has its own current device
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
            tensors = [engine.tensors[name] for name in names]
            results = [np.empty((len(pixels), *tensor.row), tensor.dtype) for tensor in tensors]
            batches = (
                [(0, self._run_one(engine, pixels, names))]
                if len(pixels) <= engine.max_batch
                else engine.ring.run(pixels, engine.is_pinned(pixels), names)
            )
            for start, rows in batches:
                for result, part in zip(results, rows):
                    result[start : start + len(part)] = part
        return results

    @staticmethod
    def _run_one(engine: OpenEngine, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run a single batch on one stream, by a graph where there is one; the returned rows are page-locked."""
        ring, lane, slot, count = engine.ring, engine.ring.lanes[0], engine.ring.slots[0], len(pixels)
        batch = ring.upload(slot, pixels, engine.is_pinned(pixels), lane.stream)
        if not engine.graphs.launch(batch, names):
            lane.run(batch, slot.addresses)
            ring.download(slot, names, count, lane.stream)
        lane.stream.synchronize()
        return [slot.host[name].array[:count] for name in names]

    def pinned_pixels(self, count: int) -> np.ndarray:
        """Allocate page-locked memory for images, from which `infer` uploads without a copy; allocate it only once.

        Args:
            count: number of images.

        Returns:
            np.ndarray: uint8, (count, height, width, 3), uninitialised; not to be used after the runner is closed.

        Raises:
            RunnerError: ``count`` is below 1, or a closed runner.
        """
        if count < 1:
            raise RunnerError(f"Expected a count of images of at least 1. Received: {count}.")
        with self._open() as engine:
            return engine.pinned((count, *self._size, 3))

    def infer_device(self, images: Any, outputs: Sequence[Any] | None = None) -> DeviceOutputs:
        """Classify images on the GPU and leave the results there. Return when they are computed.

        Nothing is copied where addresses are multiples of 256 bytes (as those of whole arrays of CuPy and PyTorch) and
        the batch is not below the engine's smallest.

        Args:
            images: uint8, (N, height, width, 3), on the runner's GPU, with DLPack or ``__cuda_array_interface__``.
            outputs: float32 arrays (N, classes) for logits and probabilities. Defaults to None: memory of the runner,
                valid until the next call.

        Returns:
            DeviceOutputs: ``outputs``, or two `DeviceArray`, which CuPy and PyTorch take without a copy.

        Raises:
            RunnerError: arrays of another dtype, shape or layout, a closed runner, or a failure of TensorRT or CUDA.
        """
        with self._open() as engine:
            written = run_on_device(engine, self.options.device, images, outputs)
        return DeviceOutputs(*(written if outputs is None else outputs))

    @property
    def graph_batches(self) -> tuple[int, ...]:
        """The batch sizes that currently run by a CUDA graph."""
        return self._engine.graphs.batches if self._engine is not None else ()

    @property
    def graph_refusals(self) -> Mapping[int, str]:
        """Repeated batch sizes that got no CUDA graph although ``options.graphs`` enables them, and why.

        Kept after the runner is closed, until it is opened again. Batches of a split input and of `infer_device` never
        use graphs and are not listed.
        """
        return dict(sorted(self._refusals.items()))

    def compute_ms(self, pixels: np.ndarray, repeats: int) -> list[float]:
        """Time the inference on the GPU alone, without copies.

        Args:
            pixels: uint8, (N, height, width, 3), N from the engine's smallest batch to `max_batch`.
            repeats: number of consecutive runs.

        Returns:
            list[float]: duration of each run in milliseconds, between two CUDA events.

        Raises:
            RunnerError: a batch size outside this range, ``repeats`` below 1, a closed runner, or a failure.
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

            for _ in range(3):  # a graph is captured here, if at all
                compute()
            marks = [stack.enter_context(Event(engine.cuda, timed=True)) for _ in range(repeats + 1)]
            marks[0].record(lane.stream)
            for mark in marks[1:]:
                compute()
                mark.record(lane.stream)
            lane.stream.synchronize()
            return [after.elapsed_ms(before) for before, after in pairwise(marks)]
