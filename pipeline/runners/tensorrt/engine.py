"""A loaded engine, its execution contexts, and the cache of the kernels that TensorRT-RTX compiles for it.

Every None and False that TensorRT returns becomes an error. Contexts take their activation memory from the caller, so
that contexts which never run at the same time share it. Python 3.10 syntax: TensorRT is an argument.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import OutOfMemoryError, RunnerError
from export.files import write_atomic
from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import INPUT, REBUILD, Sidecar, artifacts_folder, sha256_file
from pipeline.runners.cuda.api import SMALLER
from pipeline.runners.cuda.resources import DeviceBuffer, Stream

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/keras-resnet-to-tensorrt/rtx``, in ``~/.cache`` where the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras-resnet-to-tensorrt" / "rtx"


class KernelCache:
    """The compiled kernels of one engine, kept so that later starts are quick.

    Kernels are code: they are stored in a folder of the user, one file for each plan, and never beside a plan from
    elsewhere. TensorRT-RTX itself refuses those of another GPU, driver or version. Without a readable or writable
    folder they are compiled at every start.

    Args:
        config: a runtime configuration of the engine, which creates the cache; it must outlive the cache.
        plan_sha256: name of the file.

    Attributes:
        cache: the runtime cache of the execution contexts; None where TensorRT creates none.
    """

    def __init__(self, config: Any, plan_sha256: str) -> None:
        self._config = config
        self.cache: Any = config.create_runtime_cache()
        self._path = cache_folder() / f"{plan_sha256}.bin"
        self._loaded = b""
        with contextlib.suppress(OSError):
            stored = self._path.read_bytes()
            if self.cache is not None and self.cache.deserialize(stored):
                self._loaded = stored

    def keep(self) -> None:
        """Write newly compiled kernels atomically; without it they are compiled again at the next start."""
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
    """An engine that is loaded on the current device until `close`.

    Args:
        trt: the library.
        plan_path: the plan, accepted by `export.tensorrt.compatibility.check_engine`.
        sidecar: returned by that check.
        host_code: whether the plan may contain code for the CPU. Defaults to False.

    Raises:
        RunnerError: the plan contains code without permission, changed since the check, or was refused by TensorRT,
            with TensorRT's messages.
    """

    def __init__(self, trt: TensorRT, plan_path: Path, sidecar: Sidecar, host_code: bool = False) -> None:
        self.trt = trt
        self.plan_path = plan_path
        self.logger = trt.logger()
        plan = plan_path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
            raise RunnerError(f"Expected {plan_path} to stay as it was checked. Received: a changed file.")
        self._kernels: KernelCache | None = None
        self._runtime: Any = trt.module.Runtime(self.logger)
        if sidecar.options.get("version_compatible"):
            # Such a plan contains its own runtime, which is code. The author of the plan wrote the sidecar too, so
            # neither can give permission to run it.
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
        if sidecar.options.get("strip_weights"):
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
        """Load the weights of a stripped engine from the ONNX file that it was built from."""
        source = artifacts_folder(self.plan_path) / str(sidecar.onnx_file)
        if not source.is_file() or sha256_file(source) != sidecar.onnx_sha256:
            raise RunnerError(
                f"Expected {source} with sha256 {sidecar.onnx_sha256}: the plan {self.plan_path} holds no weights. "
                f"Received: {'another file' if source.is_file() else 'no such file'}. Put the ONNX file there, or "
                "build with build.strip_weights: false."
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
        """Activation memory of a context in bytes, enough for every batch size."""
        return int(self.engine.device_memory_size_v2 if self.trt.memory_size_v2 else self.engine.device_memory_size)

    @property
    def memory_follows_batch(self) -> bool:
        """Whether smaller batches run in less than `activation_bytes`.

        TensorRT 8.6 does not report how much they need, and TensorRT-RTX requires all of it (``set_device_memory``:
        "at least as large as" the engine's ``device_memory_size_v2``).
        """
        return self.trt.memory_for_shapes and not self.trt.jit

    def context(self, stream: Stream, own_kernels: bool = True, graph: bool = False) -> EngineContext:
        """Create an execution context without memory.

        Args:
            stream: where the context will run; synchronized here.
            own_kernels: on TensorRT-RTX, compile kernels for each batch size that runs, instead of one set for all
                sizes. Ignored by the other flavours. Defaults to True.
            graph: the context will run one batch size repeatedly by a CUDA graph. Defaults to False.
        """
        context = (
            self.engine.create_execution_context(self._jit_config(own_kernels, graph))
            if self.trt.jit
            else self.trt.context_without_memory(self.engine)
        )
        if context is None:
            raise self.failed("creating an execution context")
        # Engines contain the names of their layers, and reporting them to NVTX takes time in every run.
        context.nvtx_verbosity = self.trt.member("ProfilingVerbosity", "NONE")
        # In TensorRT 8.6 only an engine's first context has the profile by default.
        if not context.set_optimization_profile_async(0, int(stream)):
            raise self.failed("choosing the batch profile of an execution context")
        stream.synchronize()  # the call may copy, and the next work may run in another stream
        return EngineContext(self, context)

    def _runtime_config(self) -> Any:
        config = self.engine.create_runtime_config()
        if config is None:
            raise self.failed("making a runtime configuration")
        return config

    def _jit_config(self, own_kernels: bool, graph: bool) -> Any:
        """Configure TensorRT-RTX, which compiles kernels on the machine that runs them.

        Its strategies: EAGER compiles kernels for a batch size before the first run, which takes time; NONE runs all
        sizes with one set of kernels; LAZY starts with that set and switches to kernels for the size later, so that
        the last bits of outputs change between requests. LAZY is never used: outputs of a context are reproducible.
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
        """Write the kernels that TensorRT-RTX has compiled so far, so that they survive if the process is killed."""
        if self._kernels is not None:
            self._kernels.keep()

    def close(self) -> None:
        """Release the engine, then the runtime; its contexts must be closed."""
        self.keep_kernels()
        self._kernels = None
        self.engine = None
        self._runtime = None

    def failed(self, doing: str) -> RunnerError:
        """Make an error with TensorRT's last messages."""
        received = str(self.logger.lines())
        message = f"Expected TensorRT to succeed at {doing}, with {self.plan_path}. Received: {received}."
        out_of_memory = any(text in received.lower() for text in ("out of memory", "outofmemory"))
        return OutOfMemoryError(message + SMALLER) if out_of_memory else RunnerError(message)


class EngineContext:
    """One execution context: a batch size, addresses and activation memory. Used by one stream at a time."""

    def __init__(self, session: EngineSession, context: Any) -> None:
        self._session = session
        self._context = context
        self._image = tuple(int(size) for size in session.engine.get_tensor_shape(INPUT))[1:]
        self._memory: DeviceBuffer | None = None
        self._by_shape = False
        self._batch: int | None = None
        self._addresses: dict[str, int] = {}

    def bytes_for(self, batch: int) -> int:
        """Return the memory in bytes that a batch size needs, where `EngineSession.memory_follows_batch`."""
        self._set_batch(batch)
        needed = int(self._context.update_device_memory_size_for_shapes())
        if needed == 0 and self._session.activation_bytes > 0:  # TensorRT reports a failure as 0
            raise self._session.failed(f"telling the memory of a batch of {batch}")
        return needed

    def use_memory(self, memory: DeviceBuffer) -> None:
        """Use activation memory. If it is less than `EngineSession.activation_bytes`, `prepare` checks each batch."""
        self._memory = memory
        self._by_shape = memory.nbytes < self._session.activation_bytes and self._session.memory_follows_batch
        self._batch = None  # the layout within the memory depends on the batch size
        if not self._by_shape:
            self._set_memory(memory)

    def _set_memory(self, memory: DeviceBuffer) -> None:
        if self._session.trt.memory_with_size:
            self._context.set_device_memory(int(memory), memory.nbytes)
        else:
            self._context.device_memory = int(memory)

    def prepare(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Set the batch size and the addresses of all tensors, where they change.

        Raises:
            OutOfMemoryError: the activation memory is too small for this batch.
            RunnerError: TensorRT refused.
        """
        if batch != self._batch and self._by_shape:
            assert self._memory is not None
            if (needed := self.bytes_for(batch)) > self._memory.nbytes:
                raise OutOfMemoryError(
                    f"Expected at most {self._memory.nbytes} bytes of activation memory for a batch of {batch}. "
                    f"Received: {needed}. Free the GPU's memory (see nvidia-smi) and open the engine again."
                )
            self._set_memory(self._memory)
        elif batch != self._batch:
            self._set_batch(batch)
        self._batch = batch
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise self._session.failed(f"taking the address of {name}")
                self._addresses[name] = address

    def _set_batch(self, batch: int) -> None:
        if not self._context.set_input_shape(INPUT, (batch, *self._image)):
            raise self._session.failed(f"taking a batch of {batch}")

    def close(self) -> None:
        """Release the context."""
        self._context = None

    def capturable(self, stream: Stream) -> bool:
        """Whether a run can be captured as a CUDA graph; assumed where the library cannot tell."""
        return not self._session.trt.jit or bool(self._context.is_stream_capturable(int(stream)))

    def enqueue(self, stream: Stream) -> None:
        """Queue the work."""
        if not self._context.execute_async_v3(int(stream)):
            raise self._session.failed(f"running a batch of {self._batch}")
