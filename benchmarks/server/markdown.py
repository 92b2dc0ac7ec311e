"""The measurements of the server as Markdown tables, of nothing but their record."""

from __future__ import annotations

from benchmarks.gpu.markdown import table
from benchmarks.inference.record import Limit
from benchmarks.server.record import Latency, Run, ServerReport
from export.words import count


def as_markdown(report: ServerReport) -> str:
    """Return the tables: what was counted, how long it took, the memory, and what is judged."""
    machine = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    commit = report.commit[:12] if report.commit else "no repository"
    height, width = report.input_size
    by = report.answered_by
    parts = [
        "# The server under load",
        f"{report.model} at {height}x{width}, answered by {by.get('file')} ({by.get('backend')}, "
        f"{by.get('precision')}, verdict {by.get('verdict')}). {machine.cpu}, shared by server and client; "
        f"Python {machine.python}, {packages}; commit {commit}; load before: {report.load_before:.2f}.",
        table(
            ("requests", "loop", "answered", "wrong", "lost", "refused, sent again", "pictures", "best classes"),
            map(_counts, report.runs),
            right=(2, 3, 4, 5, 6, 7),
        ),
        table(
            ("latency in ms", "requests/s", "p50", "p90", "p95", "p99", "longest", "alone p50", "alone p99"),
            map(_times, report.runs),
            right=(1, 2, 3, 4, 5, 6, 7, 8),
        ),
        table(
            (
                "server",
                "mean batch",
                "of it in ms",
                "CPU ms a request",
                "of the client",
                "CPUs of others",
                "memory, MiB in each tenth",
            ),
            map(_server, report.runs),
            right=(1, 3, 4, 5),
        ),
        table(
            ("limit", "measured", "at most", "result"),
            (_limit(run.name, limit) for run in report.runs for limit in run.limits),
            right=(1, 2),
        ),
        *(f"{run.name}: {run.outcome}." for run in report.runs),
    ]
    return "\n\n".join(parts) + "\n"


def _counts(run: Run) -> tuple[str, ...]:
    loop = f"{run.concurrency} at a time" if run.offered is None else f"{run.offered:,g} a second, Poisson"
    lost = ", ".join(f"{number:,} {reason}" for reason, number in run.lost.items())
    return (
        f"{run.name}: {count(run.requests, 'request')}",
        loop,
        f"{run.answered:,}",
        f"{run.wrong:,}",
        lost or "0",
        f"{run.refused:,}",
        f"{run.pictures:,}",
        f"{run.best_classes:,}",
    )


def _times(run: Run) -> tuple[str, ...]:
    latency: Latency = run.latency
    shown = (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    return (
        run.name,
        f"{run.requests_per_second:,.1f}",
        *map(_number, (*shown, run.alone.p50_ms, run.alone.p99_ms)),
    )


def _server(run: Run) -> tuple[str, ...]:
    return (
        run.name,
        _number(run.mean_batch),
        ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in run.server_ms.items()) or "–",
        _number(run.server_cpu_ms),
        _number(run.client_cpu_ms),
        _number(run.other_cpus),
        ", ".join(map(_number, run.memory.parts_mib)),
    )


def _limit(name: str, limit: Limit) -> tuple[str, ...]:
    unit = f" {limit.unit}" if limit.unit else ""
    measured = "–" if limit.measured is None else f"{limit.measured:,g}{unit}"
    result = f"{limit.verdict} ({limit.why})" if limit.why else limit.verdict
    return f"{name}: {limit.what}", measured, f"{limit.most:g}{unit}", result


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}"
