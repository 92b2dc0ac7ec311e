"""What each TensorRT can do: the names that stand for it, and the versions that have it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.contract.names import Answers
from tests.fakes.gpu import FAKES
from tests.fakes.names import names_of

V8 = frozenset({"8.6.0", "8.6.1"})
V10 = frozenset(f"10.{minor}" for minor in range(17))
V11 = frozenset({"11.0", "11.1", "11.2", "11.3", "11.4"})
RTX = frozenset({"rtx1.7.1"})
CLASSIC = V8 | V10 | V11
STRONG = V10 | V11 | RTX
ALL = CLASSIC | RTX


def later(minor: int) -> frozenset[str]:
    """The strongly typed versions without those of 10 before a minor one."""
    return STRONG - {f"10.{earlier}" for earlier in range(minor)}


@dataclass(frozen=True)
class Capability:
    """The versions that have all of ``names`` and none of ``without``."""

    versions: frozenset[str]
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


TARGETS = ("ComputeCapability", "IBuilderConfig.set_compute_capability", "IBuilderConfig.num_compute_capabilities")

# One that is named as a property of export.tensorrt.library.TensorRT is compared with what that says, too.
CAPABILITIES = {
    # precision
    "strongly_typed": Capability(STRONG, ("NetworkDefinitionCreationFlag.STRONGLY_TYPED",)),
    "precision_flags": Capability(V8 | V10, ("BuilderFlag.FP16", "BuilderFlag.INT8")),
    "explicit_batch": Capability(V8 | V10, ("NetworkDefinitionCreationFlag.EXPLICIT_BATCH",)),
    # building
    "targets": Capability(RTX, TARGETS),
    "builds_without_gpu": Capability(RTX, TARGETS),
    "progress_monitor": Capability(STRONG, ("IProgressMonitor", "IBuilderConfig.progress_monitor")),
    "timing_cache": Capability(
        CLASSIC,
        ("IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache", "ITimingCache.serialize"),
        without=TARGETS,
    ),
    "version_compatible": Capability(CLASSIC, ("BuilderFlag.VERSION_COMPATIBLE",), without=TARGETS),
    "hardware_compatibility: ampere_plus": Capability(
        ALL, ("HardwareCompatibilityLevel.AMPERE_PLUS", "IBuilderConfig.hardware_compatibility_level")
    ),
    "hardware_compatibility: same_compute_capability": Capability(
        later(9), ("HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",)
    ),
    "strips_weights": Capability(STRONG, ("BuilderFlag.STRIP_PLAN", "BuilderFlag.REFIT_IDENTICAL")),
    "strips_weights_without_gpu": Capability(CLASSIC, without=TARGETS),
    "max_aux_streams": Capability(ALL, ("IBuilderConfig.max_aux_streams",)),
    "builder_threads": Capability(ALL, ("Builder.max_threads",)),
    "named_parser_errors": Capability(STRONG, ("ParserError.node_name", "ParserError.node_operator")),
    # weights put back
    "refit": Capability(ALL, ("BuilderFlag.REFIT", "Refitter.refit_cuda_engine", "ICudaEngine.refittable")),
    "refit_from_onnx": Capability(STRONG, ("OnnxParserRefitter.refit_from_file",)),
    # loading and running
    "engine_inspector": Capability(
        ALL, ("ICudaEngine.create_engine_inspector", "EngineInspector.get_engine_information")
    ),
    "engine_host_code_allowed": Capability(ALL, ("Runtime.engine_host_code_allowed",)),
    "engine_validity": Capability(RTX, ("Runtime.get_engine_validity", "EngineValidity")),
    "runtime_config": Capability(
        later(11),
        ("ICudaEngine.create_runtime_config", "IRuntimeConfig.set_execution_context_allocation_strategy"),
    ),
    "jit": Capability(
        RTX,
        (
            "IRuntimeConfig.cuda_graph_strategy",
            "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
            "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
            "DynamicShapesKernelSpecializationStrategy.EAGER",
            "IRuntimeConfig.create_runtime_cache",
            "IRuntimeConfig.set_runtime_cache",
            "IRuntimeCache.serialize",
            "IRuntimeCache.deserialize",
            "IExecutionContext.is_stream_capturable",
        ),
    ),
    "user_allocation": Capability(RTX, ("BuilderFlag.REQUIRE_USER_ALLOCATION",)),
    # memory of an execution context in our hands
    "allocation_strategies": Capability(STRONG, ("ExecutionContextAllocationStrategy.USER_MANAGED",)),
    "memory_for_shapes": Capability(STRONG, ("IExecutionContext.update_device_memory_size_for_shapes",)),
    "memory_with_size": Capability(later(1), ("IExecutionContext.set_device_memory",)),
    "memory_size_v2": Capability(
        later(1), ("ICudaEngine.device_memory_size_v2", "ICudaEngine.get_device_memory_size_for_profile_v2")
    ),
    "device_memory_size_for_profile": Capability(V10, ("ICudaEngine.get_device_memory_size_for_profile",)),
    "without_device_memory": Capability(
        V8 | V10, ("ICudaEngine.create_execution_context_without_device_memory", "ICudaEngine.device_memory_size")
    ),
    "device_memory_address": Capability(ALL, ("IExecutionContext.device_memory",)),
}


def names_needed() -> set[str]:
    """The names that have to be in ``names.txt``: of the fakes and of the capabilities."""
    needed = {name for fake in FAKES for name in names_of(fake, FAKES[fake])}
    for capability in CAPABILITIES.values():
        needed |= {*capability.names, *capability.without}
    return needed


def wrong_capabilities(version: str, answers: Answers) -> list[str]:
    """Rows of the capability table that a TensorRT with these names contradicts."""
    found = []
    for name, row in CAPABILITIES.items():
        if None in (answers[one] for one in (*row.names, *row.without)):
            continue
        wrong = [f"no {one}" for one in row.names if not answers[one]] + [one for one in row.without if answers[one]]
        if (not wrong) != (version in row.versions):
            found.append(
                f"Expected TensorRT {version} {'with' if wrong else 'without'} {name}, as "
                f"tests/contract/capability_table.py says. Received: {', '.join(wrong) or 'every one of its names'}."
            )
    return found


def wrong_answers(version: str, answers: dict[str, object], properties: Iterable[str]) -> list[str]:
    """Properties of export.tensorrt.library.TensorRT that say something else than the capability table."""
    found = []
    for name in properties:
        if name not in CAPABILITIES:
            found.append(f"Expected the capability {name} in tests/contract/capability_table.py. Received: no row.")
        elif bool(answers[name]) != (version in CAPABILITIES[name].versions):
            found.append(
                f"Expected trt.{name} to be {not answers[name]} with TensorRT {version}, as "
                f"tests/contract/capability_table.py says. Received: {answers[name]}."
            )
    return found
