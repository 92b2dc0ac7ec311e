"""The choice of the runner for an exported file. Python 3.10 syntax; libraries are imported when they are chosen.

A Keras model is opened by `pipeline.runners.keras.open_keras`, so that serving exported files needs no Keras.
"""

from pathlib import Path

from export.errors import RunnerError
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import Runner
from pipeline.runners.onnxruntime import DEVICES, OnnxRunner

BACKENDS = (*DEVICES, "tensorrt")


def open_runner(
    path: Path,
    backend: str,
    precision: str = "fp32",
    runtime: RuntimeOptions | None = None,
    *,
    at_once: int = 1,
    threads: int = 0,
    spinning: bool = True,
) -> Runner:
    """Make the runner of a file; the file is loaded when its with block begins.

    Args:
        path: an ONNX file or a plan.
        backend: one of `BACKENDS`.
        precision: of an ONNX file; that of an engine is in its sidecar. Defaults to "fp32".
        runtime: options of engines, and the GPU. Defaults to None: `RuntimeOptions()`.
        at_once: batch size that ONNX Runtime must not split, if it is above 256. Defaults to 1.
        threads: of ONNX Runtime, see `OnnxRunner`. Defaults to 0.
        spinning: likewise. Defaults to True.

    Raises:
        ProjectError: unknown backend, or an engine with a missing or malformed sidecar.
    """
    runtime = runtime or RuntimeOptions()
    if backend == "tensorrt":
        from pipeline.runners.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(path, runtime)
    if backend not in DEVICES:
        raise RunnerError(f"Expected a backend of {', '.join(BACKENDS)}. Received: {backend!r}.")
    return OnnxRunner(
        path,
        precision=precision,
        device=DEVICES[backend],
        gpu=runtime.device,
        max_batch=max(256, at_once),
        threads=threads,
        spinning=spinning,
    )
