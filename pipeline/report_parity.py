"""The report's section on parity: every comparison, with its numbers and its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from export.statistics import McNemar
from pipeline.bars import Bar, Chart
from pipeline.html import Cell, Section, Table, badge, number, section, share
from pipeline.layout import ONNX
from pipeline.parity_report import FROM_KERAS, NOT_RUN, PASS, Hop, ParityReport, allowed, not_run
from pipeline.report_headline import short_name
from pipeline.words import sentence

CHANGED = (
    "Lost / gained: images that the reference names right and the candidate wrong, and the reverse; p: how likely "
    "chance alone parts them at least so far (exact McNemar test)."
)


def parity_section(parity: ParityReport) -> Section:
    """The section; its thresholds are those that the verdict was given by."""
    limits = {name: parity.thresholds[name].sqnr_db for name in ONNX if name in parity.thresholds}
    head = (
        *("verdict", "candidate", "against", "*SQNR, dB", "*agreement", "*accuracy"),
        Cell("*lost / gained", remarks=[CHANGED]),
        Cell("*rel. error", remarks=[sentence(allowed(parity.hops))]),
    )
    return section(
        "Parity",
        "parity.html.j2",
        images=max((hop.images for hop in parity.hops), default=0),
        chart=sqnr_bars([hop for hop in parity.hops if hop.kind == FROM_KERAS], limits),
        hops=Table(head, [_row(hop) for hop in parity.hops if hop.verdict != NOT_RUN], "parity"),
        apart=not_run(parity.hops),
    )


def sqnr_bars(hops: Sequence[Hop], limits: Mapping[str, float | None]) -> Chart:
    """SQNR against Keras, one row a candidate that was run, whatever came of it; the threshold as a mark.

    Args:
        hops: the ``from_keras`` hops.
        limits: smallest SQNR in dB by precision; None: not asked for.
    """
    rows = []
    for hop in hops:
        if hop.verdict != NOT_RUN:
            limit = limits.get(hop.precision)
            asked = "" if limit is None else f"asked: {limit:.4g}"
            label = f"{hop.precision.upper()} {short_name(hop.run_name)}"
            rows.append(Bar(label, _length(hop), _sqnr(hop, " dB") or "failed to run", hop.precision, limit, asked))
    return Chart("SQNR of the logits against Keras, dB (more is closer)", rows, "smallest that the recipe allows")


def _length(hop: Hop) -> float:
    if hop.sqnr_db is not None:
        return hop.sqnr_db
    return math.inf if hop.equal else math.nan


def _row(hop: Hop) -> tuple[str | Cell, ...]:
    why = hop.certainty if hop.verdict == PASS else hop.why
    note = f"{hop.precision.upper()}: {hop.note}." if hop.note else ""
    return (
        badge(hop.verdict),
        Cell(hop.run_name, remarks=[sentence(why), note]),
        hop.reference,
        _sqnr(hop),
        share(hop.top1_agreement),
        share(hop.accuracy_candidate),
        _changed(hop.mcnemar),
        number(hop.relative_error, ".1e"),
    )


def _sqnr(hop: Hop, unit: str = "") -> str:
    if hop.sqnr_db is not None:
        return f"{hop.sqnr_db:.1f}{unit}" if abs(hop.sqnr_db) < 1e12 else f"{hop.sqnr_db:.3g}{unit}"
    return "" if not hop.compared else "equal" if hop.equal else "NaN or infinite"


def _changed(mcnemar: McNemar | None) -> str:
    """Right answers lost and gained; empty where none were compared."""
    return "" if mcnemar is None else f"{mcnemar.losses} / {mcnemar.gains}, p {mcnemar.p_value:.2g}"
