"""The report's section on parity: every comparison, with its numbers and its verdict."""

from __future__ import annotations

from export.statistics import McNemar
from pipeline import charts
from pipeline.html import badge, chart, notes, number, section, share, table, text
from pipeline.layout import ONNX
from pipeline.parity_report import FROM_KERAS, NOT_RUN, PASS, Hop, ParityReport, allowed

CHANGED = (
    "Lost / gained: images that the reference names right and the candidate wrong, and the reverse; p: how likely "
    "chance alone parts them at least so far (exact McNemar test)."
)
KINDS = {"from_keras": "from Keras", "step": "step", "top_k": "best classes"}
HEAD = (
    *("", "reference", "candidate", "*rel. error", "*SQNR dB", "*top-1", "*accuracy", "*lost / gained"),
    "verdict",
)


def parity_section(parity: ParityReport) -> str:
    """The section, as HTML; its thresholds are those that the verdict was given by."""
    limits = {name: parity.thresholds[name].sqnr_db for name in ONNX if name in parity.thresholds}
    bars = charts.parity_waterfall([hop for hop in parity.hops if hop.kind == FROM_KERAS], limits)
    images = max((hop.images for hop in parity.hops), default=0)
    words = (
        f"Every file against Keras, and against the step before it, on {images:,} test images that selected nothing."
    )
    rows = [_row(hop) for hop in parity.hops]
    return section("Parity", words, chart(bars) + table(HEAD, rows) + notes(_remarks(parity)))


def _row(hop: Hop) -> tuple[str, ...]:
    return (
        KINDS[hop.kind],
        text(hop.reference),
        text(hop.candidate),
        number(hop.relative_error, ".1e"),
        _sqnr(hop),
        share(hop.top1_agreement),
        share(hop.accuracy_candidate),
        _changed(hop.mcnemar),
        badge(hop.verdict, hop.verdict),
    )


def _sqnr(hop: Hop) -> str:
    if hop.sqnr_db is not None or not hop.compared:
        return number(hop.sqnr_db, ".1f")
    return "equal" if hop.equal else "NaN or infinite"


def _changed(mcnemar: McNemar | None) -> str:
    """Right answers lost and gained; empty where none were compared."""
    return "" if mcnemar is None else f"{mcnemar.losses} / {mcnemar.gains}, p {mcnemar.p_value:.2g}"


def _remarks(parity: ParityReport) -> list[str]:
    said = []
    for hop in parity.hops:
        why = hop.certainty if hop.verdict == PASS else hop.why
        if why and hop.verdict != NOT_RUN:
            said.append(f"{hop.candidate} against {hop.reference}: {why}.")
    if words := allowed(parity.hops):
        said.append(f"{words[:1].upper()}{words[1:]}.")
    said += [f"{hop.precision.upper()}: {hop.note}." for hop in parity.hops if hop.note]
    said += [f"{hop.why[:1].upper()}{hop.why[1:]}." for hop in parity.hops if hop.why and hop.verdict == NOT_RUN]
    return [*said, CHANGED]
