"""The choice among INT8 graphs by what held-out images show: of the usual image, and of the worst ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from export.int8.sensitivity import Budget
from export.int8.simulate import Judged

TIE_DB = 0.5  # two graphs that differ by less are equal in a value, and the next value decides
# No median makes up for more: 3 dB are twice the noise on the worst images.
WORST_DB = 3.0


def best_scales(results: Mapping[str, Judged], budget: Budget) -> str:
    """Return the method whose scales are best for the usual image and for the worst one.

    Clipping costs a few images much and the others nothing, so a method is not judged by the median alone. Those that
    meet the budget stay; of these those with the highest mean of the median's and the worst image's SQNR, within half a
    decibel; of these those with the highest mean over the worst twentieth; of these those with the best agreement, and
    the highest SQNR of all logits. If none meets the budget, no answer of the worst images is left to spare, and the
    median decides, as in `helps`.

    Args:
        results: Name of a method -> the comparison of its graph; of equal ones the first is returned.
        budget: The budget of the INT8 graph.
    """
    left = _within(results, budget)
    if not left:
        return _usual(results)
    return _last(_highest(_highest(left, _median_and_worst), _tail))


def helps(before: Judged, after: Judged, budget: Budget) -> bool:
    """Return whether a step makes a graph better.

    A graph that alone meets the budget is better. If not, one is out whose mean over the worst twentieth of the images
    is more than 3 dB lower. Then the median over the images decides, if it differs by more than half a decibel; then
    that mean; then agreement. The SQNR of all logits comes last, as one image of hundreds can carry half of its noise.
    """
    results = {"before": before, "after": after}
    return _usual(_within(results, budget) or results) == "after"


def _usual(results: Mapping[str, Judged]) -> str:
    """Return the graph that is best for the usual image, and not much worse than another for the worst ones."""
    left = _highest(_highest(results, _tail, WORST_DB), lambda judged: judged.median_db)
    return _last(_highest(left, _tail))


def _within(results: Mapping[str, Judged], budget: Budget) -> Mapping[str, Judged]:
    """Return the graphs that meet a budget.

    A share misses the budget if its interval does, as in a verdict: a near tie on one image is no reason.
    """
    certain = replace(budget, certain=True)
    return {name: judged for name, judged in results.items() if certain.met_by(judged)}


def _last(results: Mapping[str, Judged]) -> str:
    return max(results, key=lambda name: (results[name].top1_agreement, results[name].sqnr_db))


def _tail(judged: Judged) -> float:
    return judged.tail_db


def _median_and_worst(judged: Judged) -> float:
    return (judged.median_db + judged.worst_db) / 2 if math.isfinite(judged.worst_db) else judged.worst_db


def _highest(
    results: Mapping[str, Judged], value: Callable[[Judged], float], within: float = TIE_DB
) -> dict[str, Judged]:
    """Return the graphs with the highest value, within some decibels; beside an infinite one all infinite ones."""
    highest = max(map(value, results.values()))
    return {name: judged for name, judged in results.items() if value(judged) >= highest - within}
