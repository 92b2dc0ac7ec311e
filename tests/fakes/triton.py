"""A small Triton: runs the models of a repository in this process, by their `config.pbtxt` as Triton's schema reads it.

`run_ensemble` answers image files. The Python model runs with a stub of ``triton_python_backend_utils`` and with the
modules that lie in the repository, not those of this checkout; ONNX files run in ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format

OURS = ("pipeline", "export", "benchmarks")  # packages of this checkout
LEVELS = {  # of optimization.graph.level, as the ONNX Runtime backend reads them
    -1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL",
}  # fmt: skip


class TritonError(Exception):
    """An error of a request; the code is that of the real class."""

    INVALID_ARG = 3

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class TritonModelException(Exception):
    """A model that does not load."""


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class InferenceRequest:
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = {tensor.name(): tensor for tensor in tensors}


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor for tensor in output_tensors}
        self.error = error


def backend_utils() -> ModuleType:
    """A stub of ``triton_python_backend_utils``, with the names that the model asks for."""
    module = ModuleType("triton_python_backend_utils")
    for part in (TritonError, TritonModelException, Tensor, InferenceRequest, InferenceResponse):
        setattr(module, part.__name__, part)
    module.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)  # type: ignore[attr-defined]
    return module


def schema() -> Any:
    """Triton's ``model_config_pb2``, by its path: the package beside it needs gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    if "model_config_pb2" not in sys.modules:  # a schema can be registered once a process
        spec = importlib.util.spec_from_file_location("model_config_pb2", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["model_config_pb2"] = module
    return sys.modules["model_config_pb2"]


def read_config(repository: Path, name: str) -> Any:
    """The configuration of a model; an unknown field or type is an error."""
    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, schema().ModelConfig())
    assert config.name == name, "Triton wants the folder's name"
    return config


@contextlib.contextmanager
def only_what_lies_there() -> Iterator[None]:
    """Without this checkout's modules, as in a server's Python; they come back when the block ends."""
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in OURS}
    path, utils = list(sys.path), "triton_python_backend_utils"
    for name in ours:
        del sys.modules[name]
    root = Path(__file__).resolve().parents[2]
    sys.path[:] = [place for place in path if place and Path(place).resolve() != root]
    sys.modules[utils] = backend_utils()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS] + [utils]:
            del sys.modules[name]
        sys.modules.update(ours)
        sys.path[:] = path


class PythonModel:
    """A model of the Python backend."""

    def __init__(self, repository: Path, config: Any) -> None:
        self.config, folder = config, repository / config.name / "1"
        spec = importlib.util.spec_from_file_location(f"{config.name}.model", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        with only_what_lies_there():
            spec.loader.exec_module(module)
            self.model = module.TritonPythonModel()
            self.model.initialize({"model_config": text, "model_name": config.name, "model_version": "1"})

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one request."""
        (response,) = self.model.execute([InferenceRequest([Tensor(*item) for item in inputs.items()])])
        if response.error is not None:
            raise response.error
        return {name: tensor.as_numpy() for name, tensor in response.tensors.items()}


class OnnxModel:
    """A model of the ONNX Runtime backend."""

    def __init__(self, repository: Path, config: Any) -> None:
        self.config = config
        options = onnxruntime.SessionOptions()
        level = LEVELS[config.optimization.graph.level]
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        path = repository / config.name / "1" / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one request."""
        names = [output.name for output in self.config.output]
        return dict(zip(names, self.session.run(names, inputs), strict=True))


class Ensemble:
    """An ensemble; its steps run one after the other."""

    def __init__(self, repository: Path, config: Any) -> None:
        self.config = config
        self.steps = [(step, load(repository, step.model_name)) for step in config.ensemble_scheduling.step]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one request."""
        tensors = dict(inputs)
        for step, model in self.steps:
            answers = ask(model, {name: tensors[ours] for name, ours in step.input_map.items()})
            tensors |= {ours: answers[name] for name, ours in step.output_map.items()}
        return {output.name: tensors[output.name] for output in self.config.output}


def load(repository: Path, name: str) -> Any:
    """A model of a repository, by its platform or backend."""
    assert (repository / name / "1").is_dir(), "Triton wants the folder of a version"
    config = read_config(repository, name)
    kinds = {"ensemble": Ensemble, "python": PythonModel, "onnxruntime_onnx": OnnxModel}
    return kinds[config.platform or config.backend](repository, config)


def ask(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a model answers; inputs and outputs are held against its configuration."""
    check(model.config, model.config.input, inputs)
    answers = model.run(inputs)
    check(model.config, model.config.output, answers)
    return answers


def check(config: Any, declared: Any, tensors: dict[str, np.ndarray]) -> None:
    """Refuse other names, types or shapes than those of a configuration."""
    types = {"TYPE_STRING": "object", "TYPE_UINT8": "uint8", "TYPE_FP32": "float32", "TYPE_INT32": "int32"}
    assert tensors.keys() == {tensor.name for tensor in declared}
    for tensor in declared:
        found = SimpleNamespace(type=tensors[tensor.name].dtype.name, shape=tensors[tensor.name].shape)
        assert found.type == types[schema().DataType.Name(tensor.data_type)], tensor.name
        assert found.shape[1:] == tuple(tensor.dims), tensor.name
        assert 1 <= found.shape[0] <= config.max_batch_size, tensor.name


def run_ensemble(repository: Path, name: str, contents: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Answer image files with an ensemble of a repository, in requests as large as it takes.

    Args:
        repository: the folder that Triton would get.
        name: of the ensemble.
        contents: image files, at least one.

    Returns:
        dict[str, np.ndarray]: each output, with a row an image.

    Raises:
        TritonError: an image of a request cannot be decoded.
    """
    model = load(repository, name)
    size = model.config.max_batch_size
    files = np.array([[content] for content in contents], object)
    parts = [ask(model, {"files": files[start : start + size]}) for start in range(0, len(files), size)]
    return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
