"""Stands for TensorRT 10.3, as JetPack 6 has it: it builds "engines" and runs them on the fake GPU.

What an ONNX file computes it cannot know. ``ORIN_REFERENCE`` names a ``reference.npz``: of a picture in there an engine
gives Keras' logits, of any other picture the means of its channels. A plan says for which sizes it was built.
"""

import enum
import functools
import json
import os
from typing import Any

import cuda.bindings.runtime as runtime
import numpy as np

from tests import fake_gpu

__version__ = "10.3.0"

_gpu = fake_gpu.FakeTensorRT(runtime, kind="10")  # type: ignore[arg-type]
ILogger = _gpu.trt.module.ILogger
ProfilingVerbosity = _gpu.trt.module.ProfilingVerbosity
IExecutionContext = _gpu.trt.module.IExecutionContext
ICudaEngine = _gpu.trt.module.ICudaEngine
ExecutionContextAllocationStrategy = _gpu.trt.module.ExecutionContextAllocationStrategy


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    FP16 = 0
    INT8 = 1
    TF32 = 7


class LayerInformationFormat(enum.IntEnum):
    ONELINE = 0
    JSON = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


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


@functools.cache
def _answers() -> tuple[np.ndarray, np.ndarray]:
    with np.load(os.environ["ORIN_REFERENCE"], allow_pickle=False) as file:
        return file["pixels"], file["logits"]


def _means(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean((1, 2), dtype=np.float64).astype(np.float32)


def _answer(results: dict[str, np.ndarray]) -> None:
    """Put Keras' logits in the place of the means of the pictures that it was asked about."""
    pixels, logits = _answers()
    known = {mean.tobytes(): row for mean, row in zip(_means(pixels), logits)}
    assert len(known) == len(pixels), "two pictures have the same means"
    unknown = np.zeros(logits.shape[1], np.float32)
    answers = np.stack([known.get(mean.tobytes(), unknown) for mean in results["logits"]])
    exp = np.exp(answers - answers.max(1, keepdims=True))
    results |= {"logits": answers, "probabilities": exp / exp.sum(1, keepdims=True)}


_gpu.spoil = _answer


class _Tensor:
    def __init__(self, name: str, dtype: DataType, *shape: int) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class _Layer:
    num_outputs = 1

    def __init__(self, name: str, kind: LayerType, given: _Tensor, dtype: DataType) -> None:
        self.name, self.type, self._given = name, kind, given
        self._output = _Tensor(f"{name}_output", dtype, -1)

    def get_input(self, index: int) -> _Tensor:
        return self._given

    def get_output(self, index: int) -> _Tensor:
        return self._output


class _Network:
    """The tensors of the model, and one convolution in the precision that the file's name says."""

    num_inputs, num_outputs = 1, 2

    def __init__(self, flags: int) -> None:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.layers: list[_Layer] = []

    num_layers = property(lambda self: len(self.layers))

    def read(self, path: str) -> None:
        pixels, logits = _answers()
        self.size, self.classes = pixels.shape[1:3], logits.shape[1]
        self.images = _Tensor("images", DataType.UINT8, -1, *self.size, 3)
        self.results = [_Tensor(name, DataType.FLOAT, -1, self.classes) for name in ("logits", "probabilities")]
        half = DataType.HALF if ".fp16" in path else DataType.FLOAT
        given = _Tensor("cast", half, -1)
        for kind in (LayerType.QUANTIZE, LayerType.DEQUANTIZE) if ".int8" in path else ():
            self.layers.append(_Layer(kind.name.lower(), kind, given, half))
            given = self.layers[-1].get_output(0)
        self.layers.append(_Layer("conv", LayerType.CONVOLUTION, given, half))

    def get_input(self, index: int) -> _Tensor:
        return self.images

    def get_output(self, index: int) -> _Tensor:
        return self.results[index]

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: _Network, logger: Any) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.read(path)
        return os.path.getsize(path) > 0


class _Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.batches = [shape[0] for shape in shapes]


class IBuilderConfig:
    profiling_verbosity: Any = None
    builder_optimization_level = 3
    max_aux_streams = 0

    def __init__(self) -> None:
        self.flags: set[int] = {BuilderFlag.TF32}
        self.profiles: list[_Profile] = []

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: int) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Builder:
    max_threads = 1

    def __init__(self, logger: Any) -> None: ...

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: IBuilderConfig) -> bytes:
        assert not config.flags & {BuilderFlag.FP16, BuilderFlag.INT8}, "a strongly typed network takes no such flag"
        (profile,) = config.profiles
        plan = {
            "size": network.size,
            "classes": network.classes,
            "batches": profile.batches,
            "type": network.layers[-1].get_input(0).dtype.name,
            "quantized": len(network.layers) > 1,
        }
        return json.dumps(plan).encode()


class _Shapes:
    """A context of which only the types of layers are asked."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True


class _Inspector:
    execution_context: Any = None

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form == LayerInformationFormat.JSON
        assert self.execution_context is not None, "without a shape the types of the layers are not known"
        kind = "Int8" if self.plan["quantized"] else {"FLOAT": "Float", "HALF": "Half"}[self.plan["type"]]
        tensor = {"Name": "x", "Dimensions": [1], "Format/Datatype": kind}
        layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor],
                 "Metadata": "[ONNX Layer: conv]"}  # fmt: skip
        return json.dumps({"Layers": [layer]})


class _Engine(fake_gpu.FakeEngine):
    def __init__(self, gpu: fake_gpu.FakeTensorRT, plan: dict[str, Any]) -> None:
        super().__init__(gpu)
        self.plan = plan

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = super().get_tensor_shape(name)
        return shape if name == "images" else (-1, self.plan["classes"])

    def create_execution_context(self, how: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        if how == ExecutionContextAllocationStrategy.STATIC:
            return _Shapes()
        return super().create_execution_context(how)

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self.plan)


class Runtime(_gpu.trt.module.Runtime):  # type: ignore[misc, name-defined]
    def deserialize_cuda_engine(self, plan: Any) -> Any:
        said = json.loads(bytes(plan))
        _gpu.size, _gpu.profile = tuple(said["size"]), tuple(said["batches"])
        return _Engine(_gpu, said)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"TensorRT 10.3 has no {name}")
