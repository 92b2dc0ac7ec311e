"""The factors of equalized activations, ``quantize/equalization.npz``: what leads back from INT8's tensors to Keras'.

NumPy and the standard library only, Python 3.10 syntax.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.errors import DataError
from export.records import parse_json
from pipeline.artifacts.archives import read_arrays


def write_factors(path: Path, factors: Mapping[str, np.ndarray]) -> None:
    """Write the factors.

    Args:
        path: The file.
        factors: Tensor name -> (C,), what its channels are multiplied by to have the values of the FP32 model.
    """
    arrays = {str(index): values.astype(np.float64) for index, values in enumerate(factors.values())}
    np.savez(path, tensors=np.frombuffer(json.dumps([*factors]).encode(), np.uint8), **arrays)  # type: ignore[arg-type]


def read_factors(path: Path) -> dict[str, np.ndarray]:
    """Read the factors, float64 (C,) by tensor.

    Raises:
        DataError: The file is damaged, or holds no factors.
    """
    arrays = read_arrays(path)
    try:
        names = parse_json(arrays["tensors"].tobytes(), path.name)
        factors = {str(name): arrays[str(index)].astype(np.float64) for index, name in enumerate(names)}
        if wrong := [name for name, values in factors.items() if values.ndim != 1 or not (values > 0).all()]:
            raise ValueError(f"factors of {wrong[0]!r} that are no row of positive numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Expected the factors of equalized activations. Received: {path}: {error}. Run the quantize stage again."
        ) from error
    return factors
