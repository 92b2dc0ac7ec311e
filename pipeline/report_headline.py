"""The verdict as the page's first words: what it is, for what and on how many images, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.parity_report import (
    CUDA,
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NOT_RUN,
    NOT_VERIFIED,
    PASS,
    Hop,
    ParityReport,
    run_name,
)
from pipeline.report_standing import Standing
from pipeline.words import count

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
