"""Define the build options besides precision and batch sizes, and refuse those that TensorRT or the GPU cannot do.

The module needs Python 3.10 and the standard library alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from export.errors import ProjectError
from export.tensorrt.driver import AMPERE, DriverStatus, version_numbers
from export.tensorrt.library import INSTALL, TensorRT

# By the names of the library's HardwareCompatibilityLevel, in lower case.
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

# Integer options with their ranges. The upper limits of the last two catch typing errors; no machine exceeds them.
_RANGES = {
    "workspace_mib": (1, 1 << 24, "MiB"),
    "optimization_level": (0, 5, "the levels TensorRT has"),
    "max_aux_streams": (0, 64, "CUDA streams"),
    "builder_threads": (1, 1024, "threads"),
}


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine. Options that are None or off keep the library's default.

    Attributes:
        tf32: let FP32 convolutions round their inputs to TF32. Defaults to False: parity needs it off.
        workspace_mib: limit of scratch memory in MiB. Defaults to None: the GPU's memory.
        optimization_level: the builder's effort, 0 to 5. Defaults to None.
        targets: GPU generations the plan is for, as "8.6", "SM86" or "current"; TensorRT-RTX only. Defaults to none:
            every GPU of compute capability 8.0 and later that TensorRT-RTX supports.
        timing_cache: file that keeps TensorRT's timings for the next build. Defaults to None: no cache.
        version_compatible: the plan runs on later versions of TensorRT too. Defaults to False.
        hardware_compatibility: "ampere_plus": the plan runs on every GPU from Ampere (8.0) on;
            "same_compute_capability": on every GPU of that generation. Defaults to "none".
        strip_weights: leave the weights out of the plan; they are put back from the ONNX file when it is loaded.
            Defaults to False.
        max_aux_streams: further CUDA streams an inference may use. Defaults to None.
        builder_threads: threads the builder may use. Defaults to None.

    Raises:
        ProjectError: a value of the wrong type or out of range.
    """

    tf32: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    targets: Sequence[str] = ()
    timing_cache: str | os.PathLike[str] | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    strip_weights: bool = False
    max_aux_streams: int | None = None
    builder_threads: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high, unit) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (type(value) is int and low <= value <= high):  # a bool is not a number here
                raise ProjectError(
                    f"Expected {name} from {low} to {high} ({unit}), or none. Received: {value!r}. Correct the recipe."
                )
        for name in ("tf32", "version_compatible", "strip_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ProjectError(f"Expected {name} true or false. Received: {getattr(self, name)!r}.")
        levels = get_args(HardwareCompatibility)
        for wrong, expected, received in (
            (
                self.hardware_compatibility not in levels,
                f"hardware_compatibility of {', '.join(levels)}",
                repr(self.hardware_compatibility),
            ),
            (
                isinstance(self.targets, str) or not all(isinstance(target, str) for target in self.targets),
                "targets as a list of names such as SM86",
                repr(self.targets),
            ),
            (
                self.timing_cache is not None and os.path.isdir(self.timing_cache),
                "timing_cache to be a file",
                f"{self.timing_cache}, a folder",
            ),
            (  # NVIDIA: "the lean runtime cannot refit", and a version-compatible plan runs on it
                self.strip_weights and self.version_compatible,
                "strip_weights or version_compatible",
                "both; the lean runtime that runs a version-compatible plan cannot put weights back. Choose one",
            ),
        ):
            if wrong:
                raise ProjectError(f"Expected {expected}. Received: {received}.")


def refuse_unsupported(options: BuildOptions, trt: TensorRT, driver: DriverStatus) -> None:
    """Refuse requested options that this TensorRT or this GPU cannot do, instead of ignoring them.

    Raises:
        ProjectError: an option is not supported; with the option, the library, the reason and what to do.
    """
    level = options.hardware_compatibility
    bound = "its plans are for one release and for its targets" if trt.targets else "it has no such flag or level"
    for name, requested, supported, why in (
        ("targets", bool(options.targets), trt.targets, "it builds for the GPU of this machine"),
        ("version_compatible", options.version_compatible, trt.version_compatible, bound),
        (f"hardware_compatibility: {level}", level != "none", trt.hardware_compatible(level), bound),
        ("strip_weights", options.strip_weights, trt.strips_weights, "its BuilderFlag has no STRIP_PLAN"),
        ("max_aux_streams", options.max_aux_streams is not None, trt.max_aux_streams, "its IBuilderConfig has none"),
        ("builder_threads", options.builder_threads is not None, trt.builder_threads, "its Builder has no max_threads"),
    ):
        if supported or not requested:
            continue
        if name == "targets":
            remedy = f"build with TensorRT-RTX: {INSTALL['rtx']}"
        elif trt.targets and name.startswith("hardware_compatibility"):
            remedy = "name the GPUs with build.targets instead"
        elif trt.targets:
            remedy = "build with TensorRT on the GPU machine, which can"
        else:
            remedy = f"install another version: {INSTALL['tensorrt']}"
        raise ProjectError(
            f"Expected a TensorRT that can do {name}. Received: {trt.flavour} {trt.version}: {why}. "
            f"Remove it from the recipe's build section, or {remedy}."
        )
    if options.strip_weights and not driver and not trt.strips_weights_without_gpu:
        raise ProjectError(
            f"Expected an NVIDIA GPU to build with strip_weights by {trt.flavour} {trt.version}, which compiles what "
            f"refits the weights on it. Received: {driver.reason}. Remove strip_weights from the recipe's build "
            "section, or build on the GPU machine."
        )
    capability = driver.devices[0].compute_capability if driver else None
    if level == "ampere_plus" and capability is not None and version_numbers(capability) < AMPERE:
        raise ProjectError(
            "Expected a GPU of compute capability 8.0 (Ampere) or later to build with hardware_compatibility: "
            f"ampere_plus. Received: {capability} here. Build on such a GPU, or remove it from the recipe's build "
            "section."
        )


def options_record(options: BuildOptions) -> dict[str, object]:
    """Return the options for a sidecar, without the path of the timing cache, which does not describe the engine."""
    return {name: getattr(options, name) for name in (
        "tf32", "workspace_mib", "optimization_level", "version_compatible", "hardware_compatibility", "strip_weights",
        "max_aux_streams", "builder_threads",
    )}  # fmt: skip
