"""The calibration images of the quantize stage: decoded once, as far as memory is meant for them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.errors import ImageError
from pipeline.data.dataset import ImageSet
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import Sample
from pipeline.quantization import quantize
from pipeline.quantization.quantize import CalibrationImages
from pipeline.recipe.schema import Quantize

SETTINGS = Quantize(min_images=2, batch_size=3, held_out=0.25)


def images(read: Callable[[int], np.ndarray], max_bad: int = 0) -> CalibrationImages:
    samples = tuple(Sample(str(i), i % 2, f"{i:064d}", lambda i=i: read(i)) for i in range(12))
    splits = {"train": (), "validation": (), "calibration": samples, "test": ()}
    card: Any = SimpleNamespace(classes=("a", "b"), decode=DecodeSpec((4, 4), "stretch"))
    return CalibrationImages(ImageSet(("a", "b"), splits, 0), card, SETTINGS, max_bad)


@pytest.mark.parametrize(("most", "decoded"), [(9 * 48, 9), (9 * 48 - 1, 27)])
def test_they_are_decoded_once_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, most: int, decoded: int) -> None:
    monkeypatch.setattr(quantize, "_CACHE_BYTES", most)
    seen: list[int] = []

    def read(index: int) -> np.ndarray:
        seen.append(index)
        return np.full((4, 4, 3), index, np.uint8)

    calibration = images(read)
    passes = [np.concatenate(list(calibration.batches("a pass"))) for _ in range(3)]
    assert len(seen) == decoded
    assert all(np.array_equal(one, passes[0]) for one in passes)
    assert passes[0][:, 0, 0, 0].tolist() == list(range(9))
    assert [len(batch) for batch in calibration.batches("a pass")] == [3, 3, 3]


def test_a_pass_that_is_broken_off_keeps_nothing() -> None:
    calibration = images(lambda index: np.full((4, 4, 3), index, np.uint8))
    next(iter(calibration.batches("a pass")))
    assert sum(len(batch) for batch in calibration.batches("a pass")) == 9


def test_an_unreadable_image_is_tried_once() -> None:
    tried: list[int] = []

    def read(index: int) -> np.ndarray:
        tried.append(index)
        if index == 1:
            raise ImageError("damaged")
        return np.zeros((4, 4, 3), np.uint8)

    calibration = images(read, max_bad=1)
    assert [sum(map(len, calibration.batches("a pass"))) for _ in range(2)] == [8, 8]
    assert tried.count(1) == 1
    assert calibration.pixels.skipped == {"1": "damaged"}
