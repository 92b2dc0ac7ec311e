"""What a build can be asked for besides precision and batch sizes; each option is given to TensorRT or refused by name.

Python 3.10 syntax, the standard library alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from export.errors import ProjectError
from export.tensorrt.driver import AMPERE, DriverStatus, as_numbers
from export.tensorrt.library import INSTALL, TensorRT

# By the names of the library's HardwareCompatibilityLevel, in lower case.
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

# Whole numbers and their ranges. The top of the last two is what no machine exceeds, to catch a slip of the keyboard.
_RANGES = {
    "workspace_mib": (1, 1 << 24, "MiB"),
    "optimization_level": (0, 5, "the levels TensorRT has"),
    "max_aux_streams": (0, 64, "CUDA streams"),
    "builder_threads": (1, 1024, "threads"),
}


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. What is None or off is left at the library's default.

    Attributes:
        tf32: let FP32 convolutions round their inputs to TF32. Defaults to False: parity needs it off.
        workspace_mib: limit of scratch memory in MiB. Defaults to None: the GPU's memory.
        optimization_level: the builder's effort, 0 to 5. Defaults to None.
        targets: GPU generations the plan is for, as "8.6", "SM86" or "current"; TensorRT-RTX only. Defaults to none:
            every GPU of compute capability 8.0 and later that TensorRT-RTX supports.
        timing_cache: file that keeps what TensorRT timed, for the next build. Defaults to None: nothing is kept.
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
        for name, (low, high, what) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and low <= value <= high):
                raise ProjectError(
                    f"Expected {name} from {low} to {high} ({what}), or none. Received: {value!r}. Correct the recipe."
                )
        for name in ("tf32", "version_compatible", "strip_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ProjectError(f"Expected {name} true or false. Received: {getattr(self, name)!r}.")
        levels = get_args(HardwareCompatibility)
        if self.hardware_compatibility not in levels:
            raise ProjectError(
                f"Expected hardware_compatibility of {', '.join(levels)}. Received: {self.hardware_compatibility!r}."
            )
        if isinstance(self.targets, str) or not all(isinstance(target, str) for target in self.targets):
            raise ProjectError(f"Expected targets as a list of names such as SM86. Received: {self.targets!r}.")
        if self.timing_cache is not None and os.path.isdir(self.timing_cache):
            raise ProjectError(f"Expected timing_cache to be a file. Received: {self.timing_cache}, a folder.")
        if self.strip_weights and self.version_compatible:
            # NVIDIA: "the lean runtime cannot refit", and a version-compatible plan runs on it.
            raise ProjectError(
                "Expected strip_weights or version_compatible. Received: both; the lean runtime that runs a "
                "version-compatible plan cannot put weights back. Choose one."
            )


def refuse_unsupported(options: BuildOptions, trt: TensorRT, driver: DriverStatus) -> None:
    """Refuse, by name, what this TensorRT or this GPU cannot do; nothing that was asked for is left out silently.

    Raises:
        ProjectError: the option, the library, why and what to do.
    """
    level = options.hardware_compatibility
    bound = "its plans are for one release and for its targets" if trt.targets else "it has no such flag or level"
    for name, asked, able, why in (
        ("targets", bool(options.targets), trt.targets, "it builds for the GPU of this machine"),
        ("version_compatible", options.version_compatible, trt.version_compatible, bound),
        (f"hardware_compatibility: {level}", level != "none", trt.hardware_compatible(level), bound),
        ("strip_weights", options.strip_weights, trt.strips_weights, "its BuilderFlag has no STRIP_PLAN"),
        ("max_aux_streams", options.max_aux_streams is not None, trt.max_aux_streams, "its IBuilderConfig has none"),
        ("builder_threads", options.builder_threads is not None, trt.builder_threads, "its Builder has no max_threads"),
    ):
        if not asked or able:
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
    here = driver.devices[0].compute_capability if driver else None
    if level == "ampere_plus" and here is not None and as_numbers(here) < AMPERE:
        raise ProjectError(
            "Expected a GPU of compute capability 8.0 (Ampere) or later to build with hardware_compatibility: "
            f"ampere_plus. Received: {here} here. Build on such a GPU, or remove it from the recipe's build section."
        )


def described(options: BuildOptions) -> dict[str, object]:
    """Give the options for a sidecar; the path of the timing cache stays out, it says nothing about the engine."""
    names = (
        "tf32", "workspace_mib", "optimization_level", "version_compatible", "hardware_compatibility", "strip_weights",
        "max_aux_streams", "builder_threads",
    )  # fmt: skip
    return {name: getattr(options, name) for name in names}
