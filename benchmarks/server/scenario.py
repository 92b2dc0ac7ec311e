"""One scenario: a server of its own, every picture asked alone, a warm-up, then the requests that are measured."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.inference.record import at_most
from benchmarks.inference.scenario import recipe_words
from benchmarks.server.client import NoAnswerError
from benchmarks.server.load import Plan, Question, Tally, ask_alone, get, run_load
from benchmarks.server.memory import LOOK_SECONDS, MemoryWatch, busy_seconds, cpu_seconds, summarize
from benchmarks.server.process import Server
from benchmarks.server.record import Run, judge_limits, summarize_latency
from benchmarks.server.routes import CLASSIFY, Answer, Route
from export.errors import ProjectError
from export.words import count
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)

WARM_UP = 4  # requests for each of those at a time: the largest batches come, for which the runner reserves memory
_BATCHES = re.compile(r"^classifier_batch_images_(sum|count) (\S+)$", re.MULTILINE)  # a histogram of the server's


@dataclass(frozen=True)
class Scenario:
    """What is asked, and how.

    Attributes:
        name: of it.
        route: how the server is asked.
        plan: how often, and how many at a time.
        most_growth: MiB by which the server's memory may grow from 20 % of the requests on.
        look_seconds: between two looks at its memory. Defaults to 0.5.
    """

    name: str
    route: Route
    plan: Plan
    most_growth: float
    look_seconds: float = LOOK_SECONDS


def serve_words(context: Context, options: Sequence[str]) -> list[str]:
    """Return the command of the server, on a free port."""
    return [sys.executable, "-m", "pipeline", "serve", *recipe_words(context), "--port", "0", *options]


def run_scenario(
    scenario: Scenario, command: Sequence[str], routes: Mapping[str, Route], pictures: Sequence[bytes]
) -> tuple[Run, Answer]:
    """Run a scenario.

    Args:
        scenario: what is asked, and how.
        command: that starts the server, see `Server`.
        routes: all of them; the pictures are asked alone over ``classify``.
        pictures: the image files.

    Returns:
        What was measured, and one of the answers.

    Raises:
        ProjectError: the server does not start, or has no answer to a picture alone.
    """
    plan, warm, tally = scenario.plan, Tally(), Tally()
    warming = replace(plan, requests=WARM_UP * plan.concurrency, rate=None)
    with Server(command) as server:
        try:
            alone, alone_ms = ask_alone(server.port, routes[CLASSIFY], pictures, plan.patience)
        except NoAnswerError as error:
            raise ProjectError(
                f"Expected an answer to each picture alone. Received: {error}. Take pictures that `infer` answers.\n"
                f"{server.last_words()}"
            ) from None
        questions = [
            Question(scenario.route.request(file), reference) for file, reference in zip(pictures, alone, strict=True)
        ]
        run_load(server.port, scenario.route, questions, warming, warm)
        before = _metrics(server, plan.patience)
        log.info(
            "%s: %s, %s",
            scenario.name,
            count(plan.requests, "request"),
            f"{plan.concurrency} at a time" if plan.rate is None else f"{plan.rate:.1f} a second",
        )
        before_cpu, before_busy = cpu_seconds(server.pid), busy_seconds()
        with MemoryWatch(server.pid, lambda: tally.done, scenario.look_seconds) as watched:
            run_load(server.port, scenario.route, questions, plan, tally)
        server_seconds, busy = _since(cpu_seconds(server.pid), before_cpu), _since(busy_seconds(), before_busy)
        mean_batch = _mean_batch(before, _metrics(server, plan.patience))
        status = server.stop()
        wrong, lost = warm.wrong + tally.wrong, warm.lost + tally.lost
        if lost or status:
            log.warning("the server's last words: %s", server.last_words())
    memory, answered = summarize(watched.looks, plan.requests), len(tally.milliseconds)
    limits = (
        at_most("wrong answers", "", wrong, 0),
        at_most("lost requests", "", lost.total(), 0),
        at_most("growth of the memory from 20 % of the requests on", "MiB", memory.growth_mib, scenario.most_growth),
        at_most("exit status at SIGTERM", "", status, 0),
    )
    run = Run(
        name=scenario.name,
        path=scenario.route.path,
        loop="closed" if plan.rate is None else "open",
        offered=None if plan.rate is None else round(plan.rate, 2),
        concurrency=plan.concurrency,
        pictures=len(pictures),
        picture_bytes=round(sum(map(len, pictures)) / len(pictures)),
        best_classes=len({answer.classes[0][0] for answer in alone}),
        warm_up=warming.requests,
        requests=plan.requests,
        answered=answered,
        wrong=wrong,
        refused=warm.refused + tally.refused,
        lost=dict(lost),
        seconds=round(tally.seconds, 3),
        requests_per_second=round(answered / tally.seconds, 2),
        latency=summarize_latency(tally.milliseconds),
        alone=summarize_latency(alone_ms),
        mean_batch=mean_batch,
        server_ms={part: round(total / answered, 3) for part, total in tally.server_milliseconds.items()},
        server_cpu_ms=None if server_seconds is None else _each(server_seconds, plan.requests),
        client_cpu_ms=_each(tally.client_seconds, plan.requests),
        other_cpus=None
        if busy is None
        else round(max(0.0, busy - (server_seconds or 0.0) - tally.client_seconds) / tally.seconds, 2),
        memory=memory,
        limits=limits,
        outcome=judge_limits(limits),
    )
    return run, alone[0]


def _since(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _each(seconds: float, requests: int) -> float:
    return round(1000 * seconds / requests, 4)


def _metrics(server: Server, patience: float) -> str:
    try:
        return get(server.port, "/metrics", patience)
    except NoAnswerError:
        return ""


def _mean_batch(before: str, after: str) -> float | None:
    """Return how many images were computed at once between two readings of the metrics; None where they do not say."""
    images, batches = (_batches(after, kind) - _batches(before, kind) for kind in ("sum", "count"))
    return round(images / batches, 3) if batches > 0 else None


def _batches(metrics: str, kind: str) -> float:
    return sum(float(value) for of, value in _BATCHES.findall(metrics) if of == kind)
