"""Which of several files comes first where nothing was measured: by backend, batch sizes and precision.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from export.sidecar import PRECISIONS, BatchProfile

BACKENDS: Final = ("tensorrt", "onnxruntime-cuda", "onnxruntime")  # the first that is here comes first
ON_GPU: Final = ("tensorrt", "onnxruntime-cuda")
# On TensorRT INT8 is expected to be fastest. ONNX Runtime computes Q/DQ pairs as they stand: on a GPU FP16 is expected
# to be fastest, and on a CPU, which computes FP16 in FP32, it is FP32.
PREFERENCE: Final[Mapping[str, tuple[str, ...]]] = {
    "tensorrt": ("int8", "fp16", "fp32"),
    "onnxruntime-cuda": ("fp16", "fp32", "int8"),
    "onnxruntime": PRECISIONS,
}


def misfit(profile: BatchProfile | None, batch_size: int) -> tuple[int, float]:
    """How badly batches of a size fit, the smaller the better: runs a batch, then distance from the best size.

    An engine runs in pieces what is larger than its largest batch, and fills up what is smaller than its smallest.

    Args:
        profile: of an engine; None: any batch runs as it is.
        batch_size: in images.
    """
    if profile is None:
        return 1, 0.0
    piece = max(min(batch_size, profile.max), profile.min)
    distance = abs(math.log(piece / profile.opt)) + math.log(piece / min(piece, batch_size))
    return math.ceil(batch_size / profile.max), distance


def fit(backend: str, precision: str, profile: BatchProfile | None, batch_size: int) -> tuple[int, int, int, float]:
    """Where a file stands, the smallest first: backend, runs a batch, precision, distance from the best size."""
    runs, distance = misfit(profile, batch_size)
    return BACKENDS.index(backend), runs, PREFERENCE[backend].index(precision), distance
