"""The top of the report: the verdict with its scope and certainty, and the thresholds that were missed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from export.words import count
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
from pipeline.artifacts.paths import CARD, KERAS
from pipeline.recipe.schema import Thresholds
from pipeline.reporting.html import share
from pipeline.reporting.validity import Validity

Run = tuple[str, str]  # a file, and the backend that ran it

NAMED = 2  # files that a sentence names; if there are more, they are counted
VERBS = {FAIL: ("fails", "fail"), INCONCLUSIVE: ("is inconclusive", "are inconclusive"), PASS: ("passes", "pass")}
# Kinds of runs by whether they are engines and whether they are on CUDA: singular and plural.
KINDS = {
    (False, False): ("ONNX file", "ONNX files"),
    (False, True): ("ONNX file on CUDA", "ONNX files on CUDA"),
    (True, False): ("engine", "engines"),
}


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
    """Describe a verdict: what passed, on how many images and how surely, and what was not run.

    Args:
        stands: whether the verdict still holds.
        parity: the verdict.
        engines: verdict on each engine as it is now, by file.
    """
    if stands.broken:
        words = f"not verified as it is now (verdict {stands.verdict}, but files were altered since)"
        return Headline(stands.shown, words, "")
    hops = [hop for hop in parity.hops if hop.candidate != CARD]
    decoding = [hop for hop in parity.hops if hop.candidate == CARD and hop.verdict == FAIL]
    verdicts = by_run(hops)
    by_verdict = {key: [run for run, worst in verdicts.items() if worst == key] for key in (*VERBS, NOT_RUN)}
    if len(by_verdict[NOT_RUN]) == len(verdicts):
        return Headline(FAIL, "nothing is verified: no file could be run here", "")
    judged = [(verdict, runs) for verdict in VERBS if (runs := by_verdict[verdict])]
    answered = {(hop.candidate, hop.backend) for hop in hops if hop.compared}
    images = f" on {count(max(hop.images for hop in hops), 'image')}"
    clauses = ["image files are not decoded as by Keras"] if decoding else []
    for verdict, runs in judged:
        sure = _agreement(runs, parity) if verdict == PASS else ""
        here = images if answered & set(runs) else ""  # a file that gave no answers failed on none
        images = "" if here else images
        clauses.append(f"{_clause(verdict, runs, list(verdicts))}{here}{sure}")
    files = [run for run in by_verdict[NOT_RUN] if not _is_engine(run)]
    not_run = [f"{_counted(files, list(verdicts))} not run"] if files else []
    return Headline(stands.shown, "; ".join([*clauses, *not_run, *_unverified_engines(engines)]), certainty(parity))


def _clause(verdict: str, runs: Sequence[Run], every: Sequence[Run]) -> str:
    """Such as "ONNX files pass"; a few that did not pass are named."""
    named = verdict != PASS and len(runs) <= NAMED
    names = " and ".join(short_name(run_name(*run)) for run in runs) if named else _counted(runs, every)
    return f"{names} {VERBS[verdict][len(runs) > 1]}"


def _counted(runs: Sequence[Run], every: Sequence[Run]) -> str:
    """Runs by kind: "ONNX files" where they are all of several, otherwise such as "2 of 3 ONNX files"."""
    parts = []
    for kind, nouns in KINDS.items():
        number, total = (sum(_kind(run) == kind for run in some) for some in (runs, every))
        if number:
            share = f"{number:,} of {count(total, *nouns)}" if number < total else count(total, *nouns)
            parts.append(nouns[1] if number == total > 1 else share)
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def _kind(run: Run) -> tuple[bool, bool]:
    return _is_engine(run), run[1] == CUDA


def _is_engine(run: Run) -> bool:
    return run[0].endswith(".plan")


def _agreement(runs: Sequence[Run], parity: ParityReport) -> str:
    """The agreement with Keras that all these runs surely have, in brackets; "" where it is unknown for one of them."""
    hops = [hop for hop in parity.hops if hop.kind == FROM_KERAS and (hop.candidate, hop.backend) in set(runs)]
    intervals = [hop.agreement_interval for hop in hops if hop.agreement_interval]
    if not intervals or len(intervals) < len(runs):
        return ""
    return f" (at least {_floor_percent(min(low for low, _ in intervals))} agreement)"


def _floor_percent(share: float) -> str:
    """A share in percent, rounded down, so that a sentence never says more than the interval."""
    return f"{math.floor(1000 * share) / 10:.1f} %"


def certainty(parity: ParityReport) -> str:
    """Return the confidence of a pass, by its weakest file; otherwise the first reason against it."""
    against = [hop for hop in parity.hops if hop.verdict == parity.verdict and hop.verdict in (FAIL, INCONCLUSIVE)]
    if against:
        return f"{short_name(against[0].run_name)}: {against[0].why}"
    intervals = [hop.agreement_interval for hop in parity.hops if hop.kind == FROM_KERAS and hop.agreement_interval]
    if not intervals:
        return ""
    low = min(interval[0] for interval in intervals)
    return f"at least {_floor_percent(low)} agreement with Keras, with 95 % confidence"


def short_name(name: str) -> str:
    """Return a file's or run's name without the stage's folder: ``rtx/int8.plan``, ``model.int8.onnx``."""
    path = PurePosixPath(name)
    return path.relative_to("build").as_posix() if path.is_relative_to("build") else path.name


def step_words(reference: str, run: str) -> str:
    """Return a comparison as the step that it is: "Keras → model.onnx"."""
    return f"{'Keras' if reference == KERAS else short_name(reference)} → {short_name(run)}"


def by_run(hops: Sequence[Hop]) -> dict[Run, str]:
    """Return the worst verdict on each file on each backend; "not run" only where none of its comparisons ran."""
    verdicts: dict[Run, set[str]] = {}
    for hop in hops:
        verdicts.setdefault((hop.candidate, hop.backend), set()).add(hop.verdict)
    worst_first = (FAIL, INCONCLUSIVE, PASS, NOT_RUN)
    return {run: min(of_run, key=worst_first.index) for run, of_run in verdicts.items()}


def _unverified_engines(engines: Mapping[str, str]) -> list[str]:
    """What the verdict does not cover, as clauses."""
    if not engines:
        return ["no engine was built"]
    numbers = Counter(engines.values())
    return [
        f"{'engines' if numbers[verdict] == len(engines) > 1 else count(numbers[verdict], 'engine')} {words}"
        for verdict, words in ((NOT_RUN, "not run"), (NOT_VERIFIED, "never verified"))
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
