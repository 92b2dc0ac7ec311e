"""Runs a TensorRT engine: uint8 pixels from pinned memory over the bus, logits and probabilities back.

Python 3.10 syntax, numpy alone: TensorRT and cuda-bindings are imported when the runner is opened.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from export.capabilities import TensorRT, find_tensorrt, why_missing
from export.errors import ExportError
from export.sidecar import INPUT, OUTPUTS, check_engine, read_sidecar
from pipeline.errors import DeviceUnavailableError, RunnerError
from pipeline.runners.base import Outputs, Top, check_pixels, top_of
from pipeline.runners.cuda import DeviceBuffer, PinnedBuffer, Stream, driver_status, set_device

log = logging.getLogger(__name__)


class TensorRTRunner:
    """Classifies batches with an engine; by the protocol of `pipeline.runners.base.Runner`. Not for several threads.

    Buffers are allocated once, for the largest batch of the engine's profile; what is larger is split.

    Args:
        plan_path: the engine; its sidecar lies beside it.
        device: index of the GPU. Defaults to 0.

    Attributes:
        sidecar: what the engine's sidecar says.
        precision: "fp32", "fp16" or "int8", from the sidecar.
        max_batch: the largest batch of the engine's profile.

    Raises:
        RunnerError: the sidecar is missing or malformed.
    """

    backend = "tensorrt"
    graph_top_k = 0

    def __init__(self, plan_path: str | os.PathLike[str], device: int = 0) -> None:
        self.plan_path = Path(plan_path)
        self.device = device
        try:
            self._describe(read_sidecar(self.plan_path))
        except ExportError as error:
            raise RunnerError(str(error)) from error
        self._stack: ExitStack | None = None
        self._batch_set: int | None = None
        self._context: Any = None
        self._engine: Any = None
        self._runtime: Any = None

    def _describe(self, sidecar: dict[str, Any]) -> None:
        self.sidecar = sidecar
        self.precision: str = sidecar["precision"]
        self.max_batch: int = sidecar["profile"]["max"]
        self._min_batch: int = sidecar["profile"]["min"]

    def __enter__(self) -> TensorRTRunner:
        """Load the engine and allocate.

        Raises:
            DeviceUnavailableError: no driver, no such GPU, or no TensorRT of the engine's flavour.
            RunnerError: cuda-bindings is missing, the engine is refused (see `check_engine`), or it failed.
        """
        # The driver comes first: some TensorRT versions crash the process without one.
        status = driver_status()
        if not status or not 0 <= self.device < len(status.devices):
            had = status.reason or f"{len(status.devices)} GPU(s) and device {self.device}"
            raise DeviceUnavailableError(
                f"Expected an NVIDIA GPU to run {self.plan_path}. Received: {had}. "
                "Run it on the GPU machine, or use the ONNX file on this one.",
                reason=had,
            )
        trt = self._library()
        try:
            self._describe(check_engine(self.plan_path, trt, status.devices[self.device].compute_capability))
        except ExportError as error:
            raise RunnerError(str(error)) from error
        stack = ExitStack()
        try:
            self._open(trt, stack)
        except BaseException:
            stack.close()
            raise
        self._stack = stack
        return self

    def __exit__(self, *exc: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC RGB pixels, any number from 1 on.

        Args:
            pixels: uint8, (N, height, width, 3), of the size that the model was exported for.

        Returns:
            Outputs: logits and probabilities, float32, (N, classes).

        Raises:
            RunnerError: wrong pixels, a closed runner, or a failure of TensorRT or CUDA.
        """
        if self._stack is None:
            raise RunnerError("Expected an open runner. Received: one outside its with block. Use `with runner:`.")
        check_pixels(pixels, self._size)
        set_device(self.device)  # the current device belongs to the thread, and this may be another one
        results = [np.empty((len(pixels), self._classes), np.float32) for _ in OUTPUTS]
        for start in range(0, len(pixels), self.max_batch):
            piece = pixels[start : start + self.max_batch]
            self._run(piece)
            for result, name in zip(results, OUTPUTS):
                result[start : start + len(piece)] = self._host[name].array[: len(piece)]
        return Outputs(*results)

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """The best k classes of each image."""
        return top_of(self.infer(pixels).probabilities, k)

    def _run(self, piece: np.ndarray) -> None:
        """Run one batch; the results lie in the pinned output buffers afterwards."""
        batch = max(len(piece), self._min_batch)  # below the profile's minimum the rest of the batch is black
        source = self._host[INPUT]
        source.array[: len(piece)] = piece
        source.array[len(piece) : batch] = 0
        self._device_memory[INPUT].upload(source, self._bytes(INPUT, batch), self._stream)
        if batch != self._batch_set:
            if not self._context.set_input_shape(INPUT, (batch, *self._size, 3)):
                raise self._failed(f"taking a batch of {batch}")
            self._batch_set = batch
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed(f"running a batch of {batch}")
        for name in OUTPUTS:
            self._device_memory[name].download(self._host[name], self._bytes(name, len(piece)), self._stream)
        self._stream.synchronize()

    def _bytes(self, name: str, batch: int) -> int:
        return self._host[name].nbytes // self.max_batch * batch

    def _library(self) -> TensorRT:
        flavour = self.sidecar["flavour"]
        try:
            trt = find_tensorrt(flavour)
        except ExportError as error:
            raise RunnerError(f"{error} The sidecar of {self.plan_path} names it.") from error
        if trt is None:
            why = why_missing().get(flavour, "none")
            raise DeviceUnavailableError(
                f"Expected TensorRT of the flavour {flavour} to run {self.plan_path}. Received: {why}.",
                reason=f"no TensorRT of the flavour {flavour} here",
            )
        return trt

    def _open(self, trt: TensorRT, stack: ExitStack) -> None:
        set_device(self.device)
        self._logger = trt.logger()
        # Released in reverse: context, engine and runtime go before the memory that they use.
        self._stream = stack.enter_context(Stream())
        self._host: dict[str, PinnedBuffer] = {}
        self._device_memory: dict[str, DeviceBuffer] = {}
        for name, shape, dtype in self._tensors():
            self._host[name] = stack.enter_context(PinnedBuffer((self.max_batch, *shape), dtype))
            self._device_memory[name] = stack.enter_context(DeviceBuffer(self._host[name].nbytes))
        stack.callback(self._forget)
        stack.callback(self._drain)
        plan = self.plan_path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != self.sidecar["plan_sha256"]:
            raise RunnerError(f"Expected {self.plan_path} to stay as it was checked. Received: a changed file.")
        self._runtime = trt.module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._failed("loading the plan")
        self._check_tensors()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("creating an execution context (memory for the largest batch)")
        for name, memory in self._device_memory.items():
            if not self._context.set_tensor_address(name, int(memory)):
                raise self._failed(f"taking the address of {name}")

    def _tensors(self) -> list[tuple[str, tuple[int, ...], np.dtype]]:
        """Give name, shape without the batch and dtype of each tensor, from the sidecar."""
        try:
            listed = {one["name"]: one for one in self.sidecar["tensors"]}
            tensors = [
                (name, tuple(int(size) for size in listed[name]["shape"][1:]), np.dtype(listed[name]["dtype"]))
                for name in (INPUT, *OUTPUTS)
            ]
            (height, width, _), (self._classes,) = tensors[0][1], tensors[1][1]
        except (KeyError, TypeError, ValueError) as error:
            raise RunnerError(
                f"Expected the tensors {INPUT} and {', '.join(OUTPUTS)} in the sidecar of {self.plan_path}. "
                f"Received: {self.sidecar['tensors']!r}. Rebuild the engine."
            ) from error
        self._size = (height, width)
        return tensors

    def _check_tensors(self) -> None:
        """Compare the engine with its sidecar: buffers are allocated from the sidecar."""
        engine = self._engine
        for name, buffer in self._host.items():
            bound = tuple(engine.get_tensor_profile_shape(name, 0)[2]) if name == INPUT else None
            shape = (self.max_batch, *tuple(engine.get_tensor_shape(name))[1:])
            if shape != buffer.array.shape or bound not in (None, shape):
                raise RunnerError(
                    f"Expected {name} of shape {buffer.array.shape} at the largest batch, as the sidecar says. "
                    f"Received: an engine with {bound or shape}. Rebuild the engine."
                )

    def _drain(self) -> None:
        """Let the GPU finish before its memory goes; an error here follows one that was raised already."""
        try:
            self._stream.synchronize()
        except RunnerError as error:
            log.warning("%s", error)

    def _forget(self) -> None:
        """Drop context, engine and runtime, in this order."""
        self._batch_set = None
        self._context = None
        self._engine = None
        self._runtime = None

    def _failed(self, doing: str) -> RunnerError:
        return RunnerError(
            f"Expected TensorRT to succeed at {doing}, with {self.plan_path} on device {self.device}. "
            f"Received: {self._logger.lines()}."
        )
