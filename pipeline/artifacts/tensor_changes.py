"""What the INT8 file's tensors hold in place of Keras' values, ``quantize/tensors.npz``: factors and offsets.

Equalization divides the channels of an activation by factors, and the eighth bit behind a ReLU takes an offset off it,
see `export.int8.equalization` and `export.int8.shift`. Beside them stands what bias correction added to each bias,
without which nobody could tell whether a bias makes up for the offsets. NumPy and the standard library only, Python
3.10 syntax.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from export.errors import DataError
from export.records import parse_json
from pipeline.artifacts.archives import read_arrays


@dataclass(frozen=True, eq=False)
class TensorChange:
    """How a tensor differs from Keras' values: ``Keras' value = (value + offset) * factor`` in each channel.

    Args:
        factors: float64 (C,), or (1,) for all channels; positive. Defaults to 1.
        offsets: float64 (C,), or (1,) for all channels, in the units of the file's values. Defaults to 0.

    Raises:
        ValueError: They are no rows, of lengths that do not fit, not finite, or a factor is not positive.
    """

    factors: np.ndarray = field(default_factory=lambda: np.ones(1))
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def __post_init__(self) -> None:
        if self.factors.ndim != 1 or not ((self.factors > 0) & np.isfinite(self.factors)).all():
            raise ValueError("factors that are no row of positive numbers")
        if self.offsets.ndim != 1 or not np.isfinite(self.offsets).all():
            raise ValueError("offsets that are no row of finite numbers")
        if len({1, len(self.factors), len(self.offsets)}) > 2 or not len(self.factors) * len(self.offsets):
            raise ValueError(f"{len(self.factors)} factors and {len(self.offsets)} offsets of one tensor")

    def keras_value(self, value: np.ndarray) -> np.ndarray:
        """Return Keras' values of the file's, float32 (N, C, ...)."""
        return np.asarray((value + _spread(self.offsets, value)) * _spread(self.factors, value), np.float32)

    def file_value(self, value: np.ndarray) -> np.ndarray:
        """Return the file's values of Keras', float32 (N, C, ...), in the layout of the file."""
        return np.asarray(value / _spread(self.factors, value) - _spread(self.offsets, value), np.float32)


UNCHANGED = TensorChange()
_TENSORS, _NODES = "tensors", "corrected"  # names of what the arrays belong to, as JSON
T = TypeVar("T")


def _spread(channels: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return a number for each channel in a shape that meets axis 1 of a value, float32."""
    return channels.astype(np.float32).reshape(1, -1, *[1] * (value.ndim - 2))


def write_changes(
    path: Path,
    factors: Mapping[str, np.ndarray],
    offsets: Mapping[str, np.ndarray],
    corrections: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the changes.

    Args:
        path: The file.
        factors: Tensor name -> (C,), what its channels are multiplied by to have the values of the FP32 model, once
            the offset is added.
        offsets: Tensor name -> (C,) or (1,), what is added to its values.
        corrections: Name of a node -> (C,), what bias correction added to its bias. Defaults to none.

    Raises:
        ValueError: As `TensorChange` raises it.
    """
    names = list(dict.fromkeys((*factors, *offsets)))
    arrays: dict[str, np.ndarray] = {}
    for index, name in enumerate(names):
        change = TensorChange(
            np.asarray(factors.get(name, UNCHANGED.factors), np.float64),
            np.asarray(offsets.get(name, UNCHANGED.offsets), np.float64),
        )
        arrays |= {f"factors{index}": change.factors, f"offsets{index}": change.offsets}
    nodes = list(corrections or {})
    arrays |= {
        f"correction{i}": np.asarray(values, np.float64) for i, values in enumerate((corrections or {}).values())
    }
    arrays |= {
        key: np.frombuffer(json.dumps(of).encode(), np.uint8) for key, of in ((_TENSORS, names), (_NODES, nodes))
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_changes(path: Path) -> dict[str, TensorChange]:
    """Read the changes by tensor.

    Raises:
        DataError: The file is damaged, or holds no changes.
    """
    return _read(path, _TENSORS, _change)


def read_corrections(path: Path) -> dict[str, np.ndarray]:
    """Read what bias correction added, float64 (C,) by node.

    Raises:
        DataError: The file is damaged, or holds no changes.
    """
    return _read(path, _NODES, _correction)


def _read(path: Path, key: str, parse: Callable[[Mapping[str, np.ndarray], int, object], T]) -> dict[str, T]:
    arrays = read_arrays(path)
    try:
        names = parse_json(arrays[key].tobytes(), path.name)
        return {str(name): parse(arrays, index, name) for index, name in enumerate(names)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Expected what INT8's tensors hold in place of Keras' values. Received: {path}: {error}. Run the quantize "
            "stage again."
        ) from error


def _correction(arrays: Mapping[str, np.ndarray], index: int, name: object) -> np.ndarray:
    values = arrays[f"correction{index}"].astype(np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"{name!r} has a correction that is no row of finite numbers")
    return values


def _change(arrays: Mapping[str, np.ndarray], index: int, name: object) -> TensorChange:
    factors, offsets = (arrays[f"{kind}{index}"].astype(np.float64) for kind in ("factors", "offsets"))
    try:
        return TensorChange(factors, offsets)
    except ValueError as error:
        raise ValueError(f"{name!r} has {error}") from error
