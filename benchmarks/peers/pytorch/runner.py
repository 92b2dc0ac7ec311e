"""Run an exported ONNX file in PyTorch: eager, as a CUDA graph, or compiled.

It does the same work as our TensorRT runner: uint8 pixels from pinned memory over the bus, the model in channels-last,
logits and probabilities back to pinned memory. The module needs Python 3.10, numpy, onnx and torch.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.peers.pytorch.device import Precision, Slot, import_torch, settings, tf32_allowed, versions
from export.errors import DeviceUnavailableError, RunnerError
from export.tensorrt.sidecar import OUTPUTS
from pipeline.runners.base import Outputs, check_pixels

Mode = Literal["eager", "graphs", "compile"]
MODES: dict[str, str] = {
    "eager": "the module, called",
    "graphs": "one CUDA graph a batch size, captured over static buffers",
    "compile": 'torch.compile(mode="max-autotune", fullgraph=True, dynamic=False)',
}
SLOTS = 3  # batches in flight when they are streamed
WARMUP_CALLS = 3  # cuDNN selects its algorithms in the first; a compiled model captures its CUDA graph in the second


class PyTorchRunner:
    """Classifies batches with PyTorch, with the `infer` of `pipeline.runners.base.Runner`. Not thread-safe.

    A batch size is prepared at its first use: warmed up and, depending on the mode, captured or compiled (which takes
    minutes; after eight sizes PyTorch's recompile limit raises). Input larger than ``max_batch`` is split.

    While a runner is open, TF32 and cuDNN's benchmark mode are set for the whole process; runners that are open at the
    same time must have the same ``tf32``.

    Args:
        path: FP32 ONNX file as our export writes it.
        precision: "fp16" or "fp32". Defaults to "fp16".
        mode: "eager", "graphs" (CUDA only) or "compile". Defaults to "eager".
        device: as torch names it. Defaults to "cuda".
        max_batch: the largest batch that runs at once. Defaults to 256.
        tf32: whether FP32 convolutions and products may use TF32, as TensorRT may by default. Defaults to True.

    Attributes:
        module: the model as the mode runs it; None where the runner is closed.
    """

    backend = "pytorch"

    def __init__(
        self,
        path: str | Path,
        precision: Precision = "fp16",
        mode: Mode = "eager",
        *,
        device: str = "cuda",
        max_batch: int = 256,
        tf32: bool = True,
    ) -> None:
        if precision not in get_args(Precision) or mode not in MODES or max_batch < 1:
            raise RunnerError(
                f"Expected precision fp32 or fp16, a mode of {', '.join(MODES)} and max_batch >= 1. "
                f"Received: {precision!r}, {mode!r}, {max_batch}."
            )
        if mode == "graphs" and not device.startswith("cuda"):
            raise RunnerError(f"Expected a CUDA device for the mode graphs. Received: {device!r}. Take another mode.")
        self.path = Path(path)
        self.precision: str = precision
        self.mode: str = mode
        self.device = device
        self.max_batch = max_batch
        self.tf32 = tf32
        self.module: Any = None
        self._stack: ExitStack | None = None
        self._cuda = device.startswith("cuda")

    def __enter__(self) -> PyTorchRunner:
        """Load the model and allocate its buffers.

        Raises:
            DeviceUnavailableError: PyTorch or its GPU is missing.
            RunnerError: the file does not fit, see `load_onnx`.
        """
        torch = self._torch = import_torch()
        if self._cuda and not torch.cuda.is_available():
            raise DeviceUnavailableError(
                f"Expected a GPU for PyTorch on {self.device!r}. Received: none that PyTorch {torch.__version__} can "
                "use. Take device cpu, or run it on the GPU machine.",
                reason="no GPU for PyTorch",
            )
        with ExitStack() as stack:
            if self._cuda:
                stack.enter_context(torch.cuda.device(self.device))
            stack.enter_context(settings(torch, self.tf32))
            stack.callback(self._forget)
            self._open(torch)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _open(self, torch: Any) -> None:
        from benchmarks.peers.pytorch.convert import load_onnx

        module = load_onnx(self.path, self.precision)  # type: ignore[arg-type]
        names = module.output_names
        if missing := [name for name in OUTPUTS if name not in names]:
            raise RunnerError(
                f"Expected the outputs {', '.join(OUTPUTS)}. Received: none named {', '.join(missing)} in {self.path}. "
                "Export the model with them."
            )
        self._indices = [names.index(name) for name in OUTPUTS]
        self.size: tuple[int, int] = module.input_size
        self.module = module.to(self.device)
        if self.mode == "compile":
            self.module = torch.compile(self.module, mode="max-autotune", fullgraph=True, dynamic=False)
        widths = [module.output_widths[index] for index in self._indices]
        self._stream: Any = torch.cuda.Stream() if self._cuda else None
        self._uploads = torch.cuda.Stream() if self._cuda else None
        self._pool = torch.cuda.graph_pool_handle() if self.mode == "graphs" else None
        self._calls: dict[tuple[int, int], Callable[[], Any]] = {}
        self._slots = [
            Slot(torch, self.device, (self.max_batch, *self.size, 3), widths) for _ in range(SLOTS if self._cuda else 1)
        ]
        if self._cuda:
            torch.cuda.synchronize()  # waits for work that was queued outside the runner's own stream

    def _forget(self) -> None:
        """Release everything that holds device memory."""
        self.module = None
        self._calls, self._slots, self._pool = {}, [], None
        if self._cuda:
            self._torch.cuda.synchronize()
            gc.collect()  # a compiled model has reference cycles
            self._torch.cuda.empty_cache()

    def describe(self) -> dict[str, object]:
        """Return the mode, precision, settings as PyTorch reports them, and versions of an open runner."""
        torch = self._opened()
        matmul, cudnn = tf32_allowed(torch)
        return {
            "mode": self.mode,
            "how": MODES[self.mode],
            "precision": self.precision,
            "memory_format": "channels_last",
            "warmup_calls": WARMUP_CALLS,
            "tf32_matmul": matmul,
            "tf32_cudnn": cudnn,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "device": torch.cuda.get_device_name() if self._cuda else "cpu",
            "versions": versions(),
        }

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC RGB pixels, one image or more.

        Args:
            pixels: uint8, (N, height, width, 3), of the size that the model was exported for.

        Returns:
            Outputs: logits and probabilities, float32, (N, classes).

        Raises:
            RunnerError: wrong pixels, or a closed runner.
        """
        self._opened()
        check_pixels(pixels, self.size)
        slot = self._slots[0]
        results = [np.empty((len(pixels), *output.shape[1:]), np.float32) for output in slot.host_outputs]
        for start in range(0, len(pixels), self.max_batch):
            part = pixels[start : start + self.max_batch]
            count = len(part)
            call = self._call(count, 0)
            slot.host.numpy()[:count] = part
            with self._working():
                slot.upload(count)
                slot.download(call(), count)
            self._synchronize()
            for result, output in zip(results, slot.host_outputs):
                result[start : start + count] = output.numpy()[:count]
        return Outputs(*results)

    def compute_ms(self, batch: int, repeats: int = 50) -> list[float]:
        """Time the model alone on the GPU, where pixels and results stay.

        The calls are queued without waiting, each between two CUDA events. Where the host queues more slowly than the
        GPU computes (eager, small batches), the time is the host's.

        Args:
            batch: images a call, at most ``max_batch``.
            repeats: number of calls. Defaults to 50.

        Returns:
            list[float]: milliseconds of each call.

        Raises:
            RunnerError: not on a GPU, or an argument is out of its range.
        """
        torch = self._check_timed(batch, repeats)
        self._fill(1, batch)
        call = self._call(batch, 0)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        with self._working():
            for _ in range(WARMUP_CALLS):
                call()
            for start, end in events:
                start.record()
                call()
                end.record()
        self._synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def stream_ms(self, batch: int, batches: int = 30) -> list[float]:
        """Time a stream of batches, with the upload of the next batch while the GPU computes.

        Pixels and results are in pinned memory; a decoder would write and read them in place.

        Args:
            batch: images a batch, at most ``max_batch``.
            batches: number of batches. Defaults to 30.

        Returns:
            list[float]: milliseconds a batch by the host's clock, as one number: the mean from the first upload to the
            last result.

        Raises:
            RunnerError: not on a GPU, or an argument is out of its range.
        """
        torch = self._check_timed(batch, batches)
        self._fill(SLOTS, batch)
        ring = [(self._slots[at], self._call(batch, at), torch.cuda.Event(), torch.cuda.Event()) for at in range(SLOTS)]
        self._synchronize()
        began = time.perf_counter()
        for slot, call, uploaded, done in itertools.islice(itertools.cycle(ring), batches):
            done.synchronize()  # the slot's buffers are free again
            with torch.cuda.stream(self._uploads):
                slot.upload(batch)
                uploaded.record()
            with self._working():
                self._stream.wait_event(uploaded)
                slot.download(call(), batch)
                done.record()
        self._synchronize()
        return [(time.perf_counter() - began) * 1000.0 / batches]

    def _opened(self) -> Any:
        if self._stack is None:
            raise RunnerError("Expected an open runner. Received: one outside its with block. Use `with runner:`.")
        return self._torch

    def _check_timed(self, batch: int, count: int) -> Any:
        torch = self._opened()
        if not self._cuda or not 1 <= batch <= self.max_batch or count < 1:
            raise RunnerError(
                f"Expected a GPU, a batch from 1 to {self.max_batch} and one call or more. "
                f"Received: {self.device}, {batch}, {count}."
            )
        return torch

    def _fill(self, slots: int, batch: int) -> None:
        """Fill the first slots with seeded noise, because zeros would make caches and power look better."""
        noise = np.random.default_rng(0).integers(0, 256, (batch, *self.size, 3), dtype=np.uint8)
        with self._working():
            for slot in self._slots[:slots]:
                slot.host.numpy()[:batch] = noise
                slot.upload(batch)
        self._synchronize()

    def _call(self, batch: int, index: int) -> Callable[[], Any]:
        """Return the function that runs the model on a slot's pixels, with logits and probabilities on the device."""
        if (batch, index) not in self._calls:
            source = self._slots[index].pixels[:batch]

            def call() -> Any:
                if self.mode == "compile":
                    self._torch.compiler.cudagraph_mark_step_begin()  # the earlier results may be overwritten
                results = self.module(source)
                return [results[at] for at in self._indices]

            with self._working():
                for _ in range(WARMUP_CALLS):
                    call()
            self._synchronize()
            self._calls[batch, index] = self._capture(call) if self.mode == "graphs" else call
        return self._calls[batch, index]

    def _capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        # One pool for all, because the graphs run in sequence and results are copied before the next one starts.
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            results = call()

        def replay() -> Any:
            graph.replay()
            return results

        return replay

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Disable autograd and use the runner's own stream."""
        torch = self._torch
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._cuda else nullcontext():
            yield

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
