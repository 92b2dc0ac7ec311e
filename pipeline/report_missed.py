"""What a comparison missed, from its numbers: what was asked, what was reached, in few words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.html import share
from pipeline.parity_report import FAIL, INCONCLUSIVE, TOP_K, Hop, ParityReport
from pipeline.recipe import Thresholds
from pipeline.words import count

UNUSABLE = "NaN or infinite logits"


@dataclass(frozen=True)
class Missed:
    """A threshold that a comparison misses.

    Attributes:
        key: of ``verify.thresholds.<precision>``.
        asked: in words that follow "does not reach".
        words: what was reached and what was asked; rounding never makes the one meet the other.
        value: what was reached as the recipe writes it; a threshold that the comparison meets.
    """

    key: str
    asked: str
    words: str
    value: str


def missed(hop: Hop, parity: ParityReport) -> list[Missed]:
    """The thresholds that a comparison misses; empty where it has no distances, or gave NaN or infinite logits."""
    if not hop.compared or not hop.finite:
        return []
    limits = parity.thresholds.get(hop.precision, Thresholds())
    found = []
    if hop.relative_limit is not None and hop.relative_error is not None and hop.relative_error > hop.relative_limit:
        error = _up(hop.relative_error)
        most = f"at most {hop.relative_limit:.1e}"
        words = f"relative error {error}, {most} allowed"
        found.append(Missed("relative_error", f"a relative error of {most}", words, error))
    agreement, wanted = hop.top1_agreement, limits.top1_agreement
    if agreement is not None and wanted is not None and agreement < wanted:
        low = math.floor(agreement * 1e4) / 1e4
        shown = low if round(agreement, 4) >= wanted else agreement
        words = f"{shown * 100:.2f} % agreement, {wanted * 100:g} % asked"
        found.append(Missed("top1_agreement", f"{wanted * 100:g} % agreement", words, f"{low:.4f}"))
    if hop.sqnr_db is not None and limits.sqnr_db is not None and hop.sqnr_db < limits.sqnr_db:
        sqnr = math.floor(hop.sqnr_db * 10) / 10
        shown = sqnr if round(hop.sqnr_db, 1) >= limits.sqnr_db else hop.sqnr_db
        words = f"SQNR {shown:.1f} dB, {limits.sqnr_db:g} asked"
        found.append(Missed("sqnr_db", f"{limits.sqnr_db:g} dB SQNR", words, f"{sqnr:.1f}"))
    drop, allowed = _drop(hop), limits.accuracy_drop
    if drop is not None and allowed is not None and drop > allowed:
        high = math.ceil(drop * 1e4) / 1e4
        shown = high if round(drop, 4) <= allowed else drop
        asked = f"an accuracy drop of at most {allowed * 100:g} %"
        words = f"accuracy drop {shown * 100:.2f} %, at most {allowed * 100:g} % allowed"
        found.append(Missed("accuracy_drop", asked, words, f"{high:.4f}"))
    return found


def reason(hop: Hop, parity: ParityReport) -> str:
    """Why a comparison failed or is inconclusive, in the few words that a card has room for."""
    if hop.verdict not in (FAIL, INCONCLUSIVE):
        return ""
    if hop.kind == TOP_K or not hop.compared:
        return hop.why
    if not hop.finite:
        return UNUSABLE
    said = "; ".join(one.words for one in missed(hop, parity))
    if hop.verdict == INCONCLUSIVE and said:
        return f"{count(hop.images, 'image')} cannot tell; {said}"
    return said or hop.why


def reached(hop: Hop) -> str:
    """SQNR and agreement of a comparison, for a sentence."""
    if not hop.finite or hop.top1_agreement is None:
        return ""
    agreement = f"{share(hop.top1_agreement)} agreement"
    return agreement if hop.sqnr_db is None else f"SQNR {hop.sqnr_db:.1f} dB, {agreement}"


def _drop(hop: Hop) -> float | None:
    if hop.accuracy_drop is not None or hop.accuracy_reference is None or hop.accuracy_candidate is None:
        return hop.accuracy_drop
    return hop.accuracy_reference - hop.accuracy_candidate


def _up(value: float) -> str:
    """Two digits, rounded up."""
    if value <= 0:
        return "0.0e+00"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit - 1e-9) * unit:.1e}"
