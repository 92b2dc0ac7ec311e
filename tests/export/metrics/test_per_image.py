from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy, rankdata

from export.errors import ProjectError
from export.metrics.distances import compare, mean_abs, relative_l2, sqnr_db, top5_agreement
from export.metrics.per_image import kl_divergence, margins, sqnr_by_image

random = np.random.default_rng(3)
LOGITS = random.normal(size=(40, 9)).astype(np.float32)
NOISY = (LOGITS + 0.3 * random.normal(size=LOGITS.shape)).astype(np.float32)


def test_one_image_by_itself_has_the_sqnr_of_a_comparison_of_one_image() -> None:
    expected = [sqnr_db(LOGITS[i : i + 1], NOISY[i : i + 1]) for i in range(len(LOGITS))]
    assert sqnr_by_image(LOGITS, NOISY) == pytest.approx(expected)


def test_rows_that_are_equal_zero_or_not_finite() -> None:
    a = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    b = np.array([[1.0, 2.0], [0.0, 0.0], [np.nan, 2.0], [1.0, 0.0]])
    assert sqnr_by_image(a, b).tolist() == [np.inf, np.inf, -np.inf, -np.inf]


def test_a_masked_class_hides_nothing() -> None:
    a, b = (np.array([[1.0, 2.0, -1e9]]), np.array([[1.0, 2.1, -1e9]]))
    assert sqnr_by_image(a, b)[0] == pytest.approx(
        sqnr_db(np.array([[1.0, 2.0, -86.0]]), np.array([[1.0, 2.1, -85.9]])), abs=1e-6
    )


def test_shapes_are_checked() -> None:
    with pytest.raises(ProjectError, match=r"\(40, 9\) and \(40, 8\)"):
        sqnr_by_image(LOGITS, LOGITS[:, 1:])


def test_kl_divergence_is_that_of_scipy() -> None:
    p, q = softmax(LOGITS, axis=1), softmax(NOISY, axis=1)
    assert kl_divergence(p, q) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-6)
    by_logits = (np.exp(log_softmax(LOGITS, axis=1)) * (log_softmax(LOGITS, axis=1) - log_softmax(NOISY, axis=1))).sum(
        1
    )
    assert kl_divergence(p, q) == pytest.approx(by_logits.mean(), rel=1e-5)
    assert kl_divergence(p, p) == 0


def test_kl_divergence_is_finite_for_zeros_and_infinite_for_what_is_no_probability() -> None:
    p = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    assert kl_divergence(p, p) == 0
    one_sided = kl_divergence(p, np.array([[1.0, 0.0], [0.5, 0.5]], np.float32))
    assert one_sided == pytest.approx(-np.log(np.finfo(np.float32).tiny) / 2)
    assert kl_divergence(p, np.array([[0.5, 0.5], [0.5, 0.5]])) == pytest.approx(rel_entr([0, 1], [0.5, 0.5]).sum() / 2)
    for bad in (np.nan, np.inf, -0.1):
        assert kl_divergence(p, np.array([[0.5, 0.5], [bad, 0.5]])) == np.inf
    assert kl_divergence(p, np.zeros((2, 2))) == np.inf


def test_mean_and_euclidean_distance_are_those_of_scipy() -> None:
    flat = LOGITS.reshape(1, -1), NOISY.reshape(1, -1)
    assert mean_abs(LOGITS, NOISY) == pytest.approx(cdist(*flat, "cityblock").item() / LOGITS.size)
    norm = cdist(flat[0], np.zeros_like(flat[0])).item()
    assert relative_l2(LOGITS, NOISY) == pytest.approx(cdist(*flat).item() / norm)
    assert 20 * np.log10(1 / relative_l2(LOGITS, NOISY)) == pytest.approx(sqnr_db(LOGITS, NOISY))


def test_distances_of_equal_and_of_broken_logits() -> None:
    zeros = np.zeros((2, 3))
    assert (mean_abs(zeros, zeros), relative_l2(zeros, zeros), relative_l2(zeros, zeros + 1)) == (0, 0, np.inf)
    broken = LOGITS.copy()
    broken[3, 4] = np.nan
    result = compare(LOGITS, broken)
    assert (result.mean_abs, result.relative_l2, result.top5_agreement) == (np.inf, np.inf, 1 - 1 / len(LOGITS))
    assert {"mean_abs": None, "relative_l2": None}.items() <= result.to_dict().items()


def test_the_best_five_are_those_of_a_sort_of_which_equal_ones_stand_in_their_order() -> None:
    candidate = np.round(2 * random.normal(size=LOGITS.shape))  # many are equal
    ranks = np.array([rankdata(-row, method="ordinal") for row in candidate])
    expected = (ranks[np.arange(len(LOGITS)), LOGITS.argmax(axis=1)] <= 5).mean()
    assert 0 < expected < 1
    assert top5_agreement(LOGITS, candidate) == pytest.approx(expected)
    assert top5_agreement(LOGITS[:, :5], candidate[:, :5]) is None
    assert top5_agreement(LOGITS[:, :6], candidate[:, :6]) is not None


def test_labels_that_are_unknown_count_in_no_accuracy() -> None:
    labels = LOGITS.argmax(axis=1)
    labels[:10] = -1
    worse = LOGITS.copy()
    worse[:20] = -worse[:20]
    result = compare(LOGITS, worse, labels)
    assert (result.reference_accuracy, result.candidate_accuracy) == (1, 20 / 30)
    assert result.mcnemar is not None
    assert (result.mcnemar.losses, result.mcnemar.gains) == (10, 0)
    assert compare(LOGITS, worse, np.full(len(LOGITS), -1)).accuracy_drop is None


def test_a_margin_is_the_difference_of_the_best_two() -> None:
    assert margins(np.array([[0.1, 0.6, 0.3], [0.4, 0.4, 0.2]])) == pytest.approx([0.3, 0.0])
    many = np.random.default_rng(3).dirichlet(np.ones(50), 40)
    ordered = np.sort(many, axis=1)
    assert margins(many) == pytest.approx(ordered[:, -1] - ordered[:, -2])
