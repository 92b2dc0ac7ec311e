"""ONNX Runtime: runs exactly the graph that TensorRT will build, on any of its execution providers.

ONNX Runtime's execution providers: which are really active here, and how a session on each is made.

onnxruntime-gpu lists its CUDA and TensorRT providers on every machine and falls back to the CPU where one does not
load, so that only a session tells. Python 3.10 syntax; onnxruntime is imported inside the functions.

ONNX Runtime: runs exactly the graph that TensorRT will build, on any machine, and on a GPU by its own kernels.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
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
from pipeline.runners.base import GraphRunner, check_pixels, pieces

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
# y = x + x of one float, opset 17: the smallest model that a provider can be asked with.
TINY = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def why_not(device: Literal["cuda", "tensorrt"]) -> str:
    """Say why an execution provider of ONNX Runtime cannot be used here; asked of a session once a process.

    Args:
        device: "cuda" or "tensorrt".

    Returns:
        str: "" where the provider is really active, else the reason, a sentence without a stop.
    """
    driver = driver_status()
    return _ask(device) if driver else driver.reason


@functools.cache
def _ask(device: Literal["cuda", "tensorrt"]) -> str:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"ONNX Runtime is not installed ({error})"
    provider = PROVIDERS[device]
    if provider not in (listed := ort.get_available_providers()):
        return f"this ONNX Runtime has no {provider}, only {', '.join(listed)}; install requirements-gpu.txt"
    try:
        session = open_on(device, TINY, precision="fp32", log_severity=4)
    except DeviceUnavailableError as error:
        return error.reason
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        return f"{provider} does not start: {_first_line(error)}"
    del session
    return ""


def open_on(device: Device, model: str | bytes, *, precision: str, index: int = 0, **options: Any) -> Any:
    """Open a session that runs on the device asked for and nowhere else.

    Args:
        device: what is to run it; what CUDA or TensorRT lack, the CPU computes.
        model: path of an ONNX file, or its bytes.
        precision: what the file is: "fp32", "fp16" or "int8".
        index: of the GPU. Defaults to 0.
        **options: handed to `export.ort_session.open_session`.

    Raises:
        DeviceUnavailableError: ONNX Runtime fell back to another provider.
    """
    said = [] if device == "cpu" else _load_libraries(device)
    session = open_session(model, providers=provider_options(device, precision, index), **options)
    active = session.get_providers()
    if active[0] != PROVIDERS[device]:
        reason = f"{PROVIDERS[device]} does not load, ONNX Runtime fell back to {active[0]}"
        raise DeviceUnavailableError(
            f"Expected {PROVIDERS[device]}. Received: {active}; ONNX Runtime fell back because the device or its "
            f"libraries are missing{''.join(f'; {line}' for line in said[:1])}. Install requirements-gpu.txt.",
            f"{reason}{''.join(f' ({line})' for line in said[:1])}",
        )
    return session


def provider_options(device: Device, precision: str, index: int) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session, the first one first, each with its options.

    CUDA computes FP32 in FP32: its TF32, which is on by default, is switched off. TensorRT is permitted the types that
    the file holds, and keeps neither engines nor timings on the disk; it has no switch for TF32.
    """
    cuda = (PROVIDERS["cuda"], {"device_id": str(index), "use_tf32": "0"})
    if device == "cpu":
        return [(PROVIDERS["cpu"], {})]
    if device == "cuda":
        return [cuda]
    tensorrt = {
        "device_id": str(index),
        "trt_fp16_enable": _flag(precision in ("fp16", "int8")),  # the float part of an INT8 file is FP16
        "trt_int8_enable": _flag(precision == "int8"),
        "trt_engine_cache_enable": _flag(False),
        "trt_timing_cache_enable": _flag(False),
    }
    return [(PROVIDERS["tensorrt"], tensorrt), cuda]


def _flag(on: bool) -> str:
    return "True" if on else "False"  # ONNX Runtime's Python refuses 1 and 0 of TensorRT's switches


def _load_libraries(device: Device) -> list[str]:
    """Load what the provider links from the installed packages, where the system's loader does not look.

    Returns:
        list[str]: what could not be loaded, a line each.
    """
    import onnxruntime as ort

    if device == "tensorrt":
        find_tensorrt("tensorrt")  # its import loads libnvinfer and libnvonnxparser
    if not hasattr(ort, "preload_dlls"):  # before ONNX Runtime 1.21
        return []
    with _printed() as lines:
        try:
            ort.preload_dlls()
        except (OSError, RuntimeError) as error:
            lines.append(_first_line(error))
    for line in lines:
        log.debug("ONNX Runtime: %s", line)
    return lines


@contextlib.contextmanager
def _printed() -> Iterator[list[str]]:
    """Give what is printed inside as lines, when the block ends: standard output belongs to our results."""
    lines: list[str] = []
    with io.StringIO() as text, contextlib.redirect_stdout(text):
        try:
            yield lines
        finally:
            lines += [line.strip() for line in text.getvalue().splitlines() if line.strip()]


def _first_line(error: Exception) -> str:
    """What ONNX Runtime says, without the place in its code and without a stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _PLACE.sub("", line).rstrip(". ")


class OnnxRunner(GraphRunner):
    """Runs an exported ONNX file.

    Args:
        path: a model with the input ``images`` and the outputs ``logits`` and ``probabilities``.
        precision: what the file is: "fp32", "fp16" or "int8"; for reports.
        exact: no graph optimizations at all: every Q/DQ pair and every FP16 cast is computed as the file says.
        fuse_int8: let ONNX Runtime put its own INT8 kernels in the place of Q/DQ pairs. For comparisons only: it forms
            a Conv's bias scale in the type of the scales, where FP16 underflows (on a ResNet-50 most answers get
            wrong), and the kernels saturate on a CPU without VNNI.
        device: "cpu"; "cuda", where FP16 is FP16, and INT8 without graph optimizations, so that what is verified is
            what serves; or "tensorrt", ONNX Runtime's own way to TensorRT, a peer to be timed: it builds an engine for
            the first batch size that comes and another when a later one does not fit, and may compute FP32 in TF32.
        gpu: index of the GPU.
        max_batch: larger input is split.
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
    ) -> None:
        self.path = path
        self.backend = BACKENDS[device]
        self.precision = precision
        self.max_batch = max_batch
        self._device: Device = device
        self._open = partial(
            open_on,
            device,
            str(path),
            precision=precision,
            index=gpu,
            # Folding the weights' scales away would leave TensorRT without them, and other sums than were verified.
            exact=exact or (device != "cpu" and precision == "int8"),
            fuse_int8=fuse_int8,
        )
        self._session: Any = None
        self.graph_top_k = 0
        self.classes = 0
        self.metadata: dict[str, object] = {}

    def __enter__(self) -> OnnxRunner:
        require_onnxruntime(self.path)
        if self._device != "cpu" and (why := why_not(self._device)):
            raise DeviceUnavailableError(
                f"Expected ONNX Runtime with {PROVIDERS[self._device]}. Received: {why}. "
                "Install requirements-gpu.txt on a GPU machine.",
                why,
            )
        refuse_external_data(self.path)
        try:
            session = self._open()
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

    def _fetch(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        if self._session is None:
            raise RunnerError("Expected an open runner: use it in a with block.")
        source = self._session.get_inputs()[0]
        check_pixels(pixels, (source.shape[1], source.shape[2]))
        try:
            parts = [self._session.run(names, {source.name: piece}) for piece in pieces(pixels, self.max_batch)]
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise RunnerError(f"Expected {self.path} to run. Received: {error}") from error
        return parts[0] if len(parts) == 1 else [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def is_installed() -> bool:
    """Whether ONNX Runtime is installed here; a machine that only runs engines has none."""
    return importlib.util.find_spec("onnxruntime") is not None


def require_onnxruntime(path: Path) -> None:
    """Refuse to open a file where ONNX Runtime is not installed.

    Raises:
        DeviceUnavailableError: it is not, so that nothing was run.
    """
    if not is_installed():
        reason = "ONNX Runtime is not installed"
        raise DeviceUnavailableError(
            f"Expected ONNX Runtime to run {path}. Received: none, {reason} in {sys.executable}. Install it there: "
            "pip install onnxruntime. Or run an engine.",
            reason,
        )


def _json(text: str) -> Any:
    """A value of the metadata: JSON, or the text itself."""
    try:
        return parse_json(text, "metadata")
    except ValueError:
        return text
