"""An onnxruntime-gpu that computes on the CPU: the real ONNX Runtime, but for what concerns its GPU providers.

As the real one (1.31, read and run without a GPU) it lists CUDA and TensorRT on every machine. Where CUDA does not
load, a session is made all the same and runs on the CPU; where TensorRT does not, the making raises, and is done again
on the CPU unless ``enable_fallback`` is 0. A run that fails on a GPU is done again on the CPU in the same way.
"""

from __future__ import annotations

import functools
import importlib.machinery
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as real
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from export.tensorrt.driver import Device, DriverStatus
from pipeline.runners import onnxruntime

GPU = DriverStatus(True, "", "580.95", "13.0", (Device("Fake GPU", "9.0", 1 << 34),))
NO_GPU = DriverStatus(False, "no NVIDIA driver (its library libcuda is not on this machine)")
CPU = "CPUExecutionProvider"
_SWITCH = re.compile("trt_.*_enable")
ACTIVE = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
# What is printed of a library that is not there.
MISSING = "Failed to load libcublasLt.so.13: cannot open shared object file"
NO_TENSORRT = (
    "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::"
    "RegisterTensorRTPluginsAsCustomOps(PySessionOptions&, const onnxruntime::ProviderOptions&) Please install "
    "TensorRT libraries as mentioned in the GPU requirements page, make sure they're in the PATH or LD_LIBRARY_PATH, "
    "and that your GPU is supported.\n"
)


@dataclass(frozen=True)
class Opened:
    """A session that was made.

    Attributes:
        model: name of the file; "" for bytes.
        asked: the providers, each with its options.
        got: what runs it.
        optimized: whether graph optimizations were on.
    """

    model: str
    asked: tuple[tuple[str, Mapping[str, str]], ...]
    got: tuple[str, ...]
    optimized: bool


class FakeOnnxRuntime(types.ModuleType):
    """Stands for ``onnxruntime``.

    Args:
        listed: GPU providers that it was built with.
        active: those that load here.
    """

    def __init__(self, listed: tuple[str, ...] = ACTIVE, active: tuple[str, ...] = ACTIVE) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = importlib.machinery.ModuleSpec("onnxruntime", None)
        self.listed, self.active = listed, active
        self.opened: list[Opened] = []
        self.preloaded = 0
        self.fails_in_runs = False  # every run on a GPU
        self.shift = 0.0  # added to the first logit of every image on a GPU

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def get_available_providers(self) -> list[str]:
        return [*self.listed, CPU]

    def preload_dlls(self, **options: Any) -> None:
        self.preloaded += 1
        if not self.active:
            print(MISSING)

    def InferenceSession(self, *arguments: Any, **options: Any) -> FakeSession:
        return FakeSession(self, *arguments, **options)


class FakeSession:
    """Stands for ``onnxruntime.InferenceSession``."""

    def __init__(
        self,
        runtime: FakeOnnxRuntime,
        model: str | bytes,
        options: Any = None,
        providers: Any = None,
        enable_fallback: int = 1,
        **more: Any,
    ) -> None:
        self._runtime, self._falls_back = runtime, bool(enable_fallback)
        asked = [one if isinstance(one, tuple) else (one, {}) for one in providers]
        assert all(isinstance(value, str) for _, given in asked for value in given.values()), "options are text"
        names = [name for name, _ in asked]
        switches = [(key, value) for _, given in asked for key, value in given.items() if _SWITCH.fullmatch(key)]
        for key, value in switches:
            if value not in ("True", "true", "False", "false"):
                raise RuntimeError(f"[ERROR] [TensorRT] The value for the key '{key}' should be 'True' or 'False'.")
        self._got = [name for name in names if name in runtime.active or name == CPU]
        if ACTIVE[1] in names and ACTIVE[1] not in runtime.active:
            if not self._falls_back:
                raise RuntimeError(NO_TENSORRT)
            print("*************** EP Error ***************")
            self._got = [name for name in self._got if name != ACTIVE[1]]
        self._got = list(dict.fromkeys([*self._got, CPU]))
        self._session = real.InferenceSession(model, options, providers=[CPU], **more)
        level = options.graph_optimization_level if options is not None else None
        optimized = level != real.GraphOptimizationLevel.ORT_DISABLE_ALL
        name = Path(model).name if isinstance(model, str) else ""
        runtime.opened.append(Opened(name, tuple(asked), tuple(self._got), optimized))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return list(self._got)

    def run(self, names: Any, feeds: Any) -> list[np.ndarray]:
        on_gpu = self._got[0] != CPU
        if on_gpu and self._runtime.fails_in_runs:
            if not self._falls_back:
                raise EPFail("CUDA failure 700: an illegal memory access was encountered")
            print("EP Error; falling back")
            self._got, on_gpu = [CPU], False
        found = self._session.run(names, feeds)
        if on_gpu and names is not None and "logits" in names:
            logits = found[list(names).index("logits")]
            logits[:, 0] += self._runtime.shift
        return found


def install(monkeypatch: pytest.MonkeyPatch, runtime: FakeOnnxRuntime, driver: DriverStatus = GPU) -> FakeOnnxRuntime:
    """Put a fake in the place of ONNX Runtime, for one test."""
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(onnxruntime, "driver_status", lambda: driver)
    monkeypatch.setattr(onnxruntime, "_test_provider", functools.cache(onnxruntime._test_provider.__wrapped__))
    return runtime
