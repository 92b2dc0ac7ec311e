"""The one place that knows which runner opens an exported file. Python 3.10 syntax; what runs it is imported then.

A Keras model is opened by `pipeline.runners.keras.open_keras`: who serves what was exported reads no Keras files.
"""

from pathlib import Path

from export.errors import RunnerError
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import Runner
from pipeline.runners.onnxruntime import DEVICES

BACKENDS = (*DEVICES, "tensorrt")


def open_runner(
    path: Path,
    backend: str,
    precision: str = "fp32",
    runtime: RuntimeOptions | None = None,
    *,
    exact: bool = False,
    at_once: int = 1,
) -> Runner:
    """Make the runner of a file; it is loaded when its with block begins.

    Args:
        path: an ONNX file or a plan.
        backend: one of `BACKENDS`.
        precision: what an ONNX file is; an engine's sidecar says it itself. Defaults to "fp32".
        runtime: how engines are run, and on which GPU. Defaults to None: `RuntimeOptions()`.
        exact: ONNX Runtime computes every node as the file says. Defaults to False.
        at_once: images that ONNX Runtime must not split. Defaults to 1: whatever it takes anyway.

    Raises:
        ProjectError: no such backend, or an engine without a whole sidecar.
    """
    runtime = runtime or RuntimeOptions()
    if backend == "tensorrt":
        from pipeline.runners.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(path, runtime)
    if backend not in DEVICES:
        raise RunnerError(f"Expected a backend of {', '.join(BACKENDS)}. Received: {backend!r}.")
    from pipeline.runners.onnxruntime import OnnxRunner

    device, most = DEVICES[backend], max(256, at_once)
    return OnnxRunner(path, precision=precision, exact=exact, device=device, gpu=runtime.device, max_batch=most)
