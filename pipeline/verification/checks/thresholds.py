"""Hold the distances of one hop against the recipe's thresholds.

A share of images (agreement, accuracy drop) fails only when its 95 % interval excludes the threshold. One that misses
it while the interval contains it is inconclusive: the images are too few to tell. Other distances fail at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.metrics.confidence import images_to_decide, images_to_decide_drop, wilson_interval
from export.metrics.distances import AUTO, FLOOR, Comparison, FloatNoise
from export.words import count, percent
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, PASS, Verdict
from pipeline.recipe.schema import Thresholds


@dataclass(frozen=True)
class Finding:
    """The result for one threshold on the test images.

    Attributes:
        verdict: PASS, INCONCLUSIVE or FAIL.
        text: the reason, or for a PASS what these images show; "" where a PASS needs no text.
        images: how many images would decide, if INCONCLUSIVE.
    """

    verdict: Verdict
    text: str = ""
    images: int | None = None


def check_thresholds(
    comparison: Comparison, limits: Thresholds, noise: FloatNoise | None = None, near_ties: int | None = None
) -> list[Finding]:
    """Compare distances with every threshold that is set; NaN and infinity always fail.

    Args:
        comparison: distances of the logits.
        limits: the thresholds of the candidate's precision.
        noise: how far rounding alone moves the logits. Defaults to None: unknown.
        near_ties: number of changed answers that do not count as such. Defaults to None: all count.

    Returns:
        list[Finding]: one per threshold.
    """
    findings = [Finding(PASS) if comparison.finite else Finding(FAIL, "the candidate gave NaN or infinite logits")]
    limit = relative_limit(limits, noise)
    if limit is not None:
        error = comparison.relative_error
        by_noise = limits.relative_error == AUTO and noise is not None and limit > FLOOR
        text = f"relative error {error:.2e}, at most {limit:.2e} allowed" + (f", as {noise}" if by_noise else "")
        passed = Finding(PASS, text if by_noise and error > FLOOR else "")
        findings.append(passed if error <= limit else Finding(FAIL, text))
    if limits.top1_agreement is not None:
        findings.append(_agreement(comparison, limits.top1_agreement, near_ties))
    if limits.sqnr_db is not None:
        text = f"SQNR {comparison.sqnr_db:.1f} dB, at least {limits.sqnr_db:.1f} dB needed"
        findings.append(Finding(PASS) if comparison.sqnr_db >= limits.sqnr_db else Finding(FAIL, text))
    if limits.accuracy_drop is not None:
        findings.append(_drop(comparison, limits.accuracy_drop))
    return findings


def relative_limit(limits: Thresholds, noise: FloatNoise | None) -> float | None:
    """Return the relative error allowed: the recipe's number, or with "auto" the one that follows from the noise."""
    if isinstance(limits.relative_error, str):  # auto
        return FLOOR if noise is None else noise.limit
    return limits.relative_error


def _agreement(comparison: Comparison, limit: float, near_ties: int | None) -> Finding:
    share, (low, high), besides = comparison.top1_agreement, comparison.agreement_interval, ""
    if near_ties is not None:
        same = round(share * comparison.images) + near_ties
        share, (low, high), besides = (
            same / comparison.images,
            wilson_interval(same, comparison.images),
            " besides near ties",
        )
    if share >= limit:
        # Rounded down, so that the sentence never says more than the interval.
        return Finding(PASS, f"at least {math.floor(1000 * low) / 10:.1f} % agreement{besides} with 95 % confidence")
    measured = _measured(f"top-1 agreement{besides}", share, (low, high), comparison.images, limit)
    return _missed(f"{measured}, {_limit(limit)} required", high < limit, images_to_decide(share, limit))


def _drop(comparison: Comparison, limit: float) -> Finding:
    drop, interval, changed = comparison.accuracy_drop, comparison.accuracy_drop_interval, comparison.mcnemar
    if drop is None or interval is None or changed is None:
        text = "no test image has a label, so that the accuracy drop cannot be measured"
        return Finding(FAIL, f"{text}; at most {_limit(limit)} allowed: give labels, or set accuracy_drop to null")
    if drop <= limit:
        most = math.ceil(1000 * max(interval[1], 0.0)) / 10
        return Finding(PASS, f"at most {most:.1f} points of accuracy lost with 95 % confidence")
    measured = _measured("accuracy drop", drop, interval, comparison.labelled, limit)
    rates = changed.losses / comparison.labelled, changed.gains / comparison.labelled
    enough = images_to_decide_drop(*rates, limit)
    return _missed(f"{measured}, at most {_limit(limit)} allowed", interval[0] > limit, enough)


def _measured(name: str, value: float, interval: tuple[float, float], images: int, limit: float) -> str:
    shown, low, high = (_share(share, limit) for share in (value, *interval))
    return f"{name} {shown} (95 %: {low} to {high}) of {count(images, 'image')}"


def _share(share: float, limit: float) -> str:
    """Return a share in percent with as many digits as tell it from the limit, and never all where it is not."""
    digits = next((some for some in range(2, 9) if share == limit or percent(share, some) != percent(limit, some)), 9)
    return percent(share, digits).replace("%", " %")


def _limit(limit: float) -> str:
    return f"{100 * limit:.7g} %"


def _missed(why: str, excluded: bool, images: int | None) -> Finding:
    if excluded:
        return Finding(FAIL, why)
    enough = f"; about {count(images, 'image')} would decide" if images is not None else ""
    return Finding(INCONCLUSIVE, f"inconclusive: {why}{enough}", images)
