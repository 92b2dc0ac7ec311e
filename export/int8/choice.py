"""The choice among INT8 graphs by what held-out images show: the usual image first, then the worst ones."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from export.int8.sensitivity import Budget
from export.int8.simulate import Judged

TIE_DB = 0.5  # two graphs that differ by less are equal in a value, and the next value decides
# No median makes up for more: 3 dB are twice the noise on the worst images. For a trained EfficientNetB0,
# percentile_99.9 had the best median by 1.2 dB, an 8.7 dB lower 5th percentile than the next method, and on other
# images 10 points less agreement than MSE scales.
WORST_DB = 3.0


def best(results: Mapping[str, Judged], budget: Budget) -> str:
    """Return the name of the best graph among those that meet the budget, or among all if none meets it.

    A share misses the budget if its interval does, as in a verdict: a near tie on one image is no reason. Those stay
    whose mean over the worst twentieth of the images is within 3 dB of the highest; of these those with the highest
    median over the images, within half a decibel; of these those with the highest mean over the worst twentieth; of
    these those with the best agreement. The SQNR of all logits comes last, as one image of hundreds can carry a third
    of its noise.

    Args:
        results: Name of a graph -> its comparison; of equal ones the first is returned.
        budget: The budget of the INT8 graph.
    """
    certain = replace(budget, certain=True)
    left = {name: judged for name, judged in results.items() if certain.met_by(judged)} or dict(results)
    left = _highest(left, lambda judged: judged.tail_db, WORST_DB)
    left = _highest(left, lambda judged: judged.median_db)
    left = _highest(left, lambda judged: judged.tail_db)
    return max(left, key=lambda name: (left[name].top1_agreement, left[name].sqnr_db))


def helps(before: Judged, after: Judged, budget: Budget) -> bool:
    """Return whether a step makes a graph better, by the rule of `best`."""
    return best({"before": before, "after": after}, budget) == "after"


def _highest(
    results: Mapping[str, Judged], value: Callable[[Judged], float], within: float = TIE_DB
) -> dict[str, Judged]:
    """Return the graphs with the highest value, within some decibels; beside an infinite one all infinite ones."""
    highest = max(map(value, results.values()))
    return {name: judged for name, judged in results.items() if value(judged) >= highest - within}
