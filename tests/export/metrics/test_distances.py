import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.errors import ProjectError
from export.metrics import distances

FINITE = st.floats(-1e3, 1e3, width=32)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)


@st.composite
def pairs(draw):
    shape = draw(SHAPES)
    return tuple(draw(hnp.arrays(np.float32, shape, elements=FINITE)) for _ in range(2))


@given(pairs())
def test_against_plain_python(pair):
    a, b = pair
    flat = [(float(x), float(y)) for x, y in zip(a.ravel(), b.ravel())]
    difference = max(abs(x - y) for x, y in flat)
    largest = max(abs(x) for x, _ in flat)
    noise = math.fsum((x - y) ** 2 for x, y in flat)
    signal = math.fsum(x * x for x, _ in flat)
    assert distances.max_abs(a, b) == difference
    if difference == 0:
        assert distances.relative_error(a, b) == 0
        assert distances.sqnr_db(a, b) == math.inf
    elif largest == 0:
        assert distances.relative_error(a, b) == math.inf
        assert distances.sqnr_db(a, b) == -math.inf
    else:
        assert distances.relative_error(a, b) == pytest.approx(difference / largest)
        if noise > 0 and signal > 0:
            assert distances.sqnr_db(a, b) == pytest.approx(10 * (math.log10(signal) - math.log10(noise)), abs=1e-9)
    agreement = sum(list(x).index(max(x)) == list(y).index(max(y)) for x, y in zip(a.tolist(), b.tolist())) / len(a)
    assert distances.top1_agreement(a, b) == pytest.approx(agreement)


@given(pairs())
def test_cosine_against_plain_python(pair):
    a, b = pair
    values = []
    for x, y in zip(a.tolist(), b.tolist()):
        norms = math.hypot(*x) * math.hypot(*y)
        if x == y:
            values.append(1.0)
        else:
            values.append(math.fsum(p * q for p, q in zip(x, y)) / norms if norms > 0 else 0.0)
    assert distances.cosine(a, b) == pytest.approx(sum(values) / len(values), abs=1e-6)


@given(pairs(), st.floats(0.1, 100))
def test_relative_numbers_do_not_know_the_scale(pair, factor):
    a, b = (x.astype(np.float64) for x in pair)
    if np.abs(a).max() > 1e-3 and np.abs(a - b).max() > 1e-3:
        assert distances.relative_error(a * factor, b * factor) == pytest.approx(
            distances.relative_error(a, b), rel=1e-9
        )
        assert distances.sqnr_db(a * factor, b * factor) == pytest.approx(distances.sqnr_db(a, b), abs=1e-6)


@given(pairs(), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_a_value_that_is_not_finite_never_looks_good(pair, bad, data):
    a, _ = pair
    b = a.copy()
    row, column = (data.draw(st.integers(0, n - 1)) for n in a.shape)
    b[row, column] = bad
    result = distances.compare(a, b, labels=np.argmax(a, axis=1))
    perfect = distances.compare(a, a)
    assert not result.finite
    assert result.max_abs == math.inf
    assert result.relative_error == math.inf
    assert result.sqnr_db == -math.inf
    assert result.top1_agreement == pytest.approx(1 - 1 / len(a))
    assert result.candidate_accuracy == pytest.approx(1 - 1 / len(a))
    assert result.reference_accuracy == 1
    assert result.cosine < perfect.cosine


def test_float64_reductions():
    """A million values of 1e-4 beside 1e4: float32 sums would lose the noise."""
    a = np.full((1000, 1000), 1e4, dtype=np.float32)
    b = a + np.float32(1e-2)
    exact = float(b[0, 0]) - 1e4
    assert distances.sqnr_db(a, b) == pytest.approx(20 * math.log10(1e4 / exact), abs=1e-6)


def test_to_dict_is_strict_json():
    a = np.array([[1.0, 2.0], [3.0, 1.0]])
    equal = distances.compare(a, a).to_dict()
    broken = distances.compare(a, a * np.nan).to_dict()
    for data in (equal, broken):
        assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert equal["sqnr_db"] is None
    assert equal["finite"] is True
    assert broken["sqnr_db"] is None
    assert broken["finite"] is False
    assert broken["top1_agreement"] == 0
    assert equal["agreement_interval"][1] == 1


def test_shapes_and_references_are_checked():
    a = np.ones((2, 3))
    with pytest.raises(ProjectError, match=r"\(2, 3\) and \(3, 2\)"):
        distances.compare(a, a.T)
    with pytest.raises(ProjectError, match="finite reference"):
        distances.compare(a * np.nan, a)
    with pytest.raises(ProjectError, match="labels"):
        distances.compare(a, a, np.eye(3)[:2])
    with pytest.raises(ProjectError, match="logits"):
        distances.compare(np.ones(3), np.ones(3), np.zeros(1, int))


def test_accuracy():
    logits = np.array([[1, 2], [2, 1], [np.nan, 5]])
    reference = np.ones((3, 2))
    assert distances.compare(reference, logits, np.array([1, 1, 1])).candidate_accuracy == pytest.approx(1 / 3)
    assert distances.compare(reference, logits, np.array([-1, 1, 1])).candidate_accuracy == 0, "row 0 has no label"


def test_paired_answers():
    """Row by row: right and right, lost, lost, gained, wrong and wrong, lost to NaN."""
    reference = np.array([[2, 1], [2, 1], [2, 1], [1, 2], [1, 2], [2, 1]])
    candidate = np.array([[2, 1], [1, 2], [1, 2], [2, 1], [1, 2], [np.nan, 1]])
    result = distances.compare(reference, candidate, labels=np.zeros(6, int))
    assert (result.mcnemar.losses, result.mcnemar.gains) == (3, 1)
    assert result.accuracy_drop == pytest.approx(result.reference_accuracy - result.candidate_accuracy)
    low, high = result.accuracy_drop_interval
    assert low < result.accuracy_drop < high
    assert result.accuracy_drop == 2 / 6
    data = result.to_dict()
    assert data["mcnemar"] == {"losses": 3, "gains": 1, "p_value": 0.625}
    assert data["accuracy_drop_interval"] == [low, high]
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_without_labels_nothing_is_paired():
    data = distances.compare(np.eye(3), np.eye(3)).to_dict()
    assert data["mcnemar"] is data["accuracy_drop"] is data["accuracy_drop_interval"] is None
