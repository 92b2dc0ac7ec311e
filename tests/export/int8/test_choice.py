"""The rule that chooses among INT8 graphs."""

import math
from dataclasses import replace

import numpy as np
import pytest

from export.int8.choice import TIE_DB, WORST_DB, best_scales, helps
from export.int8.sensitivity import Budget
from export.int8.simulate import Judged
from export.metrics.per_image import sqnr_by_image

EVERY = Judged.of(np.eye(4), np.eye(4) + 0.01, np.arange(4))


def judged(median: float, low: float = 20.0, agreement: float = 1.0, sqnr: float = 25.0, worst: float = 15.0) -> Judged:
    interval = (max(0.0, agreement - 0.02), min(1.0, agreement + 0.02))
    return replace(
        EVERY,
        median_db=median,
        worst_db=worst,
        tail_db=low,
        top1_agreement=agreement,
        agreement_interval=interval,
        sqnr_db=sqnr,
    )


@pytest.mark.parametrize(
    ("better", "other"),
    [
        (judged(20.0, low=20.0), judged(40.0, low=20.0 - WORST_DB - 0.01)),
        (
            judged(30.0, low=17.0, agreement=0.9, sqnr=20.0),
            judged(30.0 - TIE_DB - 0.01, low=17.0 + WORST_DB, sqnr=30.0),
        ),
        (judged(30.0, low=20.0), judged(30.4, low=19.4)),
        (judged(30.0, low=20.0, agreement=1.0), judged(30.4, low=20.4, agreement=0.99, sqnr=30.0)),
        (judged(30.0, sqnr=25.1), judged(30.4, low=20.4, sqnr=25.0)),
        (judged(math.inf), judged(40.0)),
        (judged(math.inf, low=20.0), judged(math.inf, low=19.0)),
        (judged(-30.0), judged(-math.inf)),
    ],
    ids=[
        "many images lost",
        "median",
        "worst images",
        "agreement",
        "all logits",
        "equal logits",
        "both equal",
        "not finite",
    ],
)
def test_a_step_is_judged_by_the_usual_image_then_the_worst_ones_then_agreement(better: Judged, other: Judged) -> None:
    assert helps(other, better, Budget())
    assert not helps(better, other, Budget())


@pytest.mark.parametrize(
    ("better", "other"),
    [
        (judged(28.0, worst=20.0), judged(30.0, worst=16.9)),
        (judged(30.0, worst=16.0, low=10.0, agreement=0.9), judged(28.0, worst=16.9, low=20.0)),
        (judged(30.0, low=20.0), judged(30.9, low=19.4)),
        (judged(30.0, agreement=1.0), judged(30.9, agreement=0.99, sqnr=30.0)),
        (judged(30.0, sqnr=25.1), judged(30.9, sqnr=25.0)),
        (judged(math.inf, worst=20.0), judged(40.0, worst=39.0)),
        (judged(20.0, worst=-10.0), judged(math.inf, worst=-math.inf)),
    ],
    ids=["worst image", "median image", "worst ones", "agreement", "all logits", "equal logits", "not finite"],
)
def test_scales_are_judged_by_the_usual_image_and_the_worst_one(better: Judged, other: Judged) -> None:
    assert best_scales({"other": other, "better": better}, Budget()) == "better"
    assert best_scales({"better": better, "other": other}, Budget()) == "better"


def test_of_equal_graphs_the_one_before_stays() -> None:
    assert not helps(judged(30.0), judged(30.0), Budget())
    assert best_scales({"first": judged(30.0), "second": judged(30.0)}, Budget()) == "first"


def test_what_meets_the_budget_is_better_than_what_misses_it() -> None:
    close, meets, budget = judged(40.0, sqnr=19.0), judged(30.0, sqnr=21.0), Budget(sqnr_db=20.0)
    assert best_scales({"close": close, "meets": meets}, budget) == "meets"
    assert best_scales({"close": close}, budget) == "close"
    assert helps(close, meets, budget)
    assert not helps(meets, close, budget)


def test_where_none_meets_the_budget_the_usual_image_decides_about_scales() -> None:
    """Of a network that agrees on two images of three no answer of the worst ones is left to spare."""
    spares, usual = judged(15.3, low=10.3, worst=10.1, agreement=0.66), judged(16.8, low=9.7, worst=8.0, agreement=0.78)
    clips = judged(18.5, low=6.4, worst=3.4, agreement=0.83)
    results = {"spares": spares, "usual": usual, "clips": clips}
    assert best_scales(results, Budget(top1_agreement=0.99)) == "usual"
    assert best_scales(results, Budget()) == "spares", "where all meet it, the worst image counts as much"


def test_a_near_tie_on_an_image_does_not_miss_the_budget() -> None:
    tie, meets, budget = judged(40.0, agreement=0.98), judged(30.0, agreement=1.0), Budget(top1_agreement=0.99)
    assert best_scales({"tie": tie, "meets": meets}, budget) == "tie"
    assert helps(meets, tie, budget)
    assert best_scales({"tie": judged(40.0, agreement=0.9), "meets": meets}, budget) == "meets"


def test_the_spread_is_that_of_the_images() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(101, 5))
    logits = reference + rng.normal(size=(101, 5)) * np.linspace(0.001, 0.5, 101)[:, None]
    found = Judged.of(reference, logits, np.zeros(101, np.int64))
    by_image = sqnr_by_image(reference, logits)
    assert found.median_db == np.median(by_image)
    assert found.low_db == np.percentile(by_image, 5, method="lower")
    assert found.worst_db == by_image.min()
    assert found.tail_db == np.sort(by_image)[:6].mean(), "a twentieth of 101 images, rounded up"
    assert found.sqnr_db < found.median_db, "the loud images weigh more in the noise of all logits"
    broken = Judged.of(reference, np.where(np.arange(101)[:, None] == 0, np.nan, logits), np.zeros(101, np.int64))
    assert (broken.worst_db, broken.tail_db, broken.median_db) == (
        -math.inf,
        -math.inf,
        np.sort(np.append(by_image[1:], -math.inf))[50],
    )
    equal = Judged.of(reference, np.where(np.arange(101)[:, None] == 0, np.nan, reference), np.zeros(101, np.int64))
    assert (equal.tail_db, equal.median_db) == (-math.inf, math.inf), "one image is not finite, the others are exact"
