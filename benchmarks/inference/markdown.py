"""The measurements of batch inference as Markdown tables, of nothing but their record."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from benchmarks.gpu.markdown import table
from benchmarks.inference.record import ONE, OURS, Candidate, Comparison, Contest, InferenceReport, Limit, LongRun
from export.words import count

_UNITS = ("MB", 1e6), ("kB", 1e3)


def as_markdown(report: InferenceReport) -> str:
    """Return the tables, a section for each scenario."""
    machine = report.machine
    commit = report.commit[:12] if report.commit else "no repository"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    parts = [
        "# Batch inference",
        f"{machine.cpu}; Python {machine.python}, {packages}; commit {commit}; load before: {report.load_before:.2f}. "
        "Ratios are geometric means over rounds in turns, above 1 where `infer` is faster, with intervals at 95 %.",
        *(_contest(contest) for contest in report.contests),
        *([_long_runs(report.long_runs)] if report.long_runs else []),
    ]
    return "\n\n".join(parts) + "\n"


def _contest(contest: Contest) -> str:
    width, height = contest.image_size
    head = (
        f"## {contest.name}: {contest.model} at {contest.input_size[0]}x{contest.input_size[1]}, batches of "
        f"{contest.batch_size}\n\n{count(contest.images, 'image')} a turn, the first of {width}x{height} pixels, "
        f"{_bytes(contest.image_bytes)} a file on average."
    )
    parts = [
        head,
        table(
            (
                "candidate",
                "what",
                "turns",
                "seconds, median",
                "classifying",
                "with start",
                "images/s",
                "peak MiB",
                "same class",
            ),
            (_candidate(candidate, contest.images) for candidate in contest.candidates),
            right=(2, 3, 4, 5, 6, 7, 8),
        ),
        table(
            (f"speed of `{OURS}` over", "ratio", "interval", "rounds", "target", "result"),
            map(_comparison, contest.comparisons),
            right=(1, 2, 3, 4),
        ),
        *([_limits(contest.limits)] if contest.limits else []),
        *(f"Failed: {name}: {' '.join(why.split())}" for name, why in contest.failed.items()),
    ]
    return "\n\n".join(parts)


def _candidate(candidate: Candidate, images: int) -> tuple[str, ...]:
    inner = [turn.seconds for turn in candidate.turns if turn.seconds is not None and candidate.name != ONE]
    classifying = [turn.classify_seconds for turn in candidate.turns if turn.classify_seconds is not None]
    peaks = [turn.peak_mib for turn in candidate.turns if turn.peak_mib is not None]
    return (
        candidate.name,
        candidate.what,
        str(len(candidate.turns)),
        f"{median(inner):.2f}" if inner else "–",
        f"{median(classifying):.2f}" if classifying and inner else "–",
        f"{median(turn.wall_seconds for turn in candidate.turns):.2f}",
        f"{images / median(inner):,.1f}" if inner else "–",
        f"{max(peaks):,}" if peaks else "–",
        "–" if candidate.same_answers is None else f"{candidate.same_answers:,} of {images:,}",
    )


def _comparison(comparison: Comparison) -> tuple[str, ...]:
    low_high = comparison.interval
    return (
        f"{comparison.against}, {'start-up included' if comparison.startup else 'without start-up'}",
        "–" if comparison.ratio is None else f"{comparison.ratio:.3f}",
        "–" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}",
        str(comparison.rounds),
        "–" if comparison.target is None else f"at least {comparison.target:g}",
        comparison.verdict or "–",
    )


def _limits(limits: Iterable[Limit]) -> str:
    rows = (
        (
            limit.what,
            "–" if limit.measured is None else f"{limit.measured:,.4g} {limit.unit}",
            f"at most {limit.most:g} {limit.unit}",
            f"{limit.verdict} ({limit.why})" if limit.why else limit.verdict,
        )
        for limit in limits
    )
    return table(("what", "measured", "target", "result"), rows, right=(1, 2))


def _long_runs(runs: Iterable[LongRun]) -> str:
    parts = ["## Memory"]
    for run in runs:
        if run.error:
            parts.append(f"{run.name}: failed: {' '.join(run.error.split())}")
            continue
        by_quarter = ", ".join(f"{mib:,.0f}" for mib in run.quarters_mib) or "not known"
        parts.append(
            f"{run.name}: {count(run.rows, 'row')} of {count(run.inputs, 'input')} with {run.model} in "
            f"{run.wall_seconds:,} s, peak {run.peak_mib:,} MiB; MiB in each quarter of the time: {by_quarter}."
        )
        parts.append(_limits(run.limits))
    return "\n\n".join(parts)


def _bytes(number: int) -> str:
    unit, size = next(((unit, size) for unit, size in _UNITS if number >= size), ("bytes", 1))
    return f"{number / size:.3g} {unit}"
