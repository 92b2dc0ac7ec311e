"""Facts about this machine that decide what runs a model; `environment` has those that decide what is built."""

from __future__ import annotations

from pipeline.environment import describe_gpu, installed_tensorrts
from pipeline.recipe import Recipe
from pipeline.runners.onnxruntime import is_installed
from pipeline.runners.providers import BACKENDS, why_not


def runtime_environment(settings: Recipe) -> dict[str, object]:
    """The GPU, each TensorRT, ONNX Runtime and its CUDA provider, and the permission to run what engines bring.

    A permission is no setting that gives other numbers, but an engine that was refused for want of it has none at all.

    Args:
        settings: its part ``runtime``.
    """
    there = {
        BACKENDS["cpu"]: "installed" if is_installed() else "",
        BACKENDS["cuda"]: "" if why_not("cuda") else "active",
        "runtime.host_code": "permitted" if settings.runtime.host_code else "",
    }
    facts: dict[str, object] = {"gpu": describe_gpu(), "tensorrt": None, **installed_tensorrts()}
    return facts | {name: what for name, what in there.items() if what}
