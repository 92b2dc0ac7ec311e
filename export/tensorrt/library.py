"""Find a TensorRT library and look up its features, always by name and never by version or enumeration number.

The module needs Python 3.10 alone: TensorRT is imported inside the functions.
"""

import collections
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from export.errors import ProjectError
from export.tensorrt.driver import supports

log = logging.getLogger(__name__)

FLAVOURS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
INSTALL: Mapping[str, str] = {
    "tensorrt": "pip install 'tensorrt>=10.12,<12' (needs an NVIDIA GPU; a Jetson has JetPack's own)",
    "rtx": "pip install --no-deps tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116",
}

_why_missing: dict[str, str] = {}


@dataclass(frozen=True)
class TensorRT:
    """An imported TensorRT library and its features.

    ``flavour`` is "tensorrt" (classic, 8.6 to 11) or "rtx" (TensorRT-RTX). Neither loads an engine of the other.
    """

    module: Any
    flavour: str
    version: str

    @property
    def strongly_typed(self) -> bool:
        """Whether a network can take its types from the ONNX file."""
        return self.has("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")

    @property
    def builds_without_gpu(self) -> bool:
        """Whether engines can be built on a machine without a GPU: TensorRT-RTX compiles ahead of time."""
        return self.targets

    @property
    def targets(self) -> bool:
        """Whether the GPU generations that a plan is for can be chosen."""
        config = self.module.IBuilderConfig
        return (
            hasattr(self.module, "ComputeCapability")
            and hasattr(config, "num_compute_capabilities")
            and hasattr(config, "set_compute_capability")
        )

    @property
    def progress_monitor(self) -> bool:
        """Whether a build reports its progress and can be cancelled."""
        return hasattr(self.module, "IProgressMonitor") and hasattr(self.module.IBuilderConfig, "progress_monitor")

    @property
    def timing_cache(self) -> bool:
        """Whether a timing cache has an effect: in TensorRT-RTX, which times on the user's GPU, it has none."""
        return hasattr(self.module.IBuilderConfig, "create_timing_cache") and not self.targets

    @property
    def version_compatible(self) -> bool:
        """Whether plans can be built that later versions run, with a lean runtime inside.

        TensorRT-RTX has the flag and no lean runtime: its plans are for one release.
        """
        return self.has("BuilderFlag", "VERSION_COMPATIBLE") and not self.targets

    def hardware_compatible(self, level: str) -> bool:
        """Whether plans can be built that other GPUs run; ``level`` is "ampere_plus" or "same_compute_capability".

        TensorRT-RTX has the enumeration and ignores it: its `targets` say for which GPUs a plan is.
        """
        return self.has("HardwareCompatibilityLevel", level.upper()) and not self.targets

    @property
    def strips_weights(self) -> bool:
        """Whether plans can be built without their weights."""
        return self.has("BuilderFlag", "STRIP_PLAN") and self.has("BuilderFlag", "REFIT_IDENTICAL")

    @property
    def strips_weights_without_gpu(self) -> bool:
        """Whether that works without a GPU: TensorRT-RTX, which otherwise builds without one, then requires one."""
        return not self.targets

    @property
    def allocation_strategies(self) -> bool:
        """Whether a strategy makes a context take its memory from the caller; TensorRT 8.6 has a method instead."""
        return self.has("ExecutionContextAllocationStrategy", "USER_MANAGED")

    @property
    def memory_for_shapes(self) -> bool:
        """Whether a context can report the memory that the current shapes need, instead of the largest ones."""
        return hasattr(self.module.IExecutionContext, "update_device_memory_size_for_shapes")

    @property
    def memory_with_size(self) -> bool:
        """Whether a context takes the size of its memory with the address."""
        return hasattr(self.module.IExecutionContext, "set_device_memory")

    @property
    def memory_size_v2(self) -> bool:
        """Whether an engine has the newer attribute for the memory that a context needs."""
        return hasattr(self.module.ICudaEngine, "device_memory_size_v2")

    @property
    def jit(self) -> bool:
        """Whether the library compiles kernels at run time, caches them, and captures CUDA graphs, as RTX does."""
        return (
            self.has("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
            and self.has("DynamicShapesKernelSpecializationStrategy", "EAGER")
            and hasattr(self.module.IRuntimeConfig, "create_runtime_cache")
            and hasattr(self.module.IExecutionContext, "is_stream_capturable")
        )

    @property
    def user_allocation(self) -> bool:
        """Whether a builder flag makes all memory of an engine come from the caller, which CUDA graphs need."""
        return self.has("BuilderFlag", "REQUIRE_USER_ALLOCATION")

    @property
    def engine_validity(self) -> bool:
        """Whether the library can check a plan against the GPU and driver before it loads it."""
        return hasattr(self.module.Runtime, "get_engine_validity")

    @property
    def refit_from_onnx(self) -> bool:
        """Whether an engine can take its weights from an ONNX file."""
        return hasattr(self.module, "OnnxParserRefitter") and hasattr(self.module.OnnxParserRefitter, "refit_from_file")

    @property
    def max_aux_streams(self) -> bool:
        """Whether the number of auxiliary CUDA streams can be limited."""
        return hasattr(self.module.IBuilderConfig, "max_aux_streams")

    @property
    def builder_threads(self) -> bool:
        """Whether the number of the builder's threads can be chosen."""
        return hasattr(self.module.Builder, "max_threads")

    def context_without_memory(self, engine: Any) -> Any:
        """Make an execution context that gets its memory from the caller; None where TensorRT refuses."""
        if self.allocation_strategies:
            return engine.create_execution_context(self.member("ExecutionContextAllocationStrategy", "USER_MANAGED"))
        return engine.create_execution_context_without_device_memory()

    def generations(self) -> list[str]:
        """Return the GPU generations that can be targets, such as "SM86"."""
        return [name for name in self._members("ComputeCapability") if name.startswith("SM")]

    def supports(self, compute_capability: str) -> bool | None:
        """Tell whether the library supports a GPU; None: not known, it has to be tried.

        TensorRT-RTX lists the generations that it knows; for the others see `export.tensorrt.driver`.
        """
        if generations := self.generations():
            return f"SM{compute_capability.replace('.', '')}" in generations
        return supports(self.flavour, self.version, compute_capability)

    def has(self, enum: str, name: str) -> bool:
        """Tell whether the enumeration ``enum`` exists in this library and has a member ``name``."""
        return name in self._members(enum)

    def _members(self, enum: str) -> Mapping[str, Any]:
        members: Mapping[str, Any] = getattr(getattr(self.module, enum, None), "__members__", {})
        return members

    def member(self, enum: str, name: str) -> Any:
        """Look up an enumeration member by name; numbers moved between versions.

        Args:
            enum: name of the enumeration, such as "BuilderFlag".
            name: name of the member, such as "TF32".

        Raises:
            ProjectError: this library has no such enumeration or member.
        """
        members = self._members(enum)
        if name not in members:
            raise ProjectError(
                f"Expected {enum}.{name} in TensorRT. Received: {self.flavour} {self.version} with "
                f"{', '.join(members) or 'no such enumeration'}. "
                f"Choose an option that this version has, or install another: {INSTALL[self.flavour]}."
            )
        return members[name]

    def logger(self) -> Any:
        """Return the logger of this library for this process, cleared; ``lines(n)`` returns its last messages.

        There is one for the whole process, because TensorRT keeps the first logger that it is given.
        """
        if id(self.module) not in _loggers:
            _loggers[id(self.module)] = (self.module, _make_logger(self.module))  # the reference keeps the id valid
        _, logger = _loggers[id(self.module)]
        logger.clear()
        return logger


def find_tensorrt(flavour: str | None = None) -> TensorRT | None:
    """Import a TensorRT library.

    Args:
        flavour: "tensorrt", "rtx", or None for the first that can be imported, in this order. Defaults to None.

    Returns:
        TensorRT | None: None when there is none; `why_missing` then returns the reasons.

    Raises:
        ProjectError: no such flavour.
    """
    if flavour is not None and flavour not in FLAVOURS:
        raise ProjectError(f"Expected a TensorRT flavour of {', '.join(FLAVOURS)}. Received: {flavour!r}.")
    for name in FLAVOURS if flavour is None else (flavour,):
        reasons = []
        for candidate in FLAVOURS[name]:
            try:
                module = _import(candidate)
                trt = TensorRT(module, name, str(module.__version__))
                # A stub package can be imported but is empty.
                for needed in ("Builder", "OnnxParser", "Runtime", "ILogger"):
                    getattr(module, needed)
            except ModuleNotFoundError as error:
                # Not installed, unless a dependency of the package is missing.
                absent = error.name is not None and error.name.split(".")[0] == candidate
                reasons.append(f"{candidate} is not installed" if absent else f"{candidate} is broken: {error}")
            except Exception as error:  # a missing libcuda, a wrong CUDA, a stub: an import can raise anything
                reasons.append(f"{candidate} is broken: {type(error).__name__}: {error}")
            else:
                _why_missing.pop(name, None)
                return trt
        # A broken installation is what the user needs to know about, more than a package that is not installed.
        broken = [reason for reason in reasons if "is broken" in reason]
        _why_missing[name] = "; ".join(broken or reasons) + f". Install it: {INSTALL[name]}"
        log.debug("TensorRT flavour %s: %s", name, _why_missing[name])
    return None


def why_missing() -> dict[str, str]:
    """Return why flavours cannot be used.

    Returns:
        dict[str, str]: flavour to reason, without the flavours that work.
    """
    for flavour in FLAVOURS:
        find_tensorrt(flavour)
    return dict(_why_missing)


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


_loggers: dict[int, tuple[Any, Any]] = {}  # id of a library's module to the module and its logger


def _make_logger(module: Any) -> Any:
    severity = module.ILogger.Severity
    levels = {
        int(severity.INTERNAL_ERROR): logging.ERROR,
        int(severity.ERROR): logging.ERROR,
        int(severity.WARNING): logging.WARNING,
        int(severity.INFO): logging.DEBUG,
    }

    class Logger(module.ILogger):  # type: ignore[misc]
        """Forwards TensorRT's messages to `logging` and keeps the last ones for error messages."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._errors: collections.deque[str] = collections.deque(maxlen=8)
            self._others: collections.deque[str] = collections.deque(maxlen=8)
            self._listing: collections.deque[str] = collections.deque(maxlen=1)
            self.error: BaseException | None = None

        def log(self, severity: Any, msg: str) -> None:
            try:
                level = levels.get(int(severity))
                if level is not None:
                    log.log(logging.DEBUG if level < logging.ERROR else logging.INFO, "TensorRT: %s", msg)
                elif msg.startswith("Layers:\n"):  # VERBOSE, with thousands of other messages a build
                    self._listing.append(msg)
                if level == logging.ERROR:
                    self._errors.append(msg)
                elif level == logging.WARNING:
                    self._others.append(msg)
            except BaseException as error:  # TensorRT would swallow it, even a Ctrl-C; `raise_pending` raises it again
                self.error = error

        def raise_pending(self) -> None:
            """Raise the exception that occurred inside the callback, once."""
            error, self.error = self.error, None
            if error is not None:
                raise error

        def clear(self) -> None:
            self._errors.clear()
            self._others.clear()
            self._listing.clear()

        def heard(self) -> bool:
            """Tell whether there was a warning or an error since the last `clear`."""
            return bool(self._errors or self._others)

        def listing(self) -> str:
            """Return the message that lists the layers of the engine built since the last `clear`, or ""."""
            return "".join(self._listing)

        def lines(self, count: int = 4) -> str:
            """Return the last errors, or the last warnings where there were no errors."""
            return " | ".join(list(self._errors or self._others)[-count:]) or "(TensorRT logged nothing)"

    return Logger()
