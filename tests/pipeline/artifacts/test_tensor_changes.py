"""What INT8's tensors hold in place of Keras' values: read as written, there and back, and refused where damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.errors import DataError
from pipeline.artifacts.tensor_changes import TensorChange, read_changes, read_corrections, write_changes

ROW = np.array([0.5, 1.0, 4.0])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tensors.npz"
    write_changes(path, {"a:0": ROW, "b": ROW}, {"b": -ROW, "c": np.array([3.5])}, {"conv": np.array([0.25, -1e-9])})
    changes = read_changes(path)
    assert list(changes) == ["a:0", "b", "c"]
    for name, factors, offsets in (("a:0", ROW, [0]), ("b", ROW, -ROW), ("c", [1], [3.5])):
        np.testing.assert_array_equal(changes[name].factors, factors)
        np.testing.assert_array_equal(changes[name].offsets, offsets)
    np.testing.assert_array_equal(read_corrections(path)["conv"], [0.25, -1e-9])


def test_nothing_changed_is_no_error(tmp_path: Path) -> None:
    write_changes(tmp_path / "tensors.npz", {}, {})
    assert read_changes(tmp_path / "tensors.npz") == {}
    assert read_corrections(tmp_path / "tensors.npz") == {}


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_keras_values_come_of_the_file_s_channel_by_channel_and_back(shape: tuple[int, ...]) -> None:
    change = TensorChange(ROW, np.array([1.0, -2.0, 0.25]))
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    keras = change.keras_value(value)
    for channel in range(3):
        expected = (value[:, channel].astype(np.float64) + change.offsets[channel]) * ROW[channel]
        np.testing.assert_allclose(keras[:, channel], expected, rtol=1e-6)
    np.testing.assert_allclose(change.file_value(keras), value, atol=1e-6)
    assert keras.dtype == change.file_value(keras).dtype == np.float32


def test_one_number_stands_for_all_channels() -> None:
    value = np.arange(6, dtype=np.float32).reshape(1, 6)
    np.testing.assert_array_equal(TensorChange(np.array([2.0]), np.array([1.0])).keras_value(value), (value + 1) * 2)


@pytest.mark.parametrize(
    ("factors", "offsets", "said"),
    [
        (-ROW, ROW, "factors that are no row of positive numbers"),
        (np.array([1.0, np.inf, 1.0]), ROW, "factors that are no row of positive numbers"),
        (ROW[None], ROW, "factors that are no row of positive numbers"),
        (ROW, np.array([np.nan]), "offsets that are no row of finite numbers"),
        (ROW, ROW[:2], "3 factors and 2 offsets"),
        (ROW[:0], ROW[:1], "0 factors and 1 offsets"),
    ],
)
def test_what_is_no_change_is_refused(factors: np.ndarray, offsets: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        write_changes(tmp_path / "tensors.npz", {"a": factors}, {"a": offsets})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "damaged.npz", tensors=np.frombuffer(b'["a"]', np.uint8), factors0=factors, offsets0=offsets)
    with pytest.raises(DataError, match=f"'a' has {said}.*Run the quantize stage again"):
        read_changes(tmp_path / "damaged.npz")


def test_a_correction_that_is_none_is_refused(tmp_path: Path) -> None:
    write_changes(tmp_path / "tensors.npz", {}, {}, {"conv": np.array([np.inf])})
    with pytest.raises(DataError, match="'conv' has a correction that is no row of finite numbers"):
        read_corrections(tmp_path / "tensors.npz")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", pixels=np.zeros(3))
    with pytest.raises(DataError, match="Run the quantize stage again"):
        read_changes(tmp_path / "other.npz")
