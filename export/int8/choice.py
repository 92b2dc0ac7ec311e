"""The choice among INT8 graphs by what held-out images show: the usual image first, then the worst ones."""

from collections.abc import Mapping
from operator import attrgetter

from export.int8.sensitivity import Budget
from export.int8.simulate import Judged

TIE_DB = 0.5  # two graphs that differ by less are equal in a value, and the next value decides


def best(results: Mapping[str, Judged], budget: Budget) -> str:
    """Return the name of the best graph among those that meet the budget, or among all if none meets it.

    Those with the highest median over the images stay, within half a decibel; of these those with the highest 5th
    percentile; of these those with the best agreement. The SQNR of all logits decides among the rest: one image of
    hundreds can carry a third of the noise in it.

    Args:
        results: Name of a graph -> its comparison; of equal ones the first is returned.
        budget: The budget of the INT8 graph.
    """
    left = [name for name, judged in results.items() if budget.met_by(judged)] or list(results)
    for value in ("median_db", "low_db"):
        highest = max(getattr(results[name], value) for name in left)
        # Infinite values are equal to each other, and have no distance.
        left = [
            n for n in left if getattr(results[n], value) >= highest - TIE_DB or getattr(results[n], value) == highest
        ]
    return max(left, key=lambda name: (results[name].top1_agreement, results[name].sqnr_db))


def helps(before: Judged, after: Judged, budget: Budget) -> bool:
    """Return whether a step makes a graph better, by the rule of `best`."""
    return best({"before": before, "after": after}, budget) == "after"
