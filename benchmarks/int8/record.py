"""The record of the bench: a row for each network and step, and what a step changed of the images' own distances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.int8.networks import Network
from export.int8.simulate import Judged
from export.records import read_record
from pipeline.artifacts.machine import Machine

SCHEMA = 1
_Z = 1.959964  # two-sided, 95 %


@dataclass(frozen=True)
class Gain:
    """The change from one step to another on the same images.

    Attributes:
        median_db: median over the images of the change of the image's own SQNR, dB; more is better.
        interval_db: 95 % interval of that median.
        agreement: change of the share of images with FP32's top class.
        agreement_interval: 95 % interval of that change, by Tango's method for pairs.
    """

    median_db: float
    interval_db: tuple[float, float]
    agreement: float
    agreement_interval: tuple[float, float]

    @property
    def worse(self) -> bool:
        """Whether the step is worse beyond one of the intervals."""
        return self.interval_db[1] < 0 or self.agreement_interval[1] < 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a step did to a network; the distances are those of the INT8 file from the FP32 file, on test images.

    Attributes:
        step: one of `benchmarks.int8.step.STEPS` or `EARLIER`.
        commit: of the code that searched; None outside a repository.
        sqnr_db: of the logits of all images together; None if it is not finite, as the following three.
        median_db: median of the images' own SQNR.
        low_db: its 5th percentile.
        worst_db: its smallest value.
        top1_agreement: share of images with FP32's top class.
        agreement_interval: its 95 % Wilson interval.
        lost: images that only FP32 classifies correctly.
        gained: images that only INT8 classifies correctly.
        method: of the scales.
        int8_convolutions: number of convolutions in INT8.
        convolutions: number of all convolutions.
        kept: nodes that stay in float to meet the budget.
        quantized: number of quantized tensors; None where the code does not say it.
        shifted: how many of them have the eighth bit.
        skipped: reason -> names of tensors, convolutions or steps for which something does not apply or does not help.
        gains: earlier step -> what this one changed.
        seconds: duration of the search.
        peak_memory_mib: of the process that searched; None where the system does not report it.
    """

    step: str
    commit: str | None = None
    sqnr_db: float | None = None
    median_db: float | None = None
    low_db: float | None = None
    worst_db: float | None = None
    top1_agreement: float
    agreement_interval: tuple[float, float]
    lost: int
    gained: int
    method: str
    int8_convolutions: int
    convolutions: int
    kept: tuple[str, ...]
    quantized: int | None = None
    shifted: int | None = None
    skipped: Mapping[str, tuple[str, ...]]
    gains: Mapping[str, Gain]
    seconds: float
    peak_memory_mib: int | None = None


@dataclass(frozen=True)
class Measured:
    """A network and the rows of its steps."""

    network: Network
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The JSON file.

    Attributes:
        photographs: what the images are, in words.
        machine: that measured last.
        networks: the networks, each with its rows.
        schema: version of this file's format.
    """

    photographs: str
    machine: Machine
    networks: tuple[Measured, ...]
    schema: int = SCHEMA


def read_table(path: Path) -> Table:
    """Read the result of an earlier run.

    Raises:
        ProjectError: missing, damaged, or of another schema; with the file and the key.
    """
    remedy = "Name another file with --output, or delete this one to measure every network again."
    return read_record(Table, path, remedy=remedy, what="table of INT8 networks")


def gain(before: np.ndarray, after: np.ndarray, agreed: tuple[np.ndarray, np.ndarray]) -> Gain:
    """Return what changed between two steps.

    The interval of the median is that of its order statistics, which assumes no distribution.

    Args:
        before: (N,) SQNR of each image, dB.
        after: the same of the later step.
        agreed: (N,) bool each, before and after, whether the image has FP32's top class.
    """
    from export.metrics.confidence import drop_interval

    # Where both are equal to FP32, or both not finite, the difference is no number: nothing changed.
    with np.errstate(invalid="ignore"):
        changes = np.sort(np.nan_to_num(after - before, nan=0.0, posinf=200.0, neginf=-200.0))
    number = len(changes)
    half = _Z * math.sqrt(number) / 2
    low, high = max(0, math.floor(number / 2 - half)), min(number - 1, math.ceil(number / 2 + half))
    lost, won = (int(np.sum(agreed[i] & ~agreed[1 - i])) for i in (0, 1))
    least, most = drop_interval(lost, won, number)
    return Gain(
        float(np.median(changes)), (float(changes[low]), float(changes[high])), (won - lost) / number, (-most, -least)
    )


def skipped(report: Mapping[str, object], shifting: bool) -> dict[str, tuple[str, ...]]:
    """Return what a search left out, by reason.

    Args:
        report: ``calibration.json`` as JSON types.
        shifting: whether the search was to shift what can be shifted.
    """
    reasons: dict[str, list[str]] = {}

    def add(why: str, name: str) -> None:
        reasons.setdefault(why, []).append(name)

    shift = report.get("shift")
    if shifting and isinstance(shift, Mapping) and shift.get("after") is None and not shift["refused"]:
        add("no quantized tensor is behind a ReLU", "shift")
    for key, title in (("shift", "shift"), ("rounding", "rounding"), ("bias_correction", "bias correction")):
        part = report.get(key)
        if not isinstance(part, Mapping):
            continue
        tried = part.get("after") is not None
        if tried and not part["used"]:
            add("it does not help on held-out images", title)
        for name, refusal in part.get("refused", {}).items():
            add(f"no shift: {refusal['kind']}", name)
        for name, why in part.get("skipped", {}).items():
            add(f"no second-order rounding: {why}", name)
    return {why: tuple(names) for why, names in reasons.items()}


def finite(value: float) -> float | None:
    """Return a number that JSON has, None for the others."""
    return value if math.isfinite(value) else None


def distances(judged: Judged) -> dict[str, object]:
    """Return the fields of a row that say how far the INT8 file is from the FP32 file, of images with labels."""
    test = judged.mcnemar
    assert test is not None, "the images have labels"
    return {
        "sqnr_db": finite(judged.sqnr_db),
        "median_db": finite(judged.median_db),
        "low_db": finite(judged.low_db),
        "worst_db": finite(judged.worst_db),
        "top1_agreement": judged.top1_agreement,
        "agreement_interval": judged.agreement_interval,
        "lost": test.losses,
        "gained": test.gains,
    }
