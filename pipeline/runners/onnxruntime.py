"""The runner of ONNX Runtime, and its execution providers: on CPU, CUDA or TensorRT, the same graph TensorRT builds.

onnxruntime-gpu lists its CUDA and TensorRT providers on every machine and falls back to the CPU where one does not
load, so only a session shows which is active. Python 3.10 syntax; onnxruntime is imported inside the functions.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.errors import DeviceUnavailableError, RunnerError
from export.ort_session import open_session
from export.records import parse_json
from export.tensorrt.driver import driver_status
from export.tensorrt.library import find_tensorrt
from export.tensorrt.sidecar import OUTPUTS, TOP_OUTPUTS
from export.wire_format import refuse_external_data
from pipeline.runners.base import GraphRunner, check_pixels, split_batches

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda", "tensorrt"]

BACKENDS: dict[Device, str] = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-cuda",
    "tensorrt": "onnxruntime-tensorrt",
}
PROVIDERS: dict[Device, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DEVICES: dict[str, Device] = {backend: device for device, backend in BACKENDS.items()}
_PLACE = re.compile(r"^\S+\.cc:\d+ .*?\) (?=\w)")  # "/src/session.cc:729 void ort::f(int) "
# y = x + x of one float, opset 17: a minimal model to test a provider with.
TEST_MODEL = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def why_not(device: Literal["cuda", "tensorrt"]) -> str:
    """Return why an execution provider of ONNX Runtime cannot be used here; tested by a session once a process.

    Args:
        device: "cuda" or "tensorrt".

    Returns:
        str: "" where the provider is active, else the reason, a sentence without a full stop.
    """
    driver = driver_status()
    return _test_provider(device) if driver else driver.reason


@functools.cache
def _test_provider(device: Literal["cuda", "tensorrt"]) -> str:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"ONNX Runtime is not installed ({error})"
    provider = PROVIDERS[device]
    if provider not in (listed := ort.get_available_providers()):
        return f"this ONNX Runtime has no {provider}, only {', '.join(listed)}; install requirements-gpu.txt"
    try:
        open_session_on(device, TEST_MODEL, precision="fp32", log_severity=4)
    except DeviceUnavailableError as error:
        return error.reason
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        return f"{provider} does not start: {_first_line(error)}"
    return ""


def open_session_on(device: Device, model: str | bytes, *, precision: str, index: int = 0, **options: Any) -> Any:
    """Open a session on a device, without a fallback to another one.

    Args:
        device: "cpu", "cuda" or "tensorrt". The CPU computes nodes that CUDA and TensorRT do not support.
        model: path of an ONNX file, or its bytes.
        precision: of the file: "fp32", "fp16" or "int8".
        index: of the GPU. Defaults to 0.
        **options: passed to `export.ort_session.open_session`.

    Raises:
        DeviceUnavailableError: ONNX Runtime fell back to another provider.
    """
    not_loaded = [] if device == "cpu" else _load_libraries(device)[:1]
    session = open_session(model, providers=provider_options(device, precision, index), **options)
    active = session.get_providers()
    if active[0] != PROVIDERS[device]:
        raise DeviceUnavailableError(
            f"Expected {PROVIDERS[device]}. Received: {active}; ONNX Runtime fell back because the device or its "
            f"libraries are missing{''.join(f'; {line}' for line in not_loaded)}. Install requirements-gpu.txt.",
            f"{PROVIDERS[device]} does not load, ONNX Runtime fell back to {active[0]}"
            f"{''.join(f' ({line})' for line in not_loaded)}",
        )
    return session


def provider_options(device: Device, precision: str, index: int) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session by priority, each with its options.

    CUDA computes FP32 in FP32: TF32, its default, is switched off. TensorRT may use the types in the file, and caches
    neither engines nor timings on disk; its provider has no option for TF32.
    """
    cuda = (PROVIDERS["cuda"], {"device_id": str(index), "use_tf32": "0"})
    tensorrt = {  # ONNX Runtime's Python accepts True and False for TensorRT's switches, but not 1 and 0
        "device_id": str(index),
        "trt_fp16_enable": str(precision in ("fp16", "int8")),  # the float part of an INT8 file is FP16
        "trt_int8_enable": str(precision == "int8"),
        "trt_engine_cache_enable": "False",
        "trt_timing_cache_enable": "False",
    }
    providers: dict[Device, list[tuple[str, dict[str, str]]]] = {
        "cpu": [(PROVIDERS["cpu"], {})],
        "cuda": [cuda],
        "tensorrt": [(PROVIDERS["tensorrt"], tensorrt), cuda],
    }
    return providers[device]


def _load_libraries(device: Device) -> list[str]:
    """Load the provider's libraries from the installed packages, where the system's loader does not look.

    Returns:
        list[str]: the libraries that could not be loaded, one in each line.
    """
    import onnxruntime as ort

    if device == "tensorrt":
        find_tensorrt("tensorrt")  # its import loads libnvinfer and libnvonnxparser
    if not hasattr(ort, "preload_dlls"):  # before ONNX Runtime 1.21
        return []
    lines: list[str] = []
    with io.StringIO() as text, contextlib.redirect_stdout(text):  # standard output is for results only
        try:
            ort.preload_dlls()
        except (OSError, RuntimeError) as error:
            lines.append(_first_line(error))
        lines += [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    for line in lines:
        log.debug("ONNX Runtime: %s", line)
    return lines


def _first_line(error: Exception) -> str:
    """Return the first line of an error of ONNX Runtime, without its source position and without a full stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _PLACE.sub("", line).rstrip(". ")


class OnnxRunner(GraphRunner):
    """Runs an exported ONNX file.

    Args:
        path: a model with the input ``images`` and the outputs ``logits`` and ``probabilities``.
        precision: of the file: "fp32", "fp16" or "int8"; for reports. Defaults to "fp32".
        exact: disable graph optimizations, so that every FP16 cast is computed as in the file. Defaults to False.
            INT8 always is exact unless it is fused, so that what serves is what was verified.
        fuse_int8: let ONNX Runtime replace Q/DQ pairs with its own INT8 kernels. For comparisons only: it computes a
            Conv's bias scale in the type of the scales, where FP16 underflows (most predictions of a ResNet-50 become
            wrong), and the kernels saturate on a CPU without VNNI. Defaults to False.
        device: "cpu"; "cuda", with native FP16; or "tensorrt", ONNX Runtime's TensorRT provider, for benchmarks: it
            builds an engine for the first batch size and another one when a later size does not fit, and may compute
            FP32 in TF32. Defaults to "cpu".
        gpu: index of the GPU. Defaults to 0.
        max_batch: a larger input is split. Defaults to 256.
        threads: that compute an operator on the CPU; answers are bit-identical for the same number. Defaults to 0: ONNX
            Runtime's choice, of which it does not tell the number.
        spinning: whether idle threads of ONNX Runtime keep their CPU for a while. Defaults to True; False where other
            threads decode meanwhile.

    Attributes:
        threads: that compute, as it was asked for.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "fp32",
        exact: bool = False,
        fuse_int8: bool = False,
        device: Device = "cpu",
        gpu: int = 0,
        max_batch: int = 256,
        threads: int = 0,
        spinning: bool = True,
    ) -> None:
        self.path = path
        self.threads = threads
        self.backend = BACKENDS[device]
        self.precision = precision
        self.max_batch = max_batch
        self._device: Device = device
        self._open = partial(
            open_session_on,
            device,
            precision=precision,
            index=gpu,
            threads=threads,
            spinning=spinning,
            # Constant folding would remove the weights' scales, which TensorRT needs; another order of float operations
            # rounds some INT8 values to neighbours, and answers differ from those of the file as it is.
            exact=exact or (precision == "int8" and not fuse_int8),
            fuse_int8=fuse_int8,
        )
        self._session: Any = None
        self.graph_top_k = 0
        self.classes = 0
        self.metadata: dict[str, object] = {}

    def __enter__(self) -> OnnxRunner:
        if not is_installed():
            reason = "ONNX Runtime is not installed"
            raise DeviceUnavailableError(
                f"Expected ONNX Runtime to run {self.path}. Received: none, {reason} in {sys.executable}. Install it "
                "there: pip install onnxruntime. Or run an engine.",
                reason,
            )
        if self._device != "cpu" and (why := why_not(self._device)):
            raise DeviceUnavailableError(
                f"Expected ONNX Runtime with {PROVIDERS[self._device]}. Received: {why}. "
                "Install requirements-gpu.txt on a GPU machine.",
                why,
            )
        refuse_external_data(self.path)
        try:
            session = self._open(self._model())
        except DeviceUnavailableError:
            raise
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise RunnerError(
                f"Expected an ONNX model that ONNX Runtime loads. Received: {self.path}: {error}"
            ) from error
        shapes = {output.name: output.shape for output in session.get_outputs()}
        if not set(OUTPUTS) <= shapes.keys():
            raise RunnerError(
                f"Expected the outputs 'logits' and 'probabilities'. Received: {sorted(shapes)} in {self.path}. "
                "Export it with this project's export stage."
            )
        self.classes = int(shapes[OUTPUTS[0]][-1])
        self.metadata = {key: _json(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
        self.graph_top_k = shapes[TOP_OUTPUTS[0]][1] if set(TOP_OUTPUTS) <= shapes.keys() else 0
        self._session = session
        return self

    def __exit__(self, *exc: object) -> None:
        self._session = None

    def _model(self) -> str | bytes:
        """Return what ONNX Runtime opens."""
        return str(self.path)

    def _fetch(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        if self._session is None:
            raise RunnerError("Expected an open runner: use it in a with block.")
        source = self._session.get_inputs()[0]
        check_pixels(pixels, (source.shape[1], source.shape[2]))
        try:
            parts = [self._session.run(names, {source.name: piece}) for piece in split_batches(pixels, self.max_batch)]
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise RunnerError(f"Expected {self.path} to run. Received: {error}") from error
        return parts[0] if len(parts) == 1 else [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def is_installed() -> bool:
    """Whether ONNX Runtime is installed; a machine that only runs engines does not need it."""
    return importlib.util.find_spec("onnxruntime") is not None


def _json(text: str) -> Any:
    """Parse a metadata value as JSON; return text that is not JSON unchanged."""
    try:
        return parse_json(text, "metadata")
    except ValueError:
        return text
