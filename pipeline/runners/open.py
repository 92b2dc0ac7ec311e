"""The one place that knows which runner opens which file; backends are imported when they are chosen. Python 3.10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RunnerError
from pipeline.runners.base import Runner
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.providers import DEVICES

if TYPE_CHECKING:
    from pipeline.card import ModelCard
    from pipeline.runners.keras import KerasRunner

BACKENDS = ("keras", *DEVICES, "tensorrt")


def open_runner(
    path: Path,
    backend: str,
    precision: str = "fp32",
    runtime: RuntimeOptions | None = None,
    *,
    exact: bool = False,
    at_once: int = 1,
    card: ModelCard | None = None,
    allow: Sequence[str] = (),
) -> Runner:
    """Make the runner of a file; it is loaded when its with block begins.

    Args:
        path: a Keras model, an ONNX file or a plan.
        backend: one of `BACKENDS`.
        precision: what an ONNX file is; an engine's sidecar says it itself. Defaults to "fp32".
        runtime: how engines are run, and on which GPU. Defaults to None: `RuntimeOptions()`.
        exact: ONNX Runtime computes every node as the file says. Defaults to False.
        at_once: images that Keras and ONNX Runtime must not split. Defaults to 1: whatever they take anyway.
        card: what a Keras model needs besides its file.
        allow: what of a Keras model may run code, by name. Defaults to nothing.

    Raises:
        RunnerError: no such backend, Keras without a card, or an engine without a whole sidecar.
    """
    runtime = runtime or RuntimeOptions()
    if backend == "tensorrt":
        from pipeline.runners.tensorrt import TensorRTRunner

        return TensorRTRunner(path, runtime)
    if backend in DEVICES:
        from pipeline.runners.onnxruntime import OnnxRunner

        device, most = DEVICES[backend], max(256, at_once)
        return OnnxRunner(path, precision=precision, exact=exact, device=device, gpu=runtime.device, max_batch=most)
    if backend != "keras":
        raise RunnerError(f"Expected a backend of {', '.join(BACKENDS)}. Received: {backend!r}.")
    if card is None:
        raise RunnerError("Expected the card of the Keras model (train/model.json). Received: none.")
    return open_keras(path, card, allow, max(64, at_once))


def open_keras(path: Path, card: ModelCard, allow: Sequence[str], max_batch: int) -> KerasRunner:
    """Make the runner of a Keras model, which alone can measure its own rounding; see `open_runner`."""
    from pipeline.runners.keras import KerasRunner

    return KerasRunner(path, card.preprocessing, output=card.output, allow=allow, max_batch=max_batch)
