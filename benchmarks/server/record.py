"""What was measured of the server, as it is written to JSON, and how it is held against its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.inference.record import Limit
from benchmarks.server.memory import Memory
from benchmarks.timing import PERCENTILE_METHOD
from pipeline.artifacts.machine import Machine

SCHEMA = 1
Outcome = Literal["passed", "failed", "not decided"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a request to its whole answer, as the client sees them.

    A percentile is None where there are too few samples for one of them to lie above it: 10 for p90, 100 for p99.

    Attributes:
        n: number of samples.
        p50_ms: median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        max_ms: the longest.
        percentile_method: numpy's name of the method.
    """

    n: int
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    percentile_method: str = PERCENTILE_METHOD


@dataclass(frozen=True)
class Run:
    """Many requests to a server that was started for them.

    Attributes:
        name: of the scenario.
        path: that was asked.
        loop: "closed": the next request follows an answer; "open": requests arrive at random times.
        offered: requests a second that arrived in an open loop; None in a closed one.
        concurrency: requests at a time, at most.
        pictures: number of different image files.
        picture_bytes: mean size of one.
        best_classes: number of different best classes among their answers; a mixed-up answer may hide among equal ones.
        warm_up: requests in a closed loop before, whose times do not count; wrong, refused and lost ones of them do.
        requests: number of requests.
        answered: of them, with an answer.
        wrong: answers that differ from that of the picture alone.
        refused: times that the server was too busy (503); such a request is sent again.
        lost: number of requests without an answer, by reason.
        seconds: from the first request to the last answer.
        requests_per_second: answered ones over those seconds.
        latency: of the answered ones, from their being sent, in an open loop from their being due.
        alone: latency of each picture alone over /classify, before.
        mean_batch: images that were computed at once, on average, as the server counts them; None where it does not.
        server_ms: mean milliseconds by part that the answers state; empty where they state none.
        server_cpu_ms: of a CPU that the server took for a request; None outside Linux.
        client_cpu_ms: of a CPU that the client took for a request.
        other_cpus: CPUs that other processes kept busy meanwhile, on average; above some tenths the times are longer
            than those of the server. None outside Linux.
        memory: of the server.
        limits: what is judged.
        outcome: passed where every limit is met.
    """

    name: str
    path: str
    loop: Literal["closed", "open"]
    offered: float | None
    concurrency: int
    pictures: int
    picture_bytes: int
    best_classes: int
    warm_up: int
    requests: int
    answered: int
    wrong: int
    refused: int
    lost: Mapping[str, int]
    seconds: float
    requests_per_second: float
    latency: Latency
    alone: Latency
    mean_batch: float | None
    server_ms: Mapping[str, float]
    server_cpu_ms: float | None
    client_cpu_ms: float
    other_cpus: float | None
    memory: Memory
    limits: tuple[Limit, ...]
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class ServerReport:
    """The JSON file.

    Attributes:
        schema: of this file.
        machine: on which the command ran; server and client share it.
        commit: of this code; None outside a repository.
        load_before: processes that wanted a CPU in the minute before, on average; above some tenths, it was not quiet.
        model: name of the recipe.
        input_size: height and width of the model's input.
        answered_by: file, backend, precision and verdict, as the server says.
        options: of `serve` beside those of the recipe.
        runs: in their order.
    """

    schema: int = SCHEMA
    machine: Machine
    commit: str | None
    load_before: float
    model: str
    input_size: tuple[int, int]
    answered_by: Mapping[str, str]
    options: tuple[str, ...]
    runs: tuple[Run, ...] = ()


def summarize_latency(milliseconds: Sequence[float]) -> Latency:
    """Reduce samples to the percentiles that they carry."""
    number = len(milliseconds)

    def percentile(percent: int) -> float | None:
        if number * (100 - percent) < 100:
            return None
        return round(float(np.percentile(milliseconds, percent, method=PERCENTILE_METHOD)), 3)

    return Latency(
        n=number,
        p50_ms=percentile(50),
        p90_ms=percentile(90),
        p95_ms=percentile(95),
        p99_ms=percentile(99),
        max_ms=round(max(milliseconds), 3) if milliseconds else None,
    )


def judge_limits(limits: Sequence[Limit]) -> Outcome:
    """Return whether all limits are met; one that was missed decides."""
    verdicts = {limit.verdict for limit in limits}
    return "failed" if "missed" in verdicts else "passed" if verdicts == {"met"} else "not decided"
