"""How well a hypothesis explains logits. NumPy and the standard library only, Python 3.10 syntax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from export.metrics.difference import clip_masked_classes
from pipeline.artifacts.diagnosis import Cause

# SQNR in dB from which logits agree as far as the precision allows. Keras and a correct file are 110 to 140 dB apart in
# FP32, 60 to 75 in FP16 and 20 to 45 in INT8.
NEAR: Final[Mapping[str, float]] = {"fp32": 70.0, "fp16": 40.0, "int8": 15.0}
# What a hypothesis has to gain. Noise alone gains less: a fit of a factor and an offset 1 to 3 dB.
GAIN: Final[Mapping[str, float]] = {"fp32": 20.0, "fp16": 20.0, "int8": 10.0}
EQUAL_DB: Final = 200.0


@dataclass(frozen=True)
class Explanation:
    """A cause with its evidence, before it is bound to a run; see `pipeline.artifacts.diagnosis.Hint`.

    Attributes:
        cause: What is wrong.
        text: The same in plain words.
        evidence: The numbers that show it.
        remedy: What to do.
        layer: Keras layer; "" where it is in none, or unknown.
        settles: Whether it explains the whole difference, so that nothing else needs to be looked for.
    """

    cause: Cause
    text: str
    evidence: str
    remedy: str
    layer: str = ""
    settles: bool = True

    def changed(self, **fields: Any) -> Explanation:
        """Return the explanation with other fields."""
        return replace(self, **fields)


def fit_db(expected: np.ndarray, received: np.ndarray) -> float:
    """Return the SQNR of received values in dB, at most `EQUAL_DB`; -inf if the shapes differ or one is not finite."""
    if expected.shape != received.shape or not np.isfinite(received).all() or not np.isfinite(expected).all():
        return -np.inf
    before, after = (clip_masked_classes(np.asarray(values, np.float64)) for values in (expected, received))
    noise, signal = float(((before - after) ** 2).sum()), float((before**2).sum())
    if noise == 0.0:
        return EQUAL_DB
    return min(EQUAL_DB, 10.0 * float(np.log10(signal / noise))) if signal > 0.0 else -np.inf


def explains(precision: str, fit: float, without: float) -> bool:
    """Return whether a hypothesis explains logits: its fit in dB is good in itself, and far better than without it."""
    return fit >= NEAR[precision] and fit >= without + GAIN[precision]


def difference_in_words(db: float) -> str:
    """Return an SQNR as the share of the values that the error has: "0.0012 % of the logits' size"."""
    if db >= EQUAL_DB:
        return "nothing"
    if not np.isfinite(db):
        return "values that are not finite"
    share = 100 * 10 ** (-db / 20)
    return f"{share:,.0f} % of their size" if share >= 10 else f"{share:.2g} % of their size"


def evidence_of(what: str, fit: float, without: float) -> str:
    """Return the sentence that compares a fit with the one without the hypothesis.

    Args:
        what: The hypothesis after "With", such as "red and blue exchanged".
        fit: SQNR under it in dB.
        without: SQNR without it in dB.
    """
    return (
        f"With {what}, Keras' logits and the file's differ by {difference_in_words(fit)} ({fit:.1f} dB SQNR); "
        f"without, by {difference_in_words(without)} ({without:.1f} dB)."
    )
