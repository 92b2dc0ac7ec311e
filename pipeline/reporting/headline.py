"""The top of the report: the verdict with its scope and certainty, missed thresholds, and cards with key numbers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from export.words import count
from pipeline.artifacts.benchmark_report import PEER, BenchmarkReport, BenchmarkRow
from pipeline.artifacts.parity_report import (
    CUDA,
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NOT_RUN,
    NOT_VERIFIED,
    PASS,
    TOP_K,
    Hop,
    ParityReport,
    run_name,
)
from pipeline.artifacts.paths import ONNX
from pipeline.recipe.schema import Thresholds
from pipeline.reporting.html import share
from pipeline.reporting.validity import Validity

Run = tuple[str, str]  # a file, and the backend that ran it

NAMED = 2  # files that a sentence names; if there are more, they are counted
VERBS = {INCONCLUSIVE: "inconclusive", PASS: "passed"}


@dataclass(frozen=True)
class Headline:
    """The text below a page's title.

    Attributes:
        verdict: sets the colour.
        words: the verdict with its scope.
        certainty: the confidence of a pass, or why it is none; "" where the records do not say.
    """

    verdict: str
    words: str
    certainty: str


def headline(stands: Validity, parity: ParityReport, engines: Mapping[str, str]) -> Headline:
    """Describe a verdict.

    Args:
        stands: whether the verdict still holds.
        parity: the verdict.
        engines: verdict on each engine as it is now, by file.
    """
    if stands.broken:
        words = f"not verified as it is now (verdict {stands.verdict}, but files were altered since)"
        return Headline(stands.shown, words, "")
    verdicts = by_run(parity.hops)
    by_verdict = {key: [run for run, worst in verdicts.items() if worst == key] for key in (FAIL, INCONCLUSIVE, PASS)}
    worst_first = [(verdict, runs) for verdict, runs in by_verdict.items() if runs]
    if not worst_first:
        return Headline(FAIL, f"{FAIL}: no file could be run here, so nothing is verified", "")
    (verdict, runs), *others = worst_first
    clauses = [
        f"{verdict}: {_files_in_words(runs, verdict)} on {count(max(hop.images for hop in parity.hops), 'image')}",
        *(f"{_files_in_words(runs, PASS)} {VERBS[verdict]}" for verdict, runs in others),
        *_unverified_engines(engines),
    ]
    return Headline(stands.shown, "; ".join(clauses), certainty(parity))


def certainty(parity: ParityReport) -> str:
    """Return the confidence of a pass, by its weakest file; otherwise the first reason against it."""
    against = [hop for hop in parity.hops if hop.verdict == parity.verdict and hop.verdict in (FAIL, INCONCLUSIVE)]
    if against:
        return f"{short_name(against[0].run_name)}: {against[0].why}"
    intervals = [hop.agreement_interval for hop in parity.hops if hop.kind == FROM_KERAS and hop.agreement_interval]
    if not intervals:
        return ""
    low = min(interval[0] for interval in intervals)
    # Rounded down, so that the sentence never says more than the interval.
    return f"at least {math.floor(1000 * low) / 10:.1f} % agreement with Keras, with 95 % confidence"


def short_name(name: str) -> str:
    """Return a file's or run's name without the stage's folder: ``rtx/int8.plan``, ``model.int8.onnx``."""
    path = PurePosixPath(name)
    return path.relative_to("build").as_posix() if path.is_relative_to("build") else path.name


def by_run(hops: Sequence[Hop]) -> dict[Run, str]:
    """Return the worst verdict on each file on each backend; "not run" only where none of its comparisons ran."""
    verdicts: dict[Run, set[str]] = {}
    for hop in hops:
        verdicts.setdefault((hop.candidate, hop.backend), set()).add(hop.verdict)
    worst_first = (FAIL, INCONCLUSIVE, PASS, NOT_RUN)
    return {run: min(of_run, key=worst_first.index) for run, of_run in verdicts.items()}


def _files_in_words(runs: Sequence[Run], verdict: str) -> str:
    """Files counted by kind; a few that did not pass by name."""
    if verdict != PASS and len(runs) <= NAMED:
        return " and ".join(short_name(run_name(*run)) for run in runs)
    plans = sum(name.endswith(".plan") for name, _ in runs)
    on_cuda = sum(backend == CUDA for _, backend in runs)
    kinds = (
        (len(runs) - plans - on_cuda, "ONNX file", "ONNX files"),
        (on_cuda, "ONNX file on CUDA", "ONNX files on CUDA"),
        (plans, "engine", "engines"),
    )
    *others, last = [count(*kind) for kind in kinds if kind[0]]
    return f"{', '.join(others)} and {last}" if others else last


def _unverified_engines(engines: Mapping[str, str]) -> list[str]:
    """What the verdict does not cover, as clauses."""
    if not engines:
        return ["no engine was built"]
    numbers = Counter(engines.values())
    return [
        f"{'engines' if numbers[verdict] == len(engines) > 1 else count(numbers[verdict], 'engine')} {words}"
        for verdict, words in ((NOT_RUN, "not run here"), (NOT_VERIFIED, "never verified"))
        if numbers[verdict]
    ]


NOT_FINITE = "NaN or infinite logits"


@dataclass(frozen=True)
class Missed:
    """A threshold that a comparison misses.

    Attributes:
        key: recipe key below ``verify.thresholds.<precision>``.
        limit: the threshold, in words that follow "does not reach".
        words: what was reached and what was asked; rounding never makes them equal.
        value: what was reached, as a recipe value; a threshold that the comparison meets.
    """

    key: str
    limit: str
    words: str
    value: str


def missed(hop: Hop, parity: ParityReport) -> list[Missed]:
    """Return the thresholds that a comparison misses; none where it has no distances, or NaN or infinite logits."""
    if not hop.compared or not hop.finite:
        return []
    limits = parity.thresholds.get(hop.precision, Thresholds())
    thresholds = []
    if hop.relative_limit is not None and hop.relative_error is not None and hop.relative_error > hop.relative_limit:
        error = _up(hop.relative_error)
        most = f"at most {hop.relative_limit:.1e}"
        words = f"relative error {error}, {most} allowed"
        thresholds.append(Missed("relative_error", f"a relative error of {most}", words, error))
    agreement, least = hop.top1_agreement, limits.top1_agreement
    if agreement is not None and least is not None and agreement < least:
        low = math.floor(agreement * 1e4) / 1e4
        shown = low if round(agreement, 4) >= least else agreement
        words = f"{shown * 100:.2f} % agreement, {least * 100:g} % asked"
        thresholds.append(Missed("top1_agreement", f"{least * 100:g} % agreement", words, f"{low:.4f}"))
    if hop.sqnr_db is not None and limits.sqnr_db is not None and hop.sqnr_db < limits.sqnr_db:
        sqnr = math.floor(hop.sqnr_db * 10) / 10
        shown = sqnr if round(hop.sqnr_db, 1) >= limits.sqnr_db else hop.sqnr_db
        words = f"SQNR {shown:.1f} dB, {limits.sqnr_db:g} asked"
        thresholds.append(Missed("sqnr_db", f"{limits.sqnr_db:g} dB SQNR", words, f"{sqnr:.1f}"))
    drop, allowed = _drop(hop), limits.accuracy_drop
    if drop is not None and allowed is not None and drop > allowed:
        high = math.ceil(drop * 1e4) / 1e4
        shown = high if round(drop, 4) <= allowed else drop
        most = f"at most {allowed * 100:g} %"
        words = f"accuracy drop {shown * 100:.2f} %, {most} allowed"
        thresholds.append(Missed("accuracy_drop", f"an accuracy drop of {most}", words, f"{high:.4f}"))
    return thresholds


def reason(hop: Hop, parity: ParityReport) -> str:
    """Return why a comparison failed or is inconclusive, short enough for a card; "" for another verdict."""
    if hop.verdict not in (FAIL, INCONCLUSIVE):
        return ""
    if hop.kind == TOP_K or not hop.compared:
        return hop.why
    if not hop.finite:
        return NOT_FINITE
    words = "; ".join(threshold.words for threshold in missed(hop, parity))
    if hop.verdict == INCONCLUSIVE and words:
        return f"{count(hop.images, 'image')} cannot tell; {words}"
    return words or hop.why


def accuracy_in_words(hop: Hop) -> str:
    """Return SQNR and agreement of a comparison, for a sentence; "" where there are none."""
    if not hop.finite or hop.top1_agreement is None:
        return ""
    agreement = f"{share(hop.top1_agreement)} agreement"
    return agreement if hop.sqnr_db is None else f"SQNR {hop.sqnr_db:.1f} dB, {agreement}"


def _drop(hop: Hop) -> float | None:
    if hop.accuracy_drop is not None or hop.accuracy_reference is None or hop.accuracy_candidate is None:
        return hop.accuracy_drop
    return hop.accuracy_reference - hop.accuracy_candidate


def _up(value: float) -> str:
    """A number with two significant digits, rounded up."""
    if value <= 0:
        return "0.0e+00"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit - 1e-9) * unit:.1e}"


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
        words = f"{precision.upper()} failed to run{which} - {hop.verdict}: {hop.why}"
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
