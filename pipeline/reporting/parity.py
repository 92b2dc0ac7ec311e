"""The report's section on parity: every comparison with its distances, and which step cost how much."""

import math
from collections.abc import Mapping, Sequence

from export.words import sentence
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    FROM_KERAS,
    NOT_RUN,
    PASS,
    Hop,
    ParityReport,
    describe_relative_limit,
    files_not_judged,
    files_not_run,
)
from pipeline.artifacts.paths import CARD, ONNX
from pipeline.reporting.glossary import COSINE, KL, LOGITS, RELATIVE_L2, SQNR, STEP, TOP_1, TOP_5
from pipeline.reporting.headline import short_name
from pipeline.reporting.html import Bar, Cell, Chart, Section, Table, badge, number, section, share
from pipeline.reporting.waterfall import chains, step_costs

CHANGED = (
    "Lost / gained: images that only the reference, or only the candidate, classifies correctly; p: the probability "
    "that chance alone makes a difference of at least this size (exact McNemar test)."
)


def parity_section(parity: ParityReport) -> Section:
    """Make the section; its thresholds are those that the verdict was given by."""
    limits = {name: parity.thresholds[name].sqnr_db for name in ONNX if name in parity.thresholds}
    head = (
        *("verdict", "candidate", "against", "*SQNR, dB", "*agreement", "*accuracy"),
        Cell("*lost / gained", remarks=[CHANGED]),
        Cell("*rel. error", remarks=[sentence(describe_relative_limit(parity.hops))]),
    )
    ran = [hop for hop in parity.hops if hop.verdict != NOT_RUN]
    itself = [hop for hop in ran if hop.kind == CONSISTENCY and hop.verdict == PASS]
    ran = [hop for hop in ran if hop not in itself]
    runs = [hop for hop in itself if hop.candidate != CARD]  # how files are decoded has a section of its own
    return section(
        "Parity",
        "parity.html.j2",
        (SQNR, LOGITS, TOP_1, TOP_5, COSINE, RELATIVE_L2, KL, STEP),
        images=max((hop.images for hop in parity.hops), default=0),
        chart=sqnr_bars([hop for hop in parity.hops if hop.kind == FROM_KERAS], limits),
        hops=Table(head, [_row(hop) for hop in ran], "parity"),
        distances=Table(DISTANCES, [_distances(hop) for hop in ran if hop.compared], "distances", titled=False),
        itself=Table(("verdict", "run", "what was compared"), [_itself(hop) for hop in runs]),
        steps=[step for chain in chains(parity.hops) if (step := step_costs(chain))],
        apart=files_not_run(parity.hops),
        unjudged=files_not_judged(parity.hops),
    )


DISTANCES = (
    *("candidate", "against", "*max. error", "*mean error", "*rel. L2", "*cosine", "*KL, nats"),
    *("*top-1", "*top-5", "*accuracy of it", "*of the other", "*answers changed"),
)


def _distances(hop: Hop) -> tuple[str | Cell, ...]:
    return (
        hop.run_name,
        hop.reference,
        *(number(value, ".2e") for value in (hop.max_abs, hop.mean_abs, hop.relative_l2)),
        number(hop.cosine, ".6f"),
        number(hop.kl, ".2e"),
        *(share(value) for value in (hop.top1_agreement, hop.top5_agreement)),
        *(share(value) for value in (hop.accuracy_candidate, hop.accuracy_reference)),
        number(hop.changed_answers, ",d"),
    )


def _itself(hop: Hop) -> tuple[str | Cell, ...]:
    return badge(hop.verdict), hop.run_name, sentence(hop.certainty)


def sqnr_bars(hops: Sequence[Hop], limits: Mapping[str, float | None]) -> Chart:
    """Draw SQNR against Keras with one bar for each candidate that was run, and the threshold as a mark.

    Args:
        hops: the ``from_keras`` hops.
        limits: smallest SQNR in dB by precision; None: no threshold.
    """
    bars = [_bar(hop, limits.get(hop.precision)) for hop in hops if hop.verdict != NOT_RUN]
    return Chart("SQNR of the logits against Keras, dB (more is closer)", bars, "smallest that the recipe allows")


def _bar(hop: Hop, limit: float | None) -> Bar:
    label = f"{hop.precision.upper()} {short_name(hop.run_name)}"
    without_noise = math.inf if hop.equal else math.nan
    length = without_noise if hop.sqnr_db is None else hop.sqnr_db
    threshold = "" if limit is None else f"asked: {limit:.4g}"
    return Bar(label, length, _sqnr(hop, " dB") or "no answers", hop.precision, limit, threshold)


def _row(hop: Hop) -> tuple[str | Cell, ...]:
    why, mcnemar = hop.certainty if hop.verdict == PASS else hop.why, hop.mcnemar
    note = f"{hop.precision.upper()}: {hop.note}." if hop.note else ""
    return (
        badge(hop.verdict),
        Cell(hop.run_name, remarks=[sentence(why), note]),
        hop.reference,
        _sqnr(hop),
        share(hop.top1_agreement),
        share(hop.accuracy_candidate),
        "" if mcnemar is None else f"{mcnemar.losses} / {mcnemar.gains}, p {mcnemar.p_value:.2g}",
        number(hop.relative_error, ".1e"),
    )


def _sqnr(hop: Hop, unit: str = "") -> str:
    if hop.sqnr_db is not None:
        return f"{hop.sqnr_db:.1f}{unit}" if abs(hop.sqnr_db) < 1e12 else f"{hop.sqnr_db:.3g}{unit}"
    return "" if not hop.compared else "equal" if hop.equal else "NaN or infinite"
