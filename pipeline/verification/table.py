"""The verdict as a table for a terminal, hop by hop, and the hints in words."""

from __future__ import annotations

from collections.abc import Sequence

from export.words import aligned, count
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.image_results import NEAR_TIE, ImageResults
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NOT_RUN,
    PASS,
    STEP,
    Hop,
    ParityReport,
    describe_relative_limit,
    files_not_run,
)
from pipeline.artifacts.results import VerifiedHop

HEADER = ("reference -> candidate", "max rel", "SQNR dB", "KL", "answers changed", "accuracy", "verdict")


def parity_table(parity: ParityReport, results: ImageResults | None = None, hints: Sequence[Hint] = ()) -> str:
    """Format the hops as a text table for a terminal; hops that did not run are a line per reason below it.

    Args:
        parity: The verdict.
        results: Of the same run, which tell near ties. Defaults to None: unknown.
        hints: Why comparisons failed, a line each at the end. Defaults to none.
    """
    failures: set[tuple[str, str]] = set()
    rows = [
        (
            name_hop(hop),
            "" if hop.relative_error is None else f"{hop.relative_error:.1e}",
            _sqnr_text(hop),
            "" if hop.kl is None else f"{hop.kl:.1e}",
            _changed_text(hop, results),
            "" if hop.accuracy_candidate is None else f"{hop.accuracy_candidate:.2%}",
            _verdict_text(hop, failures),
        )
        for hop in parity.hops
        if hop.verdict != NOT_RUN
    ]
    lines = aligned([HEADER, *rows])
    lines += [
        f"  not run: {', '.join(names)}: {why or 'no reason is known'}"
        for why, names in files_not_run(parity.hops).items()
    ]
    permitted = describe_relative_limit(parity.hops)
    lines += [f"  {permitted}"] if permitted else []
    return "\n".join([*lines, f"  verdict: {parity.verdict}", *(f"  {describe_hint(hint)}" for hint in hints)])


def name_hop(hop: Hop) -> str:
    """Return the two ends of a hop: "Keras -> export/model.onnx", or of a run with itself "INT8 file, itself"."""
    if hop.kind == FROM_KERAS:
        return f"Keras -> {hop.run_name}"
    return f"{hop.reference} -> {hop.run_name}" if hop.kind == STEP else f"{hop.run_name}, {hop.reference}"


def describe_hint(hint: Hint) -> str:
    """Return a hint as one line: where, what, the numbers, what to do."""
    where = f"{hint.reference} -> {hint.run}" + (f", layer {hint.layer}" if hint.layer else "")
    return " ".join(filter(None, [f"{where}:", hint.text, hint.evidence, hint.remedy]))


def near_ties_of(hop: Hop, results: ImageResults | None) -> int | None:
    """Return how many of a hop's changed answers were near ties in Keras; None where it is unknown."""
    if results is None or not hop.compared or len(results.margins) != hop.images:
        return None
    if len(hop.changed) != hop.changed_answers:  # the record does not name all of them
        return None
    return sum(float(results.margins[image]) < NEAR_TIE for image in hop.changed)


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


def _verdict_text(hop: Hop, failures: set[tuple[str, str]]) -> str:
    """Format the verdict and its reason; a candidate's error is written once, although all its hops fail by it."""
    if hop.verdict == FAIL and not hop.compared:
        if (failure := (hop.run_name, hop.why)) in failures:
            return f"{hop.verdict} (as above)"
        failures.add(failure)
    if hop.verdict == INCONCLUSIVE:
        return hop.why  # which begins with the word
    # What a consistent run shows is a list of all that was tried.
    more = {PASS: "" if hop.kind == CONSISTENCY else hop.certainty, FAIL: hop.why}.get(hop.verdict)
    return f"{hop.verdict} ({more})" if more else hop.verdict
