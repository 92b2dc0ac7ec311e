"""A loaded engine and its execution contexts, and the kernels that TensorRT-RTX compiled for it.

Keeps the kernels that TensorRT-RTX compiled, so that an engine starts quickly the second time.

They are code, so they lie in a folder of the user's own, one file a plan, and never beside a plan that came from
elsewhere. TensorRT-RTX itself refuses those of another GPU, driver or version. Standard library only.

A loaded engine and its execution contexts: TensorRT's part of a run. Every None and False becomes an error.

Contexts take their activation memory from the caller, so that those that never run at the same time share it.
Python 3.10 syntax: TensorRT comes in as an argument.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import OutOfMemoryError, RunnerError
from export.files import write_atomic
from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import INPUT, REBUILD, Sidecar, home_of, sha256_file
from pipeline.runners.cuda.api import SMALLER
from pipeline.runners.cuda.resources import DeviceBuffer, Stream

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/keras-resnet-to-tensorrt/rtx``, below ``~/.cache`` where that is not set."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "keras-resnet-to-tensorrt" / "rtx"


class KernelCache:
    """The compiled kernels of one engine. Without a readable or writable folder they are compiled every time.

    Args:
        config: a runtime configuration of the engine, which makes the cache; kept with it.
        plan_sha256: names the file.

    Attributes:
        cache: what execution contexts are given; None where TensorRT made none.
    """

    def __init__(self, config: Any, plan_sha256: str) -> None:
        self._config = config
        self.cache: Any = config.create_runtime_cache()
        self._path = cache_folder() / f"{plan_sha256}.bin"
        self._loaded = b""
        try:
            kept = self._path.read_bytes()
        except OSError:
            return
        if self.cache is not None and self.cache.deserialize(kept):
            self._loaded = kept

    def keep(self) -> None:
        """Write what was compiled since, in one step; what cannot be written is compiled again another time."""
        compiled = bytes(self.cache.serialize() or b"") if self.cache is not None else b""
        if not compiled or compiled == self._loaded:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, compiled)
            self._loaded = compiled
        except OSError as error:
            log.debug("compiled kernels are not kept: %s", error)


class EngineSession:
    """An engine that is loaded on the current device; `close` drops it.

    Args:
        trt: the library.
        plan_path: the plan; `export.tensorrt.sidecar.check_engine` let it pass.
        sidecar: what that gave.
        host_code: whether it may bring code for the CPU. Defaults to False.

    Raises:
        RunnerError: the plan brings code and may not, it changed since it was checked, or TensorRT refused it, in its
            own words.
    """

    def __init__(self, trt: TensorRT, plan_path: Path, sidecar: Sidecar, host_code: bool = False) -> None:
        self.trt = trt
        self.plan_path = plan_path
        self.logger = trt.logger()
        plan = plan_path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
            raise RunnerError(f"Expected {plan_path} to stay as it was checked. Received: a changed file.")
        options = sidecar.options
        self._kernels: KernelCache | None = None
        self._runtime: Any = trt.module.Runtime(self.logger)
        if options.get("version_compatible"):
            # Such a plan brings its own runtime, which is code. Who made the plan made the sidecar too, so neither
            # says whether it may run.
            if not host_code:
                raise RunnerError(
                    f"Expected an engine without code of its own. Received: {plan_path}, which was built as "
                    "version_compatible and brings code for the CPU. If you trust its maker: "
                    "--set runtime.host_code=true (in a program: RuntimeOptions(host_code=True))."
                )
            self._runtime.engine_host_code_allowed = True
        if trt.engine_validity:
            self._check_validity(plan)
        self.engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise self.failed("loading the plan")
        if options.get("strip_weights"):
            self._refit(sidecar)
        if trt.jit:
            self._kernels = KernelCache(self._runtime_config(), str(sidecar.plan_sha256))
            if self._kernels.cache is None:
                self._compile_always()

    def _check_validity(self, plan: bytes) -> None:
        validity, diagnostics = self._runtime.get_engine_validity(plan)
        if validity == self.trt.member("EngineValidity", "INVALID"):
            raise RunnerError(
                f"Expected {self.plan_path} to fit this GPU and driver. Received: {self.trt.flavour} "
                f"{self.trt.version} finds it invalid here (diagnostics {diagnostics}): {self.logger.lines()}. "
                f"Rebuild it: {REBUILD}."
            )
        if validity == self.trt.member("EngineValidity", "SUBOPTIMAL"):
            log.warning("%s was built for other GPUs and may be slower here. Rebuild it: %s", self.plan_path, REBUILD)

    def _refit(self, sidecar: Sidecar) -> None:
        """Give a stripped engine its weights, from the ONNX file that it was built from."""
        source = home_of(self.plan_path) / str(sidecar.onnx_file)
        if not source.is_file() or sha256_file(source) != sidecar.onnx_sha256:
            had = "another file" if source.is_file() else "no such file"
            raise RunnerError(
                f"Expected {source} with sha256 {sidecar.onnx_sha256}: the plan {self.plan_path} holds no weights. "
                f"Received: {had}. Put the ONNX file there, or build with build.strip_weights: false."
            )
        if not self.trt.refit_from_onnx:
            raise RunnerError(
                f"Expected a TensorRT that takes weights from an ONNX file, as {self.plan_path} holds none. "
                f"Received: {self.trt.flavour} {self.trt.version}. Build with build.strip_weights: false."
            )
        module = self.trt.module
        refitter = module.Refitter(self.engine, self.logger)
        parser = module.OnnxParserRefitter(refitter, self.logger)
        if not parser.refit_from_file(str(source)) or not refitter.refit_cuda_engine():
            raise self.failed(f"taking the weights from {source}")

    @property
    def activation_bytes(self) -> int:
        """Memory in bytes that a context needs, whatever the batch."""
        size = self.engine.device_memory_size_v2 if self.trt.memory_size_v2 else self.engine.device_memory_size
        return int(size)

    @property
    def memory_follows_batch(self) -> bool:
        """Whether smaller batches run in less than `activation_bytes`.

        TensorRT 8.6 cannot say how much they need, and TensorRT-RTX takes nothing below the whole
        (``set_device_memory``: "at least as large as" the engine's ``device_memory_size_v2``).
        """
        return self.trt.memory_for_shapes and not self.trt.jit

    def context(self, stream: Stream, own_kernels: bool = True, graph: bool = False) -> EngineContext:
        """Make an execution context without memory.

        Args:
            stream: where it is to run; waited for here.
            own_kernels: TensorRT-RTX compiles kernels for each batch size that it runs, else for all at once. The
                others ignore it. Defaults to True.
            graph: it is to run one batch size by a CUDA graph, again and again. Defaults to False.
        """
        made = self._make_context(own_kernels, graph)
        # In TensorRT 8.6 only an engine's first context has the profile without asking.
        if not made.set_optimization_profile_async(0, int(stream)):
            raise self.failed("choosing the batch profile of an execution context")
        stream.synchronize()  # it may copy, and what runs next need not run in this stream
        return EngineContext(self, made)

    def _make_context(self, own_kernels: bool, graph: bool) -> Any:
        trt = self.trt
        if trt.jit:
            made = self.engine.create_execution_context(self._jit_config(own_kernels, graph))
        else:
            made = trt.context_without_memory(self.engine)
        if made is None:
            raise self.failed("creating an execution context")
        # Engines are built to name their layers, which costs time at every run unless it is turned off.
        made.nvtx_verbosity = trt.member("ProfilingVerbosity", "NONE")
        return made

    def _runtime_config(self) -> Any:
        config = self.engine.create_runtime_config()
        if config is None:
            raise self.failed("making a runtime configuration")
        return config

    def _jit_config(self, own_kernels: bool, graph: bool) -> Any:
        """Configure TensorRT-RTX, which compiles kernels where it runs.

        Its strategies: EAGER compiles a batch size's own kernels before it runs, which takes its time; NONE runs all
        sizes by one set of kernels; LAZY begins with that set and goes over to a size's own at some moment, so that
        answers change in their last bits from one request to the next. LAZY is never used: a context's answers stay.
        """
        trt, config = self.trt, self._runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.member("ExecutionContextAllocationStrategy", "USER_MANAGED")
        )
        config.dynamic_shapes_kernel_specialization_strategy = trt.member(
            "DynamicShapesKernelSpecializationStrategy", "EAGER" if own_kernels else "NONE"
        )
        assert self._kernels is not None
        if self._kernels.cache is not None and not config.set_runtime_cache(self._kernels.cache):
            self._kernels.cache = None
            self._compile_always()
        if graph:
            config.cuda_graph_strategy = trt.member("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
        return config

    def _compile_always(self) -> None:
        log.warning("%s: kernels are compiled at every start: %s", self.plan_path, self.logger.lines())

    def keep_kernels(self) -> None:
        """Write what TensorRT-RTX compiled so far, so that a process that is killed compiles it only once."""
        if self.trt.jit and self._kernels is not None:
            self._kernels.keep()

    def close(self) -> None:
        """Drop the engine, then the runtime; its contexts must be gone."""
        self.keep_kernels()
        self._kernels = None
        self.engine = None
        self._runtime = None

    def failed(self, doing: str) -> RunnerError:
        """Make an error of TensorRT's last words."""
        words = str(self.logger.lines())
        message = f"Expected TensorRT to succeed at {doing}, with {self.plan_path}. Received: {words}."
        lacking = "out of memory" in words.lower() or "outofmemory" in words.lower()
        return OutOfMemoryError(message + SMALLER) if lacking else RunnerError(message)


class EngineContext:
    """One execution context: a batch size, addresses and activation memory. In use by one stream at a time."""

    def __init__(self, session: EngineSession, made: Any) -> None:
        self._session = session
        self._context = made
        self._image = tuple(int(size) for size in session.engine.get_tensor_shape(INPUT))[1:]
        self._memory: DeviceBuffer | None = None
        self._by_shape = False
        self._batch: int | None = None
        self._addresses: dict[str, int] = {}

    def bytes_for(self, batch: int) -> int:
        """Give the memory in bytes that a batch size needs, where `EngineSession.memory_follows_batch`."""
        self._set_batch(batch)
        return self._size_for_shapes(batch)

    def use_memory(self, memory: DeviceBuffer) -> None:
        """Take activation memory. Less than every batch size needs is used as far as it goes."""
        self._memory = memory
        self._by_shape = memory.nbytes < self._session.activation_bytes and self._session.memory_follows_batch
        self._batch = None  # the sizes within the memory have to be laid out again
        if not self._by_shape:
            self._give(memory)

    def _give(self, memory: DeviceBuffer) -> None:
        if self._session.trt.memory_with_size:
            self._context.set_device_memory(int(memory), memory.nbytes)
        else:
            self._context.device_memory = int(memory)

    def prepare(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Set the batch size and the addresses of all tensors; what is set already costs nothing.

        Raises:
            OutOfMemoryError: the memory does not do for this batch.
            RunnerError: TensorRT refused.
        """
        if batch != self._batch:
            self._set_batch(batch)
            if self._by_shape:
                self._lay_out(batch)
            self._batch = batch
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise self._session.failed(f"taking the address of {name}")
                self._addresses[name] = address

    def _lay_out(self, batch: int) -> None:
        needed = self._size_for_shapes(batch)
        assert self._memory is not None
        if needed > self._memory.nbytes:
            raise OutOfMemoryError(
                f"Expected at most {self._memory.nbytes} bytes of activation memory for a batch of {batch}. "
                f"Received: {needed}. Free the GPU's memory (see nvidia-smi) and open the engine again."
            )
        self._give(self._memory)

    def _size_for_shapes(self, batch: int) -> int:
        needed = int(self._context.update_device_memory_size_for_shapes())
        if needed == 0 and self._session.activation_bytes > 0:  # so it says that it could not tell
            raise self._session.failed(f"telling the memory of a batch of {batch}")
        return needed

    def _set_batch(self, batch: int) -> None:
        if not self._context.set_input_shape(INPUT, (batch, *self._image)):
            raise self._session.failed(f"taking a batch of {batch}")

    def close(self) -> None:
        """Drop the context."""
        self._context = None

    def capturable(self, stream: Stream) -> bool:
        """Whether what runs can be captured as a CUDA graph; where the library does not say, it is tried."""
        return not self._session.trt.jit or bool(self._context.is_stream_capturable(int(stream)))

    def enqueue(self, stream: Stream) -> None:
        """Queue the work."""
        if not self._context.execute_async_v3(int(stream)):
            raise self._session.failed(f"running a batch of {self._batch}")
