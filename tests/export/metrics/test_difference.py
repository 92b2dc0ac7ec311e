import numpy as np

from export.metrics.difference import clip_masked_classes, relative_difference
from export.metrics.distances import compare


def test_a_masked_class_does_not_hide_the_others():
    reference = np.array([[3.0, 1.0, -1e9], [0.0, 2.0, -1e9]])
    candidate = reference + np.array([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]])
    found = compare(reference, candidate)
    assert found.relative_error > 5e-3
    assert found.sqnr_db < 60
    np.testing.assert_array_equal(clip_masked_classes(reference)[:, :2], reference[:, :2])


def test_other_logits_stay_as_they_are():
    large = np.random.default_rng(0).normal(0, 400, (5, 7))
    assert clip_masked_classes(large) is large
    broken = np.array([[1.0, np.nan, -1e9]])
    assert clip_masked_classes(broken) is broken


def test_the_difference_is_of_the_largest_value_and_of_what_is_finite():
    expected = np.array([[4.0, -8.0], [1.0, np.inf]])
    assert relative_difference(expected, expected + np.array([[0.0, 2.0], [0.0, 0.0]])) == 0.25
    assert relative_difference(expected, np.nan_to_num(expected)) == float("inf")
    assert relative_difference(expected, expected[:1]) == float("inf")
