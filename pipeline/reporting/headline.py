"""The verdict as the page's first words: cards, what was missed, and how sure it is.

The verdict as the page's first words: what it is, for what and on how many images, and how sure it is.

What a comparison missed, from its numbers: what was asked, what was reached, in few words.

The report's cards: the few numbers that a reader wants first, each with its verdict in words and colour.
"""

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
from pipeline.reporting.validity import Standing

Run = tuple[str, str]  # a file, and the backend that ran it

NAMED = 2  # files that a sentence names; more are counted
VERBS = {INCONCLUSIVE: "inconclusive", PASS: "passed"}


@dataclass(frozen=True)
class Headline:
    """The words beside a page's title.

    Attributes:
        verdict: gives the colour.
        words: the verdict with its scope.
        certainty: how sure it is, or what was missed; "" where a record does not say.
    """

    verdict: str
    words: str
    certainty: str


def headline(stands: Standing, parity: ParityReport, engines: Mapping[str, str]) -> Headline:
    """The words for a verdict.

    Args:
        stands: whether it still holds.
        parity: the verdict.
        engines: verdict on each engine that is there, as it is now, by file.
    """
    if stands.broken:
        words = f"not verified as it is now (verdict {stands.verdict}, but files were altered since)"
        return Headline(stands.shown, words, "")
    verdicts = by_run(parity.hops)
    ran = {run: verdict for run, verdict in verdicts.items() if verdict != NOT_RUN}
    rest = _engines_apart(engines)
    if not ran:
        return Headline(FAIL, f"{FAIL}: no file could be run here, so nothing is verified", "")
    clauses: list[str] = []
    for verdict in (FAIL, INCONCLUSIVE, PASS):
        runs = [run for run, one in ran.items() if one == verdict]
        if runs and not clauses:
            images = max((hop.images for hop in parity.hops), default=0)
            clauses.append(f"{verdict}: {_things(runs, verdict)} on {count(images, 'image')}")
        elif runs:
            clauses.append(f"{_things(runs, PASS)} {VERBS[verdict]}")
    return Headline(stands.shown, "; ".join([*clauses, *rest]), certainty(parity))


def certainty(parity: ParityReport) -> str:
    """How sure a pass is: the weakest of its files; else what was missed first."""
    for verdict in (FAIL, INCONCLUSIVE):
        missed = [hop for hop in parity.hops if hop.verdict == verdict]
        if missed and parity.verdict == verdict:
            return f"{short_name(missed[0].run_name)}: {missed[0].why}"
    compared = [hop.agreement_interval for hop in parity.hops if hop.kind == FROM_KERAS and hop.agreement_interval]
    if not compared:
        return ""
    low = min(interval[0] for interval in compared)
    # Rounded down, so that the sentence never says more than the interval.
    return f"at least {math.floor(1000 * low) / 10:.1f} % agreement with Keras, with 95 % confidence"


def short_name(name: str) -> str:
    """``rtx/int8.plan`` or ``model.int8.onnx``: what tells files apart, without the stage's folder; run names too."""
    path = PurePosixPath(name)
    return path.relative_to("build").as_posix() if path.is_relative_to("build") else path.name


def by_run(hops: Sequence[Hop]) -> dict[Run, str]:
    """The worst verdict on each file on each backend; "not run" only where no comparison of it ran."""
    verdicts: dict[Run, set[str]] = {}
    for hop in hops:
        verdicts.setdefault((hop.candidate, hop.backend), set()).add(hop.verdict)
    return {
        run: next(one for one in (FAIL, INCONCLUSIVE, PASS, NOT_RUN) if one in found) for run, found in verdicts.items()
    }


def _things(runs: Sequence[Run], verdict: str) -> str:
    """Files as a reader counts them; those that miss something by name, where they are few."""
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


def _engines_apart(engines: Mapping[str, str]) -> list[str]:
    """What the verdict says nothing about."""
    if not engines:
        return ["no engine was built"]
    said = []
    for verdict, words in ((NOT_RUN, "not run here"), (NOT_VERIFIED, "never verified")):
        number = sum(one == verdict for one in engines.values())
        if number:
            which = "engines" if number == len(engines) > 1 else count(number, "engine")
            said.append(f"{which} {words}")
    return said


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
