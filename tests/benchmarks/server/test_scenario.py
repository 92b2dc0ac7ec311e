"""A scenario against a server of its own: what it counts, what it judges, and that nothing is left running."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server.load import Plan
from benchmarks.server.process import Server
from benchmarks.server.record import Run
from benchmarks.server.routes import CLASSIFY, V2_FILES
from benchmarks.server.scenario import Scenario, run_scenario
from export.errors import ProjectError
from tests.benchmarks.server.asked import PICTURES, ROUTES
from tests.benchmarks.server.stub import command


def run(route: str = CLASSIFY, requests: int = 400, **faults: Any) -> Run:
    scenario = Scenario("named", ROUTES[route], Plan(requests, 4), most_growth=16, look_seconds=0.005)
    measured, answer = run_scenario(scenario, command(honest=len(PICTURES), **faults), ROUTES, PICTURES)
    assert answer.answered_by["precision"] == "fp32"
    return measured


def test_an_honest_server_passes() -> None:
    measured = run(seconds=0.002)
    assert [limit.verdict for limit in measured.limits] == ["met"] * 4
    assert measured.outcome == "passed"
    assert (measured.answered, measured.wrong, measured.lost, measured.refused) == (400, 0, {}, 0)
    assert measured.warm_up == 16
    assert (measured.pictures, measured.alone.n, measured.latency.n) == (7, 7, 400)
    assert measured.mean_batch == 3
    assert measured.server_ms == {"decode": 1, "total": 2}
    assert measured.memory.looks > 10
    assert 0 < measured.requests_per_second == pytest.approx(400 / measured.seconds, rel=0.01)
    assert measured.server_cpu_ms is not None
    assert measured.server_cpu_ms >= 0
    assert measured.other_cpus is not None
    assert 0 <= measured.other_cpus < 2 * (os.cpu_count() or 1)


def test_the_protocol_is_held_against_the_plain_route() -> None:
    measured = run(V2_FILES, seconds=0.002)
    assert (measured.outcome, measured.path, measured.server_ms) == ("passed", "/v2/models/tiny_files/infer", {})


def test_what_is_wrong_fails() -> None:
    faulty = run(seconds=0.002, wrong_every=100, drop_every=130, exit=3)
    assert [limit.verdict for limit in faulty.limits] == ["missed", "missed", "met", "missed"]
    assert (faulty.outcome, faulty.wrong, faulty.lost) == ("failed", 4, {"connection closed": 3})
    early = run(requests=1, wrong_every=16)
    assert (early.wrong, early.answered, early.outcome) == (1, 1, "failed"), "in the warm-up"


def test_a_leak_fails_with_its_slope() -> None:
    leaking = run(seconds=0.002, leak=300_000)
    assert [limit.verdict for limit in leaking.limits] == ["met", "met", "missed", "met"]
    assert leaking.outcome == "failed"
    assert leaking.memory.slope_mib == pytest.approx(300_000 * 1000 / 2**20, rel=0.25)


def test_a_server_that_does_not_start_says_why() -> None:
    said = "import sys; sys.stderr.write('Expected the package fastapi. Run `make install-serve`.'); sys.exit(2)"
    with pytest.raises(ProjectError, match=r"exit status 2\.\nExpected the package fastapi. Run `make install-serve`"):
        Server([sys.executable, "-c", said]).__enter__()


def test_a_server_that_never_answers_is_ended() -> None:
    server = Server([sys.executable, "-c", "import time; time.sleep(60)"], patience=0.3)
    with pytest.raises(ProjectError, match=r"within 0\.3 s"):
        server.__enter__()
    assert not Path(f"/proc/{server.pid}").exists()


def test_a_server_is_ended_where_the_measurement_fails() -> None:
    with pytest.raises(ProjectError, match=r"status 500: internal, for picture 3 of 7"):
        run_scenario(Scenario("named", ROUTES[CLASSIFY], Plan(10, 1), 16), command(fail_every=3), ROUTES, PICTURES)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="ours"), Server(command()) as server:
        raise RuntimeError("ours")
    assert not Path(f"/proc/{server.pid}").exists()
    assert time.monotonic() - start < 20
