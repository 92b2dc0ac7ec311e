"""The report's cards: the few numbers that a reader wants first, each with its verdict in words and colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.benchmark_report import PEER, BenchmarkReport, BenchmarkRow
from pipeline.html import share
from pipeline.layout import ONNX
from pipeline.parity_report import FAIL, FROM_KERAS, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED, PASS, Hop, ParityReport
from pipeline.report_headline import by_run
from pipeline.report_missed import reason
from pipeline.words import count

WORST_FIRST = (FAIL, NOT_VERIFIED, INCONCLUSIVE, NOT_RUN, PASS)
ENGINES = {
    PASS: "run and passed",
    INCONCLUSIVE: "run, inconclusive",
    FAIL: "failed",
    NOT_RUN: "not run here",
    NOT_VERIFIED: "not verified",
}


@dataclass(frozen=True)
class Card:
    """A number and what it is; the verdict gives the colour, "" none."""

    value: str
    words: str
    verdict: str = ""


def cards(parity: ParityReport, benchmark: BenchmarkReport | None, verdicts: Mapping[str, str]) -> list[Card]:
    """The cards of a recipe's artifacts; the verdicts are those on each engine as it is now, by file."""
    found = [
        _accuracy(parity),
        *(precision_card(precision, parity) for precision in ONNX),
        _engines(verdicts),
        speed_card(benchmark.results, parity) if benchmark else None,
    ]
    return [card for card in found if card is not None]


def _accuracy(parity: ParityReport) -> Card | None:
    hop = next((hop for hop in parity.hops if hop.kind == FROM_KERAS and hop.accuracy_reference is not None), None)
    if hop is None:
        return None
    return Card(share(hop.accuracy_reference), f"Keras accuracy on {count(hop.images, 'test image')}")


def precision_card(precision: str, parity: ParityReport) -> Card | None:
    """How a precision agrees with Keras; None if there is no file of it.

    Where there are several files, or several backends ran one, it is the run with the worst verdict, and of those the
    one that agrees least: a card never looks better than any of its runs.
    """
    found = [hop for hop in parity.hops if hop.kind == FROM_KERAS and hop.precision == precision]
    ran = [hop for hop in found if hop.verdict != NOT_RUN]
    if not ran:
        return (
            Card("not run", f"{precision.upper()}: none of its {count(_files(found), 'file')}", NOT_RUN)
            if found
            else None
        )

    def rank(hop: Hop) -> tuple[int, float]:
        agreement = -1.0 if hop.top1_agreement is None else hop.top1_agreement
        return WORST_FIRST.index(_worst_hop(hop, parity).verdict), agreement

    hop = min(ran, key=rank)
    worst = _worst_hop(hop, parity)
    runs = count(_files(ran), "file") + (f" in {count(len(ran), 'run')}" if len(ran) > _files(ran) else "")
    which = f" ({hop.run_name}, the worst of {runs})" if len(ran) > 1 else ""
    if not hop.compared:
        words = f"{precision.upper()} failed to run{which} - {hop.verdict}: {hop.why}"
        return Card("not compared", words, hop.verdict)
    against = f", against {worst.reference}" if worst.verdict != hop.verdict else ""
    why = f": {said}" if (said := reason(worst, parity)) else ""
    words = f"{precision.upper()} agrees with Keras{which} - {worst.verdict}{against}{why}"
    return Card(share(hop.top1_agreement), words, worst.verdict)


def _files(hops: Sequence[Hop]) -> int:
    """Of how many files, some of which two backends may have run."""
    return len({hop.candidate for hop in hops})


def _worst_hop(hop: Hop, parity: ParityReport) -> Hop:
    """Of all comparisons of a candidate that was compared with Keras, the one with the worst verdict."""
    others = [one for one in parity.hops if one.run_name == hop.run_name and one.verdict != NOT_RUN]
    return min([hop, *others], key=lambda one: WORST_FIRST.index(one.verdict))


def _engines(verdicts: Mapping[str, str]) -> Card | None:
    if not verdicts:
        return None
    counts = Counter(verdicts.values())
    counted = ", ".join(f"{counts[verdict]} {words}" for verdict, words in ENGINES.items() if counts[verdict])
    what = "TensorRT engine" if len(verdicts) == 1 else "TensorRT engines"
    return Card(f"{len(verdicts):,}", f"{what}: {counted}", next(one for one in WORST_FIRST if counts[one]))


def speed_card(results: Sequence[BenchmarkRow], parity: ParityReport) -> Card | None:
    """The fastest row against Keras, at the largest batch that both were timed at; None if there is no such batch.

    A time of zero, where the clock was too coarse, has no ratio and does not count, nor does a CPU's time with a file
    that is meant for engines, nor a peer's, which does not serve.
    """
    timed = [row for row in results if row.p50_ms is not None and row.p50_ms > 0]
    timed = [row for row in timed if row.backend != PEER and not is_proxy(row)]
    keras = {row.batch: row for row in timed if row.backend == "keras"}
    others = [row for row in timed if row.backend != "keras" and row.batch in keras]
    if not others:
        return None
    batch = max(row.batch for row in others)
    fastest = min((row for row in others if row.batch == batch), key=lambda row: row.p50_ms or 0.0)
    ratio = (keras[batch].p50_ms or 0.0) / (fastest.p50_ms or 1.0)
    verdict = verdict_on_row(fastest, parity)
    said = "" if verdict == PASS else f" - its verdict: {verdict}"
    words = f"Keras' speed: {fastest.backend} {fastest.name}, batch {batch}{said}"
    return Card(f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x", words, "" if verdict == PASS else verdict)


def is_proxy(row: BenchmarkRow) -> bool:
    """Whether a row times the arithmetic of an engine where it cannot be: FP16 and INT8 on a CPU."""
    return row.backend == "onnxruntime" and row.precision != "fp32"


def verdict_on_row(row: BenchmarkRow, parity: ParityReport) -> str:
    """The verdict on what a row of the benchmark ran: the file, on the same backend."""
    name = f"build/{row.file}" if row.backend == "tensorrt" else row.file
    return by_run(parity.hops).get((name, row.backend), NOT_VERIFIED)
