"""The part of the fake TensorRT that builds; a plan says what it was built from, and the fake GPU runs it.

What an ONNX file holds is not read: its name tells the precision, as "model.int8.onnx" or "fp16.onnx".
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fakes.gpu import FakeTensorRT

# Numbers are made up, but for what 10 and 11 agree on; the members that a version has are looked up in names.txt.
ENUMERATIONS: dict[str, Any] = {
    name: enum.IntEnum(name, members, start=0)
    for name, members in {
        "BuilderFlag": (
            "FP16", "INT8", "REFIT", "TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL",
            "REQUIRE_USER_ALLOCATION",
        ),
        "ComputeCapability": ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120"),
        "HardwareCompatibilityLevel": ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        "MemoryPoolType": ("WORKSPACE",),
        "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
        "PreviewFeature": ("DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", "PROFILE_SHARING_0806"),
        "TacticSource": ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
    }.items()
}  # fmt: skip


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    UINT8 = 5


class LayerType(enum.Enum):
    CONVOLUTION = 0
    QUANTIZE = 1
    DEQUANTIZE = 2


class ITensor:
    name = ""
    dtype = DataType.FLOAT
    shape: tuple[int, ...] = ()


class ILayer:
    name = ""
    type = LayerType.CONVOLUTION
    num_outputs = 1

    def __init__(self, given: ITensor, output: ITensor) -> None:
        self._given, self._output = given, output

    def get_input(self, index: int) -> ITensor | None:
        return self._given if index == 0 else None

    def get_output(self, index: int) -> ITensor:
        return (self._output,)[index]


class INetworkDefinition:
    """The tensors of the model, and one convolution in the precision that the file's name says."""

    _gpu: FakeTensorRT

    def __init__(self) -> None:
        self._layers: list[ILayer] = []
        self._tensors: dict[str, ITensor] = {}

    num_inputs = property(lambda self: 1)
    num_outputs = property(lambda self: len(self._tensors) - 1)
    num_layers = property(lambda self: len(self._layers))

    def _tensor(self, name: str, dtype: DataType, *shape: int) -> ITensor:
        made: ITensor = self._gpu.module.ITensor()
        made.name, made.dtype, made.shape = name, dtype, shape
        return made

    def _add(self, name: str, kind: LayerType, given: ITensor, dtype: DataType) -> ITensor:
        output = self._tensor(f"{name}_output", dtype, -1)
        layer: ILayer = self._gpu.module.ILayer(given, output)
        layer.name, layer.type = name, kind
        self._layers.append(layer)
        return output

    def _read(self, path: str) -> None:
        gpu, file = self._gpu, path.rpartition("/")[2]
        outputs = [(name, DataType.FLOAT, gpu.classes) for name in ("logits", "probabilities")]
        outputs += [(name, DataType.INT32 if "classes" in name else DataType.FLOAT, 2) for name in gpu.top]
        tensors = [self._tensor("images", DataType.UINT8, -1, *gpu.size, 3)]
        tensors += [self._tensor(name, dtype, -1, count) for name, dtype, count in outputs]
        self._tensors = {tensor.name: tensor for tensor in tensors}
        half = DataType.HALF if "fp16" in file and gpu.strong else DataType.FLOAT
        given = self._tensor("cast", half, -1)
        for kind in (LayerType.QUANTIZE, LayerType.DEQUANTIZE) if "int8" in file else ():
            given = self._add(kind.name.lower(), kind, given, half)
        self._add("conv", LayerType.CONVOLUTION, given, half)

    def get_input(self, index: int) -> ITensor:
        return [*self._tensors.values()][:1][index]

    def get_output(self, index: int) -> ITensor:
        return [*self._tensors.values()][1:][index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class ParserError:
    def desc(self) -> str:
        return "no plugin"

    def node(self) -> int:
        return 3

    def node_name(self) -> str:
        return "relu"

    def node_operator(self) -> str:
        return "FancyRelu"


class OnnxParser:
    _gpu: FakeTensorRT

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network = network
        self._gpu.logger = logger

    num_errors = property(lambda self: int(self._gpu.fail == "parse_from_file"))

    def get_error(self, index: int) -> ParserError:
        made: ParserError = self._gpu.module.ParserError()
        return made

    def parse_from_file(self, path: str) -> bool:
        self._network._read(path)
        return self._gpu.ok("parse_from_file")


class IOptimizationProfile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        assert name == "images"
        self._batches = [shape[0] for shape in shapes]


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data or b"timed"


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class IBuilderConfig:
    _gpu: FakeTensorRT
    builder_optimization_level = 3
    hardware_compatibility_level: Any = None
    max_aux_streams = 0
    num_compute_capabilities = 1
    profiling_verbosity: Any = None
    progress_monitor: Any = None

    def __init__(self) -> None:
        self._flags = {"TF32"}
        self._profiles: list[IOptimizationProfile] = []
        self._targets: dict[int, Any] = {}
        self._limits: dict[Any, int] = {}
        self._timed: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._limits[pool] = size

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        assert on

    def set_tactic_sources(self, sources: int) -> bool:
        return self._gpu.ok("set_tactic_sources")

    def set_compute_capability(self, target: Any, index: int) -> bool:
        self._targets[index] = target
        return index < self.num_compute_capabilities

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        made: ITimingCache = self._gpu.module.ITimingCache(data)
        return made

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timed = cache
        return not ignore_mismatch


class Builder:
    _gpu: FakeTensorRT
    max_threads = 1

    def __init__(self, logger: Any) -> None:
        self._gpu.logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        kinds, name = self._gpu.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"
        assert flags & 1 << kinds[name if self._gpu.strong else "EXPLICIT_BATCH"]
        made: INetworkDefinition = self._gpu.module.INetworkDefinition()
        return made

    def create_builder_config(self) -> IBuilderConfig:
        made: IBuilderConfig = self._gpu.module.IBuilderConfig()
        return made

    def create_optimization_profile(self) -> IOptimizationProfile:
        made: IOptimizationProfile = self._gpu.module.IOptimizationProfile()
        return made

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        gpu, monitor = self._gpu, getattr(config, "progress_monitor", None)
        weak = config._flags & {"FP16", "INT8"}
        assert not (gpu.strong and weak), "a strongly typed network takes no such flag"
        assert gpu.kind != "rtx" or "REQUIRE_USER_ALLOCATION" in config._flags
        if monitor is not None:
            monitor.phase_start("build", None, 1)
            if not monitor.step_complete("build", 0):
                return None
            monitor.phase_finish("build")
        if not gpu.ok("build_serialized_network"):
            return None
        (profile,) = config._profiles
        half = network._layers[-1]._given.dtype is DataType.HALF or "FP16" in weak
        plan = {
            "size": gpu.size,
            "classes": gpu.classes,
            "batches": profile._batches,
            "type": "Int8" if len(network._layers) > 1 else "Half" if half else "Float",
            "stripped": "STRIP_PLAN" in config._flags,
        }
        return json.dumps(plan).encode()


FAKES: dict[str, Any] = {
    **ENUMERATIONS,
    **{
        fake.__name__: fake
        for fake in (
            Builder, IBuilderConfig, ILayer, INetworkDefinition, IOptimizationProfile, IProgressMonitor, ITensor,
            ITimingCache, OnnxParser, ParserError,
        )
    },
}  # fmt: skip
