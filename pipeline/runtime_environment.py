"""Facts about this machine that decide what runs a model; `environment` has those that decide what is built."""

from __future__ import annotations

from pipeline.environment import machine_environment
from pipeline.runners.providers import BACKENDS, why_not


def runtime_environment() -> dict[str, object]:
    """The TensorRT and the GPU of this machine, and ONNX Runtime on CUDA where that is active."""
    active = {} if why_not("cuda") else {"onnxruntime": BACKENDS["cuda"]}
    return machine_environment() | active
