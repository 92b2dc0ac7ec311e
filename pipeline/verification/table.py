"""The verdict as a table for a terminal, hop by hop, and the hints in words."""

from __future__ import annotations

from collections.abc import Sequence

from export.words import aligned, count, percent, sentence
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.image_results import NEAR_TIE, ImageResults
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    FROM_KERAS,
    NOT_RUN,
    PASS,
    STEP,
    Hop,
    ParityReport,
    describe_relative_limit,
    files_not_judged,
    files_not_run,
)
from pipeline.artifacts.results import VerifiedHop
from pipeline.verification.checks.engine_files import REMEDY

# What a terminal of 80 columns cuts off or wraps is last, and reasons are notes below.
HEADER = ("verdict", "reference -> candidate", "SQNR dB", "answers changed", "accuracy", "max rel", "KL")


def parity_table(parity: ParityReport, results: ImageResults | None = None, hints: Sequence[Hint] = ()) -> str:
    """Format the hops as a text table for a terminal, with each reason once below it, also of what did not run.

    Args:
        parity: The verdict.
        results: Of the same run, which tell near ties. Defaults to None: unknown.
        hints: Why comparisons failed, a line each at the end. Defaults to none.
    """
    notes: list[str] = []
    rows = [
        (
            _verdict_text(hop, notes),
            name_hop(hop),
            _sqnr_text(hop),
            _changed_text(hop, results),
            "" if hop.accuracy_candidate is None else percent(hop.accuracy_candidate),
            "" if hop.relative_error is None else f"{hop.relative_error:.1e}",
            "" if hop.kl is None else f"{hop.kl:.1e}",
        )
        for hop in parity.hops
        if hop.verdict != NOT_RUN
    ]
    lines = aligned([HEADER, *rows])
    lines += [f"  [{number}] {note}" for number, note in enumerate(notes, 1)]
    apart = {"not run": files_not_run(parity.hops), "not judged": files_not_judged(parity.hops)}
    lines += [
        f"  {what}: {', '.join(names)}: {why or 'no reason is known'}"
        for what, files in apart.items()
        for why, names in files.items()
    ]
    permitted = describe_relative_limit(parity.hops)
    lines += [f"  {permitted}"] if permitted else []
    said = [f"  {describe_hint(hint, parity)}" for hint in hints]
    return "\n".join([*lines, f"  verdict: {parity.verdict}", *said])


def name_hop(hop: Hop) -> str:
    """Return the two ends of a hop: "Keras -> export/model.onnx", or of a run with itself "INT8 file, itself"."""
    if hop.kind == FROM_KERAS:
        return f"Keras -> {hop.run_name}"
    return f"{hop.reference} -> {hop.run_name}" if hop.kind == STEP else f"{hop.run_name}, {hop.reference}"


def describe_hint(hint: Hint, parity: ParityReport) -> str:
    """Return a hint as one line: where, what, the numbers unless they are the reason of the verdict, what to do."""
    told = any(sentence(_reason(hop)) == sentence(hint.evidence) for hop in parity.hops if hop.run_name == hint.run)
    evidence = "" if told else hint.evidence
    where = f"{hint.reference} -> {hint.run}" + (f", layer {hint.layer}" if hint.layer else "")
    return " ".join(filter(None, [f"{where}:", *map(sentence, (hint.text, evidence, hint.remedy))]))


def near_ties_of(hop: Hop, results: ImageResults | None) -> int | None:
    """Return how many of a hop's changed answers were near ties in Keras; None where it is unknown.

    No answer at all is no near tie.
    """
    if results is None or not hop.compared or hop.run_name not in results.runs:
        return None
    if len(results.margins) != hop.images or hop.changed_answers != len(hop.changed):
        return None
    answered = results.classes[results.runs.index(hop.run_name)] >= 0
    return sum(bool(answered[image] and results.margins[image] < NEAR_TIE) for image in hop.changed)


def shorten_hops(parity: ParityReport, results: ImageResults | None = None) -> tuple[VerifiedHop, ...]:
    """Return the hops in short, for the manifest and for ``--json``."""
    return tuple(
        VerifiedHop(name_hop(hop), hop.verdict, hop.sqnr_db, hop.changed_answers, near_ties_of(hop, results), hop.why)
        for hop in parity.hops
    )


def _changed_text(hop: Hop, results: ImageResults | None) -> str:
    """Format the answers that changed, such as "6 of 372, 5 near ties"."""
    if (changed := hop.changed_answers) is None:
        return ""
    ties = near_ties_of(hop, results) if changed else None
    return f"{changed:,} of {hop.images:,}" + (f", {count(ties, 'near tie')}" if ties is not None else "")


def _sqnr_text(hop: Hop) -> str:
    """Format the SQNR; it is infinite where both logits are equal, and undefined with NaN."""
    if not hop.compared:
        return ""
    return f"{hop.sqnr_db:.1f}" if hop.sqnr_db is not None else "equal" if hop.equal else "NaN or inf"


def _reason(hop: Hop) -> str:
    """Return why a hop has its verdict, without the advice on an engine, which is that of its hint."""
    return hop.why.removesuffix(REMEDY).rstrip()


def _verdict_text(hop: Hop, notes: list[str]) -> str:
    """Format the verdict with the number of its reason among the notes, to which a new one is added."""
    # What a consistent run shows is a list of all that was tried.
    why = _reason(hop) if hop.verdict != PASS else "" if hop.kind == CONSISTENCY else hop.certainty
    if not why:
        return hop.verdict
    if why not in notes:
        notes.append(why)
    return f"{hop.verdict} [{notes.index(why) + 1}]"
