"""Sums over batches give the numbers of all images at once, held against plain numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.verification.layers.matching import Place, best_pairs
from pipeline.verification.layers.stream import Distance, Range, Usage

REFERENCE = np.random.default_rng(0).normal(0, 3, (7, 4, 5)).astype(np.float32)
VALUES = REFERENCE + np.random.default_rng(1).normal(0, 0.1, REFERENCE.shape).astype(np.float32)


def in_batches(distance: Distance, reference: np.ndarray, values: np.ndarray) -> Distance:
    for first in range(0, len(reference), 3):
        distance.add(reference[first : first + 3], values[first : first + 3])
    return distance


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e19])  # squares of float32 vanish, or overflow
def test_distances_of_batches_are_those_of_all_images(scale: float) -> None:
    a, b = (REFERENCE * np.float32(scale)).astype(np.float64), (VALUES * np.float32(scale)).astype(np.float64)
    found = in_batches(Distance(), a.astype(np.float32), b.astype(np.float32))
    assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-3)
    cosines = [u.ravel() @ v.ravel() / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b)]
    assert found.cosine == pytest.approx(np.mean(cosines), abs=1e-6)


def test_two_images_of_zeros_are_alike_and_one_is_not() -> None:
    zeros = np.zeros((1, 4), np.float32)
    assert in_batches(Distance(), zeros, zeros).cosine == 1
    assert in_batches(Distance(), zeros, zeros + 1).cosine == 0


def test_a_layer_at_its_threshold_is_not_below_it() -> None:
    found = in_batches(Distance(), REFERENCE, VALUES)
    assert found.sqnr_db is not None
    assert not found.below(found.sqnr_db)
    assert not found.below(found.sqnr_db - 1)
    assert found.below(found.sqnr_db + 1)


def test_the_share_of_values_that_are_cut_off_is_of_all_batches() -> None:
    usage = Usage(Range(-1.5, 4.0))
    for first in range(0, len(REFERENCE), 3):
        usage.add(REFERENCE[first : first + 3], REFERENCE[first : first + 3])
    beyond = (REFERENCE < -1.5) | (REFERENCE > 4)
    assert usage.saturated == beyond.mean()
    assert usage.range_used == pytest.approx(np.abs(REFERENCE).max() / 4)
    edges = Usage(Range(-1.5, 4.0))
    edges.add(np.float32([[-1.5, 4.0]]), np.float32([[-1.5, 4.0]]))
    assert edges.saturated == 0, "the ends belong to the range"


def test_each_tensor_goes_to_the_closest_layer_and_to_no_other() -> None:
    near, far = REFERENCE + np.float32(1e-4), REFERENCE + np.float32(1e-3)
    assert best_pairs({"a": REFERENCE}, {"far": far, "near": near}, 30.0) == {"a": Place("near", False)}
    assert best_pairs({"far": far, "a": REFERENCE}, {"t": near}, 30.0) == {"a": Place("t", False)}
