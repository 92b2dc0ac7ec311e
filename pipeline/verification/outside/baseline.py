"""What got worse or better since an earlier verdict on the same model and images, beyond noise.

Both verdicts are of the same images, so they are paired:

- Agreement: images whose answer was the reference's and no longer is, against those that came back, by the exact
  McNemar test.
- Accuracy: the difference of the correct answers, by the same test. The records do not say which images were correct,
  so all whose answer differs from Keras' in either verdict count as changed. That may hide a small change, and invents
  none.
- SQNR: the mean over the images, by Welch's interval. A change of less than `LEAST_DB` does not count, nor one of an
  FP32 file within its relative limit, where the numbers are rounding.

A result counts with 95 % confidence. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

from export.errors import DataError
from export.metrics.confidence import CONFIDENCE, mcnemar
from export.words import aligned, count, percent
from pipeline.artifacts.parity_report import (
    FAIL,
    FROM_KERAS,
    MOST_CHANGED,
    NOT_RUN,
    STEP,
    Hop,
    ImageNoise,
    ParityReport,
)
from pipeline.artifacts.paths import KERAS

WORSE: Final = "worse"
BETTER: Final = "better"
GONE: Final = "gone"
NEW: Final = "new"
LEAST_DB = 0.5


@dataclass(frozen=True)
class Change:
    """What changed of one comparison.

    Attributes:
        what: "worse", "better", "gone" (it is not there now, or did not run) or "new".
        run: the run, see `run_name`.
        reference: what it is compared with.
        measure: "verdict", "agreement", "accuracy", "SQNR" or "".
        before: the earlier number with its unit.
        now: the number now.
        why: why it is no noise, or what is missing.
    """

    what: Literal["worse", "better", "gone", "new"]
    run: str
    reference: str
    measure: str = ""
    before: str = ""
    now: str = ""
    why: str = ""


def changes_since(old: ParityReport, new: ParityReport) -> list[Change]:
    """Compare a verdict with an earlier one.

    Raises:
        DataError: they are of another model, of other images, or of images that an earlier version did not record.
    """
    _refuse_others(old, new)
    before = {(hop.kind, hop.reference, hop.run_name): hop for hop in old.hops}
    now = {(hop.kind, hop.reference, hop.run_name): hop for hop in new.hops}
    changes: list[Change] = []
    for key, hop in before.items():
        if hop.verdict == NOT_RUN:
            continue
        other = now.get(key)
        if other is None or other.verdict == NOT_RUN:
            what = "not judged" if other is not None and other.lacks_reference else "not run"
            why = "there is no such comparison now" if other is None else f"{what}: {other.why}"
            changes.append(Change(GONE, hop.run_name, hop.reference, why=why))
        else:
            changes += _changes(hop, other)
    changes += [
        Change(NEW, hop.run_name, hop.reference, why=f"verdict: {hop.verdict}")
        for key, hop in now.items()
        if hop.verdict != NOT_RUN and (key not in before or before[key].verdict == NOT_RUN)
    ]
    return _without_repetitions(changes, {*old.hops, *new.hops})


def _without_repetitions(changes: Sequence[Change], hops: Collection[Hop]) -> list[Change]:
    """Leave out what changed of a step where either of its files changed likewise against Keras, which tells it."""
    whole = {(hop.reference, hop.run_name) for hop in hops if hop.kind == FROM_KERAS}
    steps = {(hop.reference, hop.run_name) for hop in hops if hop.kind == STEP}
    told = {(change.what, change.run) for change in changes if (change.reference, change.run) in whole}
    return [
        change
        for change in changes
        if (change.reference, change.run) not in steps
        or not {(change.what, change.run), (change.what, change.reference)} & told
    ]


def changes_table(changes: Sequence[Change]) -> str:
    """Format changes for a terminal, the worse ones first."""
    order = (WORSE, GONE, BETTER, NEW)
    rows = [
        (change.what, change.run, change.reference, change.measure, change.before, change.now, change.why)
        for change in sorted(changes, key=lambda change: order.index(change.what))
    ]
    return "\n".join(aligned([("", "candidate", "reference", "measure", "before", "now", "why"), *rows]))


def _refuse_others(old: ParityReport, new: ParityReport) -> None:
    before, now = (report.subjects.get(KERAS, "unknown") for report in (old, new))
    if before != now:
        raise DataError(
            f"Expected a baseline of the same Keras model (sha256 {now[:12]}). Received: one of {before[:12]}. Parity "
            "says how close files are to their own model; take a verdict on this model as the baseline."
        )
    if "" in (old.images_sha256, new.images_sha256) or old.images_sha256 != new.images_sha256:
        received = old.images_sha256[:12] or "a digest that is not recorded"
        raise DataError(
            f"Expected a baseline on the same test images (sha256 {new.images_sha256[:12] or 'not recorded'}). "
            f"Received: {received}. Changed answers are counted image by image; take a verdict on these images as the "
            "baseline."
        )


def _changes(old: Hop, new: Hop) -> Iterator[Change]:
    if (old.verdict == FAIL) != (new.verdict == FAIL):
        what: Literal["worse", "better"] = WORSE if new.verdict == FAIL else BETTER
        yield Change(what, new.run_name, new.reference, "verdict", old.verdict, new.verdict, new.why)
    if not (old.compared and new.compared):
        return
    yield from _agreement(old, new)
    if new.kind == FROM_KERAS:
        yield from _accuracy(old, new)
    yield from _sqnr(old, new)


def _agreement(old: Hop, new: Hop) -> Iterator[Change]:
    lost, back = _changed_numbers(old, new)
    test = mcnemar(lost, back)
    if test.p_value <= 1 - CONFIDENCE:
        before, now = (percent(hop.top1_agreement or 0.0) for hop in (old, new))
        why = f"{count(lost, 'answer')} changed and {back:,} came back (p = {test.p_value:.2g})"
        yield Change(_word(back - lost), new.run_name, new.reference, "agreement", before, now, why)


def _changed_numbers(old: Hop, new: Hop) -> tuple[int, int]:
    """Return how many images have another answer than the reference's only now, and only before.

    Where not every such image is recorded, none counts as one of both: that may hide a change, and invents none.
    """
    if MOST_CHANGED in (len(old.changed), len(new.changed)):
        before, now = (round((1 - (hop.top1_agreement or 0.0)) * hop.images) for hop in (old, new))
        return now, before
    return len(set(new.changed) - set(old.changed)), len(set(old.changed) - set(new.changed))


def _accuracy(old: Hop, new: Hop) -> Iterator[Change]:
    if old.mcnemar is None or new.mcnemar is None or old.accuracy_candidate is None or new.accuracy_candidate is None:
        return
    gained = (new.mcnemar.gains - new.mcnemar.losses) - (old.mcnemar.gains - old.mcnemar.losses)
    most = max(abs(gained), sum(_changed_numbers(old, new)) + len(set(old.changed) & set(new.changed)))
    worse, better = (most - gained) // 2, (most + gained) // 2
    test = mcnemar(worse, better)
    if gained and test.p_value <= 1 - CONFIDENCE:
        before, now = percent(old.accuracy_candidate), percent(new.accuracy_candidate)
        why = f"{count(abs(gained), 'answer')} net, of at most {most:,} that changed (p = {test.p_value:.2g})"
        yield Change(_word(gained), new.run_name, new.reference, "accuracy", before, now, why)


def _sqnr(old: Hop, new: Hop) -> Iterator[Change]:
    if old.image_noise is None or new.image_noise is None or all(map(_within_rounding, (old, new))):
        return
    difference = new.image_noise.mean_db - old.image_noise.mean_db
    half = _welch(old.image_noise, new.image_noise, new.images)
    if abs(difference) > max(LEAST_DB, half):
        before, now = (f"{noise.mean_db:.1f} dB" for noise in (old.image_noise, new.image_noise))
        why = f"{difference:+.1f} dB, 95 %: {difference - half:+.1f} to {difference + half:+.1f}"
        yield Change(_word(difference), new.run_name, new.reference, "SQNR", before, now, why)


def _word(difference: float) -> Literal["worse", "better"]:
    return BETTER if difference > 0 else WORSE


def _within_rounding(hop: Hop) -> bool:
    error, limit = hop.relative_error, hop.relative_limit
    return hop.precision == "fp32" and error is not None and limit is not None and error <= limit


def _welch(old: ImageNoise, new: ImageNoise, images: int) -> float:
    """Return half the width of Welch's interval of the difference of two means, inf for one image.

    Source: B. L. Welch, The generalization of "Student's" problem when several different population variances are
    involved, Biometrika 34 (1947). The quantile of t is the expansion 26.7.5 of Abramowitz and Stegun, Handbook of
    Mathematical Functions (1964).
    """
    if images < 2:
        return math.inf
    parts = [noise.std_db**2 / images for noise in (old, new)]
    if not (variance := sum(parts)):
        return 0.0
    freedom = variance**2 / (sum(part**2 for part in parts) / (images - 1))
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t * math.sqrt(variance)
