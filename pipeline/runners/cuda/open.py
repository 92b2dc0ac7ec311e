"""The choice between the two implementations of `CudaApi`. Python 3.10 syntax."""

import importlib.util

from export.errors import RunnerError
from pipeline.runners.cuda.api import CudaApi


def find_cuda(name: str = "auto") -> CudaApi:
    """Return an implementation of `CudaApi`.

    Args:
        name: "bindings", "pycuda", or "auto": cuda-bindings where it is installed, else PyCUDA. Defaults to "auto".

    Raises:
        RunnerError: unknown name, or its package is not installed.
    """
    if name == "auto":
        name = "pycuda" if not _installed("cuda.bindings") and _installed("pycuda") else "bindings"
    if name == "bindings":
        from pipeline.runners.cuda.bindings import CudaBindings

        return CudaBindings()
    if name == "pycuda":
        from pipeline.runners.cuda.pycuda import PyCuda

        return PyCuda()
    raise RunnerError(f"Expected runtime.cuda of auto, bindings or pycuda. Received: {name!r}.")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
