"""Cards with key numbers at the top of the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.words import count
from pipeline.artifacts.benchmark_report import PEER, BenchmarkReport, BenchmarkRow
from pipeline.artifacts.parity_report import (
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NOT_RUN,
    NOT_VERIFIED,
    PASS,
    Hop,
    ParityReport,
)
from pipeline.artifacts.paths import ONNX
from pipeline.reporting.headline import by_run, reason
from pipeline.reporting.html import share

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
    """A number with a description; the verdict sets the colour, "" none."""

    value: str
    words: str
    verdict: str = ""


def cards(parity: ParityReport, benchmark: BenchmarkReport | None, verdicts: Mapping[str, str]) -> list[Card]:
    """Make the cards of a page.

    Args:
        parity: the verdict.
        benchmark: None where there is none.
        verdicts: on each engine as it is now, by file.
    """
    all_cards = [
        _accuracy(parity),
        *(precision_card(precision, parity) for precision in ONNX),
        _engines(verdicts),
        speed_card(benchmark.results, parity) if benchmark else None,
    ]
    return [card for card in all_cards if card is not None]


def _accuracy(parity: ParityReport) -> Card | None:
    hop = next((hop for hop in parity.hops if hop.kind == FROM_KERAS and hop.accuracy_reference is not None), None)
    words = f"Keras accuracy on {count(hop.images, 'test image')}" if hop else ""
    return Card(share(hop.accuracy_reference), words) if hop else None


def precision_card(precision: str, parity: ParityReport) -> Card | None:
    """Make the card on a precision's agreement with Keras; None if there is no file of it.

    With several files, or several backends for one, the card shows the run with the worst verdict, and of those the one
    with the lowest agreement: a card never looks better than any of its runs.
    """
    hops = [hop for hop in parity.hops if hop.kind == FROM_KERAS and hop.precision == precision]
    ran = [hop for hop in hops if hop.verdict != NOT_RUN]
    if not ran:
        words = f"{precision.upper()}: none of its {count(_files(hops), 'file')}"
        return Card("not run", words, NOT_RUN) if hops else None

    def rank(hop: Hop) -> tuple[int, float]:
        agreement = -1.0 if hop.top1_agreement is None else hop.top1_agreement
        return WORST_FIRST.index(_worst_hop(hop, parity).verdict), agreement

    hop = min(ran, key=rank)
    worst = _worst_hop(hop, parity)
    runs = count(_files(ran), "file") + (f" in {count(len(ran), 'run')}" if len(ran) > _files(ran) else "")
    which = f" ({hop.run_name}, the worst of {runs})" if len(ran) > 1 else ""
    if not hop.compared:
        words = f"{precision.upper()} gave no answers{which} - {hop.verdict}: {hop.why}"
        return Card("not compared", words, hop.verdict)
    against = f", against {worst.reference}" if worst.verdict != hop.verdict else ""
    why = f": {text}" if (text := reason(worst, parity)) else ""
    words = f"{precision.upper()} agrees with Keras{which} - {worst.verdict}{against}{why}"
    return Card(share(hop.top1_agreement), words, worst.verdict)


def _files(hops: Sequence[Hop]) -> int:
    """The number of files, of which several backends may have run one."""
    return len({hop.candidate for hop in hops})


def _worst_hop(hop: Hop, parity: ParityReport) -> Hop:
    """The comparison with the worst verdict among all comparisons of the same run."""
    others = [other for other in parity.hops if other.run_name == hop.run_name and other.verdict != NOT_RUN]
    return min([hop, *others], key=lambda other: WORST_FIRST.index(other.verdict))


def _engines(verdicts: Mapping[str, str]) -> Card | None:
    if not verdicts:
        return None
    counts = Counter(verdicts.values())
    counted = ", ".join(f"{counts[verdict]} {words}" for verdict, words in ENGINES.items() if counts[verdict])
    noun = "TensorRT engine" if len(verdicts) == 1 else "TensorRT engines"
    return Card(f"{len(verdicts):,}", f"{noun}: {counted}", min(counts, key=WORST_FIRST.index))


def speed_card(results: Sequence[BenchmarkRow], parity: ParityReport) -> Card | None:
    """Make the card on the fastest row against Keras, at the largest batch at which both were timed.

    A time of zero, where the clock was too coarse, does not count, nor does a CPU's time with a file that is meant for
    engines, nor that of a peer, which does not serve. None if nothing remains.
    """
    timed = [row for row in results if row.p50_ms and row.p50_ms > 0 and row.backend != PEER and not is_proxy(row)]
    keras = {row.batch: row for row in timed if row.backend == "keras"}
    others = [row for row in timed if row.backend != "keras" and row.batch in keras]
    if not others:
        return None
    batch = max(row.batch for row in others)
    fastest = min((row for row in others if row.batch == batch), key=lambda row: row.p50_ms or 0.0)
    ratio = (keras[batch].p50_ms or 0.0) / (fastest.p50_ms or 1.0)
    verdict = "" if (judged := verdict_on_row(fastest, parity)) == PASS else judged
    words = f"Keras' speed: {fastest.backend} {fastest.name}, batch {batch}"
    words += f" - its verdict: {verdict}" if verdict else ""
    return Card(f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x", words, verdict)


def is_proxy(row: BenchmarkRow) -> bool:
    """Return whether a row's time does not predict that of an engine: FP16 and INT8 on a CPU."""
    return row.backend == "onnxruntime" and row.precision != "fp32"


def verdict_on_row(row: BenchmarkRow, parity: ParityReport) -> str:
    """Return the verdict on the file of a benchmark row, on the same backend."""
    name = f"build/{row.file}" if row.backend == "tensorrt" else row.file
    return by_run(parity.hops).get((name, row.backend), NOT_VERIFIED)
