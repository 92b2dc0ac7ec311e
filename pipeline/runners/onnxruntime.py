"""ONNX Runtime: runs exactly the graph that TensorRT will build, on any machine, and on a GPU by its own kernels."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.bounded_json import parse_json
from export.external_data import refuse_external_data
from export.sidecar import OUTPUTS, TOP_OUTPUTS
from pipeline.errors import DeviceUnavailableError, RunnerError
from pipeline.runners.base import GraphRunner, check_pixels, pieces
from pipeline.runners.providers import BACKENDS, PROVIDERS, Device, open_on, why_not


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
